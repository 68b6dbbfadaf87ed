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
usage() { sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p;}' "$0"; }
say() { echo "launch/jobset.sh: $*" >&2; }
fail() { say "$*"; exit 2; }

# In capitals: what stands in launch/jobset.yaml.
NAME='' IMAGE='' ACCELERATOR='' TOPOLOGY='' CHIPS_PER_HOST=4 SLICES=1 MAX_RESTARTS=10
GRACE_SECONDS=120 HOSTS='' COMMAND='' BUCKET='' SERVICE_ACCOUNT='' dry_run=false
if [ $# -eq 0 ]; then usage >&2; exit 2; fi
if [ "$1" = --help ]; then usage; exit; fi
action=$1
shift
while [ $# -gt 0 ]; do
    case $1 in
        --help) usage; exit ;;
        --name=*) NAME=${1#*=} ;;
        --image=*) IMAGE=${1#*=} ;;
        --accelerator=*) ACCELERATOR=${1#*=} ;;
        --topology=*) TOPOLOGY=${1#*=} ;;
        --chips_per_host=*) CHIPS_PER_HOST=${1#*=} ;;
        --slices=*) SLICES=${1#*=} ;;
        --bucket=*)
            BUCKET=${1#*=}
            # An empty one, from a variable that is not set, must not train without a mount.
            [[ $BUCKET =~ ^[a-z0-9][a-z0-9._-]*[a-z0-9]$ ]] ||
                fail "--bucket must be a bucket's name, without gs:// and folders, got '$BUCKET'"
            ;;
        --service_account=*)
            SERVICE_ACCOUNT=${1#*=}
            [[ $SERVICE_ACCOUNT =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] ||
                fail "--service_account must be a Kubernetes service account's name, got '$SERVICE_ACCOUNT'"
            ;;
        --max_restarts=*) MAX_RESTARTS=${1#*=} ;;
        --grace_seconds=*) GRACE_SECONDS=${1#*=} ;;
        --dry_run) dry_run=true ;;
        --) shift; break ;;
        *) fail "unknown option $1, see --help (the training command follows --)" ;;
    esac
    shift
done
[ -n "$NAME" ] || fail "--name is missing"

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
    COMMAND=$(quoted "$@")
    if [ -n "$TOPOLOGY" ]; then
        [[ $TOPOLOGY =~ ^[1-9][0-9]*(x[1-9][0-9]*)+$ ]] || fail "--topology must be like 4x4, got $TOPOLOGY"
        for size in ${TOPOLOGY//x/ }; do chips=$((chips * size)); done
        [[ $CHIPS_PER_HOST =~ ^[1-9][0-9]*$ ]] && [ $((chips % CHIPS_PER_HOST)) -eq 0 ] ||
            fail "--topology=$TOPOLOGY has $chips chips, not a multiple of --chips_per_host=$CHIPS_PER_HOST"
        HOSTS=$((chips / CHIPS_PER_HOST))
    fi
    text=$(cat "$(dirname "$0")/jobset.yaml")
    # Lines that end with such a comment are there only when the option is given.
    if [ -z "$BUCKET" ]; then
        text=$(grep -v '# --bucket$' <<< "$text")
        case "$*" in
            */mnt/bucket | */mnt/bucket[/\ ]*)
                say "warning: without --bucket nothing mounts /mnt/bucket: what is saved there is on" \
                    "the pods' own disks and is lost with them"
                ;;
        esac
    fi
    if [ -z "$SERVICE_ACCOUNT" ]; then text=$(grep -v '# --service_account$' <<< "$text"); fi
    for key in NAME IMAGE ACCELERATOR TOPOLOGY CHIPS_PER_HOST SLICES MAX_RESTARTS GRACE_SECONDS COMMAND; do
        if [ -z "${!key}" ]; then
            if [ "$key" = COMMAND ]; then missing+=' the training command (after --)'
            else missing+=" --$(tr '[:upper:]' '[:lower:]' <<< "$key")"; fi
        fi
    done
    [ -z "$missing" ] || fail "missing:$missing"
    for key in $(grep -o '\${[A-Z_]*}' <<< "$text" | tr -d '${}' | sort -u); do
        [ -n "${!key:-}" ] || fail "launch/jobset.yaml: nothing is known to fill in for \${$key}"
        [ "$key" = COMMAND ] || text=${text//"\${$key}"/"${!key}"}
    done
    echo "${text//"\${COMMAND}"/"$COMMAND"}" # last: it may itself hold what looks like a key
}
call() { if $dry_run; then printf '%q ' "$@" && echo; else "$@"; fi; }

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
        call kubectl get jobset "$NAME"
        call kubectl get pods --output wide --selector "jobset.sigs.k8s.io/jobset-name=$NAME"
        ;;
    logs)
        call kubectl logs --follow --tail=100 --selector \
            "jobset.sigs.k8s.io/jobset-name=$NAME,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        ;;
    delete) call kubectl delete jobset "$NAME" ;;
    *) fail "unknown command $action, see --help" ;;
esac
