#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster that xpk (https://github.com/AI-Hypercomputer/xpk) has made.
# launch/jobset.sh does the same with kubectl alone.
#
#   launch/xpk.sh COMMAND --cluster=CLUSTER --name=NAME [OPTIONS] [-- TRAINING COMMAND]
#
#   run      submit the training command; needs --image
#   status   list the cluster's workloads of that name
#   logs     follow the log of process 0
#   delete   end it; what it has saved stays
#
#   --project=PROJECT  --zone=ZONE  of the cluster
#   --type=v5litepod-16  --slices=1
#   --image=IMAGE        built from launch/Dockerfile and pushed
#   --max_restarts=100   preemptions count, and so do failures
#   --grace_seconds=120  between SIGTERM and SIGKILL
#   --dry_run            only print the commands
#
# xpk mounts a bucket in the pods of all workloads of a cluster once it is attached to it:
#
#   xpk storage attach STORAGE --cluster=c --project=PROJECT --zone=ZONE --type=gcsfuse \
#       --bucket=NAME --mount-point=/mnt/bucket --readonly=false --size=1 --auto-mount=true \
#       --mount-options=implicit-dirs,rename-dir-limit=200000
#
#   launch/xpk.sh run --cluster=c --name=vl --image=REGISTRY/twelve_in_one -- \
#       python -m twelve_in_one.train --config=twelve --workdir=/mnt/bucket/DIR
set -euo pipefail
. "$(dirname "$0")/common.sh"

cluster='' name='' project='' zone='' type=v5litepod-16 slices=1 image=''
max_restarts=100 grace_seconds=120
take_action "$@"
take_options 'cluster name project zone type slices image max_restarts grace_seconds' '' "${@:2}"
set -- ${rest[@]+"${rest[@]}"}
[ -n "$cluster" ] || fail "--cluster is missing"
[ -n "$name" ] || fail "--name is missing"
where=("--cluster=$cluster")
if [ -n "$project" ]; then where+=("--project=$project"); fi
if [ -n "$zone" ]; then where+=("--zone=$zone"); fi

case $action in
    run)
        [ -n "$image" ] || fail "--image is missing: build launch/Dockerfile and push it"
        [ $# -gt 0 ] || fail "the training command is missing, after --"
        # xpk runs the command in a subshell and signals that: with exec it is the subshell.
        call xpk workload create "${where[@]}" "--workload=$name" "--tpu-type=$type" \
            "--num-slices=$slices" "--docker-image=$image" "--max-restarts=$max_restarts" \
            --restart-on-user-code-failure \
            "--termination-grace-period-seconds=$grace_seconds" \
            --env=TWELVE_IN_ONE_STOPPED_EXIT_CODE=75 \
            "--command=exec $(printf '%q ' "$@")"
        ;;
    status) call xpk workload list "${where[@]}" "--filter-by-job=$name" ;;
    logs)
        call kubectl logs --follow --tail=100 --selector \
            "jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
        ;;
    delete) call xpk workload delete "${where[@]}" "--workload=$name" ;;
    *) fail "unknown command $action, see --help" ;;
esac
