#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, with kubectl and launch/jobset.yaml. The cluster needs JobSet
# (https://jobset.sigs.k8s.io) and a TPU node pool for each slice.
#
#   launch/jobset.sh COMMAND --name=NAME [OPTIONS] [-- TRAINING COMMAND]
#
#   run      fill in launch/jobset.yaml and apply it
#   render   fill it in and print it
#   status   the JobSet and its pods
#   logs     follow the log of process 0
#   delete   end it; what it has saved stays
#
#   --image=IMAGE          built from launch/Dockerfile and pushed (run, render)
#   --accelerator=A        of the node pool, such as tpu-v5-lite-podslice, tpu-v6e-slice (run, render)
#   --topology=T           of the node pool, such as 4x4 (run, render)
#   --chips_per_host=4  --slices=1
#   --bucket=NAME          Cloud Storage bucket to mount at /mnt/bucket, without gs:// (run, render)
#   --service_account=A    Kubernetes service account of the pods, one that may use the bucket; else
#                          the namespace's default (run, render)
#   --max_restarts=10      failures allowed; preemptions do not count
#   --grace_seconds=120    between SIGTERM and SIGKILL
#   --dry_run              only print the manifest and the commands
#
#   launch/jobset.sh run --name=vl --image=REGISTRY/twelve_in_one --accelerator=tpu-v5-lite-podslice \
#       --topology=4x4 --bucket=NAME -- \
#       python -m twelve_in_one.train --config=twelve --workdir=/mnt/bucket/DIR
set -euo pipefail
. "$(dirname "$0")/common.sh"

name='' image='' accelerator='' topology='' chips_per_host=4 slices=1 max_restarts=10
grace_seconds=120 hosts='' bucket='' service_account=''
take_action "$@"
names='name image accelerator topology chips_per_host slices max_restarts grace_seconds bucket'
take_options "$names service_account" '' "${@:2}"
set -- ${rest[@]+"${rest[@]}"}
[ -z "$service_account" ] || [[ $service_account =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] ||
    fail "--service_account must be a Kubernetes service account's name, got '$service_account'"
[ -n "$name" ] || fail "--name is missing"

quoted() { # the arguments as a YAML (and JSON) list without its brackets
    local out='' arg
    for arg in "$@"; do
        [[ $arg != *[[:cntrl:]]* ]] || fail "the training command holds a control character: $arg"
        arg=${arg//\\/\\\\}
        out+="${out:+, }\"${arg//\"/\\\"}\""
    done
    echo "$out"
}

render() {
    local text key chips=1 size missing=''
    command=$(quoted "$@")
    if [ -n "$topology" ]; then
        [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || fail "--topology must be like 4x4, got $topology"
        for size in ${topology//x/ }; do chips=$((chips * size)); done
        [[ $chips_per_host =~ ^[1-9][0-9]*$ ]] && [ $((chips % chips_per_host)) -eq 0 ] ||
            fail "--topology=$topology has $chips chips, not a multiple of --chips_per_host=$chips_per_host"
        hosts=$((chips / chips_per_host))
    fi
    text=$(cat "$(dirname "$0")/jobset.yaml")
    # Lines that end with such a comment are there only when the option is given.
    if [ -z "$bucket" ]; then
        text=$(grep -v '# --bucket$' <<< "$text")
        warn_unmounted "the pods' own disks and is lost with them" "$@"
    fi
    if [ -z "$service_account" ]; then text=$(grep -v '# --service_account$' <<< "$text"); fi
    for key in name image accelerator topology chips_per_host slices max_restarts grace_seconds command; do
        if [ -z "${!key}" ]; then
            if [ "$key" = command ]; then missing+=' the training command (after --)'
            else missing+=" --$key"; fi
        fi
    done
    [ -z "$missing" ] || fail "missing:$missing"
    for key in $(grep -o '\${[a-z_]*}' <<< "$text" | tr -d '${}' | sort -u); do
        [ -n "${!key:-}" ] || fail "launch/jobset.yaml: nothing is known to fill in for \${$key}"
        [ "$key" = command ] || text=${text//"\${$key}"/"${!key}"}
    done
    echo "${text//"\${command}"/"$command"}" # last: it may itself hold what looks like a key
}

case $action in
    render) render "$@" ;;
    run)
        manifest=$(render "$@")
        if $dry_run; then
            echo "$manifest"
            echo "# kubectl apply --filename -"
        else
            kubectl apply --filename - <<< "$manifest"
        fi
        ;;
    status)
        call kubectl get jobset "$name"
        call kubectl get pods --output wide --selector "jobset.sigs.k8s.io/jobset-name=$name"
        ;;
    logs)
        call kubectl logs --follow --tail=100 --selector \
            "jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        ;;
    delete) call kubectl delete jobset "$name" ;;
    *) fail "unknown command $action, see --help" ;;
esac
