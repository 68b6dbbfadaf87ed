#!/usr/bin/env bash
# Trains on a Cloud TPU VM or pod slice, with gcloud.
#
#   launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [OPTIONS] [-- TRAINING COMMAND]
#
#   train    create, setup and run, again after every preemption, until the run is finished; what
#            it finds done already it does not repeat, so it can itself be ended and started again
#   create   ask for the slice (a queued resource) and wait until it is there
#   setup    copy this checkout to all workers, install it there and mount the bucket
#   run      start the training command on all workers and leave it running
#   status   state of the slice, and of the run on every worker
#   logs     follow the log of a worker
#   stop     ask the run to save and stop
#   delete   give the slice back
#
#   --project=PROJECT  --type=v5litepod-16  --version=v2-alpha-tpuv5-lite  --spot
#   --bucket=NAME      Cloud Storage bucket that setup, run and train mount at /mnt/bucket on all
#                      workers; its name without gs://
#   --gcsfuse_deb=FILE  package of gcsfuse (a file here) that setup copies to the workers, for an
#                      image that neither has gcsfuse nor knows where to get it
#   --worker=0         whose log to follow
#   --max_restarts=3   how often `train` tries again what failed by itself; preemptions do not count
#   --dry_run          only print the gcloud commands
#
#   launch/tpu_vm.sh train --name=vl --zone=us-west4-a --spot --bucket=NAME -- \
#       python -m twelve_in_one.train --config=twelve --workdir=/mnt/bucket/DIR
set -euo pipefail
. "$(dirname "$0")/common.sh"

name='' zone='' project='' type=v5litepod-16 version=v2-alpha-tpuv5-lite spot=false worker=0
bucket='' gcsfuse_deb='' max_restarts=3 poll_seconds=${TPU_POLL_SECONDS:-30}
take_action "$@"
take_options 'name zone project type version bucket gcsfuse_deb worker max_restarts' spot "${@:2}"
set -- ${rest[@]+"${rest[@]}"}
[ -z "$gcsfuse_deb" ] || [ -f "$gcsfuse_deb" ] ||
    fail "--gcsfuse_deb: there is no file '$gcsfuse_deb'"
[ -n "$name" ] || fail "--name is missing"
[ -n "$zone" ] || fail "--zone is missing"
case $action in
    run | train) [ $# -gt 0 ] || fail "$action: the training command is missing, after --" ;;
    create | setup | status | logs | stop | delete) ;;
    *) fail "unknown command $action, see --help" ;;
esac
training=("$@")
case $action:$bucket in
    run: | train:) warn_unmounted "the workers' own disks and is lost with the slice" "$@" ;;
esac
where=("--zone=$zone")
if [ -n "$project" ]; then where+=("--project=$project"); fi

tpus() { call gcloud compute tpus "$@" "${where[@]}"; }
on() { # on worker(s) $1 the command $2
    tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}
state() { # of the queued resource; empty if there is none
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
        '--format=value(state.state)' 2> /dev/null || true
}

create() {
    local request=(queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type"
        "--runtime-version=$version")
    if $spot; then request+=(--spot); fi
    tpus "${request[@]}" || exit
    if $dry_run; then return; fi
    local now
    while now=$(state) && [ "$now" != ACTIVE ]; do
        case $now in
            FAILED | SUSPENDED) say "the request for $name is $now"; return 1 ;;
        esac
        say "waiting for $name: ${now:-requested}"
        sleep "$poll_seconds"
    done
}

# What mounts $bucket, which is set before it, at /mnt/bucket on a worker.
# shellcheck disable=SC2016  # expanded there
{
    mount='set -e; at=/mnt/bucket; if mountpoint -q $at; then exit 0; fi; '
    # A new VM updates itself at first, and packages are locked meanwhile.
    mount+='apt="sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"; '
    mount+='if ! command -v gcsfuse > /dev/null; then package=gcsfuse; '
    mount+='if [ -f gcsfuse.deb ]; then package=./gcsfuse.deb; fi; '
    mount+='$apt update || true; $apt install -y $package || { '
    mount+='echo "$(hostname): there is no gcsfuse and none to install: give --gcsfuse_deb=FILE" >&2; '
    mount+='exit 1; }; fi; '
    # A mount whose gcsfuse has died is no mount point any more, but is still in the way.
    mount+='sudo umount -l $at 2> /dev/null || true; '
    mount+='sudo mkdir -p $at; sudo chown "$(id -u):$(id -g)" $at; '
    # Orbax renames folders; in a bucket without real ones that needs the limit.
    mount+='gcsfuse --implicit-dirs --rename-dir-limit=200000 $bucket $at'
}
mount_bucket() { # on all workers, if there is one to mount
    [ -z "$bucket" ] || on all "bucket=$bucket; $mount"
}

