#!/usr/bin/env bash
# Runs a command with allocator settings that suit JAX on CPU under Linux (glibc): freed memory stays
# in the process and huge pages are asked for, so that large buffers are not faulted in anew at each
# step. Costs resident memory; has no effect elsewhere.
#
#   launch/cpu.sh python -m twelve_in_one.train --config=world --workdir=workdir/world
set -euo pipefail
if [ $# -eq 0 ] || [ "$1" = --help ]; then
    sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p;}' "$0"
    exit $(($# == 0))
fi
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1099511627776
export GLIBC_TUNABLES="${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.hugetlb=1"
exec "$@"
