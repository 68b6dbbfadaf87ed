#!/usr/bin/env bash
# Runs a command as several processes on this machine that find each other, on CPU or with one GPU
# each: what a cluster does, to try it out.
#
#   launch/local.sh [OPTIONS] python -m twelve_in_one.train --config=world --workdir=DIR
#
#   --num_processes=N     how many (2)
#   --platform=cpu|gpu    gpu gives process i the i-th of $CUDA_VISIBLE_DEVICES or of all (cpu)
#   --port=P              of process 0's service (a free one)
#   --dry_run             only print the commands
#
# Lines of output begin with the process they are from. SIGINT and SIGTERM ask all processes to save
# and stop, a second one ends them at once. When a process fails the others are ended, and the exit
# code is that of the first that failed.
set -euo pipefail
. "$(dirname "$0")/common.sh"

num_processes=2 platform=cpu port='' bare_command=true
take_options 'num_processes platform port' '' "$@"
set -- ${rest[@]+"${rest[@]}"}
[ $# -gt 0 ] || { usage >&2; exit 2; }
[[ $num_processes =~ ^[1-9][0-9]*$ ]] || fail "--num_processes must be at least 1, got $num_processes"

gpus=()
case $platform in
    cpu) ;;
    gpu)
        # shellcheck disable=SC2207  # numbers and ids without blanks
        gpus=($(if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then tr , '\n' <<< "$CUDA_VISIBLE_DEVICES"
            else nvidia-smi --query-gpu=index --format=csv,noheader; fi))
        [ "${#gpus[@]}" -ge "$num_processes" ] ||
            fail "$num_processes processes need as many GPUs, there are ${#gpus[@]}"
        ;;
    *) fail "--platform must be cpu or gpu, got $platform" ;;
esac
while [ -z "$port" ]; do # below the ports that Linux gives to outgoing connections
    port=$((20000 + RANDOM % 10000))
    if (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then port=''; fi
done

settings() { # of process $1
    echo "TWELVE_IN_ONE_COORDINATOR=127.0.0.1:$port"
    echo "TWELVE_IN_ONE_NUM_PROCESSES=$num_processes"
    echo "TWELVE_IN_ONE_PROCESS_ID=$1"
    if [ "$platform" = cpu ]; then echo JAX_PLATFORMS=cpu; else echo "CUDA_VISIBLE_DEVICES=${gpus[$1]}"; fi
}

if $dry_run; then
    for ((i = 0; i < num_processes; i++)); do
        # shellcheck disable=SC2046
        printf '[%d] env' "$i" && printf ' %q' $(settings "$i") "$@" && echo
    done
    exit
fi

# The script opens both ends of a pipe itself: were they left to the processes to open, one that is
# ended before it did would leave its reader waiting.
pipe() { # whose end to read is then fd 4, and that to write fd 5
    local folder
    folder=$(mktemp -d)
    mkfifo "$folder/pipe"
    exec 3<> "$folder/pipe" 4< "$folder/pipe" 5> "$folder/pipe" 3>&-
    rm -r "$folder"
}
prefix() { # lines of the input with process $1 before them; outlives what ends the process
    trap '' INT TERM
    while IFS= read -r line || [ -n "$line" ]; do printf '[%s] %s\n' "$1" "$line"; done
}
pids=() readers=()
stop() { # with signal $1
    for pid in ${pids[@]+"${pids[@]}"}; do
        if [ -n "$pid" ]; then kill "-$1" "$pid" 2> /dev/null || true; fi
    done
}
trap 'stop TERM' INT TERM
for ((i = 0; i < num_processes; i++)); do
    pipe
    exec 6>&5
    prefix "$i" <&4 5>&- 6>&- & readers+=($!)
    pipe
    prefix "$i" <&4 5>&- 6>&- >&2 & readers+=($!)
    # shellcheck disable=SC2046
    env $(settings "$i") "$@" >&6 2>&5 4<&- 5>&- 6>&- & pids+=($!)
    exec 4<&- 5>&- 6>&-
done

# A run that was stopped and has saved may say so with a code of its own; others do as well.
stopped=${TWELVE_IN_ONE_STOPPED_EXIT_CODE:-0}
status=0 left=$num_processes deadline=''
while [ "$left" -gt 0 ]; do
    for ((i = 0; i < num_processes; i++)); do
        pid=${pids[$i]}
        if [ -z "$pid" ] || kill -0 "$pid" 2> /dev/null; then continue; fi
        code=0
        wait "$pid" || code=$?
        pids[i]='' left=$((left - 1))
        if [ "$code" -eq 0 ] || [ "$status" -ne 0 ]; then continue; fi
        status=$code
        if [ "$code" -ne "$stopped" ]; then
            echo "launch/local.sh: process $i failed with exit code $code" >&2
            stop TERM
            deadline=$((SECONDS + 10))
        fi
    done
    if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then stop KILL; fi
    if [ "$left" -gt 0 ]; then sleep 0.1; fi
done
for reader in "${readers[@]}"; do
    while kill -0 "$reader" 2> /dev/null; do sleep 0.02; done
done
exit "$status"