setup() {
    local archive root
    archive=/tmp/twelve_in_one.tgz
    $dry_run || archive=$(mktemp)
    root=$(cd "$(dirname "$0")/.." && pwd)
    local pack=(tar -czf "$archive" --exclude=__pycache__ -C "$root"
        twelve_in_one configs launch pyproject.toml setup.py requirements.txt README.md LICENSE)
    if $dry_run; then printf '%q ' "${pack[@]}" && echo; else "${pack[@]}"; fi
    tpus tpu-vm scp "$archive" "$name:twelve_in_one.tgz" --worker=all
    $dry_run || rm -f "$archive"
    if [ -n "$gcsfuse_deb" ]; then
        tpus tpu-vm scp "$gcsfuse_deb" "$name:gcsfuse.deb" --worker=all
    fi
    # The images' own Python may be older than ours: uv brings one.
    # shellcheck disable=SC2016  # expanded there
    on all 'set -e; mkdir -p twelve_in_one; tar -xzf twelve_in_one.tgz -C twelve_in_one; cd twelve_in_one; export PATH="$HOME/.local/bin:$PATH"; command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh; [ -d .venv ] || uv venv --quiet --python 3.12 .venv; uv pip install --quiet --python .venv/bin/python -e ".[tpu,data]"; touch .venv/installed' && mount_bucket
}

run() {
    local inner
    # Again, because a worker that was restarted for maintenance is set up but has lost its mount.
    mount_bucket || return
    # The process's own number is kept, not the shell's, so that `stop` reaches it.
    inner="TWELVE_IN_ONE_STOPPED_EXIT_CODE=75 $(printf '%q ' "${training[@]}")>> run.log 2>&1 & echo \$! > run.pid; wait \$!; echo \$? > run.exit"
    on all "cd twelve_in_one && if [ -f run.pid ] && kill -0 \$(cat run.pid) 2> /dev/null; then echo already running; else rm -f run.exit run.pid; export PATH=\$PWD/.venv/bin:\$PATH; nohup setsid bash -c $(printf '%q' "$inner") > /dev/null 2>&1 < /dev/null & fi"
}

# Of the run on a worker: running, its exit code, or new where none was started.
# shellcheck disable=SC2016
outcome='cd twelve_in_one 2> /dev/null && [ -f .venv/installed ] || { echo empty; exit 0; }; if [ -f run.exit ]; then cat run.exit; elif [ -f run.pid ] && kill -0 $(cat run.pid) 2> /dev/null; then echo running; else echo new; fi'

train() {
    if $dry_run; then
        create && setup && run
        echo "# then, every $poll_seconds s until the run is finished:"
        tpus queued-resources describe "$name" '--format=value(state.state)'
        on 0 "$outcome"
        echo "# and after a preemption, before all of the above:"
        tpus queued-resources delete "$name" --force --quiet
        return
    fi
    local now result
    while true; do
        now=$(state)
        case $now in
            ACTIVE)
                result=$(on 0 "$outcome" 2> /dev/null | tr -d '\r' | tail -n 1) || result=''
                case $result in
                    0) say "the run is finished"; return 0 ;;
                    running) ;;
                    empty) { setup && run; } || failed "setting up" ;;
                    new | 75) say "starting the run"; run || failed "starting the run" ;;
                    [1-9]*) failed "the run (exit code $result, see logs)"; run || true ;;
                    *) say "worker 0 does not answer" ;;
                esac
                ;;
            '') create || true ;;
            FAILED | SUSPENDED)
                say "$name is $now (preempted?): asking for another"
                tpus queued-resources delete "$name" --force --quiet
                ;;
            *) say "$name is $now" ;;
        esac
        sleep "$poll_seconds"
    done
}
failures=0
failed() { # counts a failure of $1, and ends everything when there are too many
    failures=$((failures + 1))
    say "$1 failed, $failures of at most $((max_restarts + 1)) times"
    [ "$failures" -le "$max_restarts" ] || exit 1
}

case $action in
    status)
        tpus queued-resources describe "$name" '--format=value(state.state)'
        on all "$outcome"
        ;;
    logs) on "$worker" 'tail -n 100 -F twelve_in_one/run.log' ;;
    # shellcheck disable=SC2016
    stop) on all 'kill -TERM $(cat twelve_in_one/run.pid)' ;;
    delete) tpus queued-resources delete "$name" --force --quiet ;;
    *) "$action" ;;
esac
