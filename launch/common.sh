# What the scripts of this folder have in common; they read it first.
usage() { sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p;}' "$0"; }
say() { echo "launch/$(basename "$0"): $*" >&2; }
fail() { say "$*"; exit 2; }
call() { if $dry_run; then printf '%q ' "$@" && echo; else "$@"; fi; } # or prints it

dry_run=false

take_action() { # sets $action to the first argument
    if [ $# -eq 0 ]; then usage >&2; exit 2; fi
    if [ "$1" = --help ]; then usage; exit; fi
    action=$1
}

# take_options "NAMES" "FLAGS" ARGUMENTS: sets the variables of options --NAME=VALUE and --FLAG, and
# `rest` to the arguments after --, or from the first that is no option where $bare_command is true.
bare_command=false
take_options() {
    local names=" $1 " flags=" $2 dry_run " option
    local hint=', see --help (the training command follows --)'
    if $bare_command; then hint=', see --help'; fi
    shift 2
    while [ $# -gt 0 ]; do
        option=${1%%=*}
        option=${option#--}
        case $1 in
            --help) usage; exit ;;
            --) shift; break ;;
            --*=*)
                [[ $names == *" $option "* ]] || fail "unknown option $1$hint"
                printf -v "$option" %s "${1#*=}"
                [ "$option" != bucket ] || [[ $bucket =~ ^[a-z0-9][a-z0-9._-]*[a-z0-9]$ ]] ||
                    fail "--bucket must be a bucket's name, without gs:// and folders, got '$bucket'"
                # Such as that of a variable that is not set: must not do without what was asked for.
                [ -n "${!option}" ] || fail "--$option is empty"
                ;;
            --*)
                [[ $flags == *" $option "* ]] || fail "unknown option $1$hint"
                printf -v "$option" true
                ;;
            *) if $bare_command && [[ $1 != -* ]]; then break; fi; fail "unknown option $1$hint" ;;
        esac
        shift
    done
    rest=("$@")
}

# warn_unmounted "WHERE" COMMAND: where what the command saves is, as nothing is mounted.
warn_unmounted() {
    case "${*:2}" in
        */mnt/bucket | */mnt/bucket[/\ ]*)
            say "warning: without --bucket nothing mounts /mnt/bucket: what is saved there is on $1"
            ;;
    esac
}
