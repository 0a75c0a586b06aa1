#!/usr/bin/env bash
# Starts a run that may lose ranks (sync.backup_workers over exchange.transport tcp or verbs): instead of mpirun,
#   jobs/launch.sh -n 4 [options of mpirun] JOB.yaml [key=value ...]
#   jobs/launch.sh -n 4 [options of mpirun] COMMAND ... train JOB.yaml [key=value ...]    with a program, a wrapper of your own
# In Slurm inside of sbatch as well; srun itself cannot: its PMIx plugin ends the step with the first rank that is lost,
# also with --kill-on-bad-exit=0 --no-kill (Slurm 22.05). Tried with Open MPI 4.1; MPICH's way is known but not tried.
# mpirun goes on when a rank is lost, but its status then means nothing: the run writes how it ended to report.dir/exit.json,
# and the code in it is this script's exit code; 5 where there is none, because no rank lived, or was among most, to write it;
# 2 where mpirun itself refused to start the run.
# INT, TERM, HUP and USR1 become USR1 to all ranks, which checkpoint and stop (75); a second INT or TERM ends them at once.
# What has not ended PACELINE_LINGER seconds (20) after the run, a stopped rank or mpirun itself, is ended. A rank that is lost
# before the run has begun is waited for by the others inside of MPI: the run is ended as well, with 5, three times as long after it.
set -u
die() { echo "jobs/launch.sh: $*" >&2; exit 2; }
case ${1:-} in -h|--help) sed -n '2,/^[^#]/s/^# //p' "$0"; exit 0 ;; esac
root=$(cd "$(dirname "$0")/.." && pwd)
[ -d "$root/jobs" ] || root=${SLURM_SUBMIT_DIR:-$PWD} # sbatch runs a copy of this script
paceline=${PACELINE:-$root/build/release/paceline}
[ -n "${PACELINE:-}" ] || [ -x "$paceline" ] || paceline=$(command -v paceline || echo "$paceline") # installed
linger=${PACELINE_LINGER:-20}
case $linger in '' | *[!0-9]*) die "PACELINE_LINGER is a number of seconds, not $linger" ;; esac

launcher=(mpirun)
options=()
while [ $# -gt 0 ]; do
    case $1 in *.yaml|*.yml) break ;; esac
    options+=("$1"); shift
done
[ $# -gt 0 ] || die "no job file (JOB.yaml) given; see --help"
[ ${#options[@]} -gt 0 ] && [ "${options[-1]}" = train ] || options+=("$paceline" train)
command -v "$paceline" >/dev/null || die "$paceline is not built; run jobs/quickstart.sh or set PACELINE"
command -v mpirun >/dev/null || die "there is no mpirun here"

dir=$("$paceline" inspect "$1" --key report.dir "${@:2}") || exit $?
[ "$dir" != none ] || die "report.dir is needed: the run writes there how it ended"
outcome=$dir/exit.json
export PACELINE_RUN=$(hostname)-$$-$(date +%s) # the run writes it there: another that is refused in the same directory says nothing of this one
said() {
    [ ! -e "$dir/exit-$PACELINE_RUN.json" ] || outcome=$dir/exit-$PACELINE_RUN.json # another has begun there since
    grep -qF -- "\"run\": \"$PACELINE_RUN\"" "$outcome" 2>/dev/null
}
mkdir -p -- "$dir" && rm -f -- "$outcome" || exit 6
reported() { wc -c 2>/dev/null <"$dir/metrics.jsonl"; } # opened: NFS then asks its server how long it is
before=$(reported)
ends=$(mktemp) || exit 6
trap 'rm -f -- "$ends" "$dir/exit-$PACELINE_RUN.json"' EXIT

# Each launcher's way to leave the other ranks alone when one ends.
export PACELINE_RECOVERY=1
case $(mpirun --version 2>&1) in
    *"Open MPI"*|*OpenRTE*)
        launcher+=(--enable-recovery -x PACELINE_RECOVERY -x PACELINE_RUN --mca state_base_verbose 1)
        [ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ;;
    *HYDRA*) launcher+=(-disable-auto-cleanup) ;;
    *) die "this mpirun is neither Open MPI's nor MPICH's: it is not known how to make it go on without a lost rank" ;;
esac

# What Open MPI says of itself when a rank is lost, or ends without MPI_Finalize as those must that lost a peer; and what becomes
# of each rank, of which those that ended badly are kept.
state='^\[[^]]*\] \[\[[0-9]+,[0-9]+\],[0-9]+\] ACTIVATE'
badly='ABORTED BY SIGNAL|EXITED WITH NON-ZERO STATUS|FAILED TO START|COMMUNICATION FAILURE|NORMALLY TERMINATED' # the last by itself: before the others
exec 3> >(trap '' INT TERM HUP USR1; exec sed -u -nE "
    /^\[[^]]*\] PMIX ERROR: .* in file .* at line [0-9]+\$/d
    /,0\],0\] ACTIVATE PROC .* STATE ($badly) AT /w $ends
    /$state (PROC|JOB) /d
    p" >&2)
filter=$!
set -m # a group of its own: Ctrl-C comes here alone
"${launcher[@]}" "${options[@]}" "$@" </dev/null 2>&3 3>&- &
pid=$!
exec 3>&-

asked=0
stop() {
    asked=$((asked + 1))
    if [ $asked -gt 1 ] && [ "$1" != USR1 ]; then end_rest; else kill -USR1 $pid 2>/dev/null; fi
}
for s in INT TERM HUP USR1; do trap "stop $s" $s; done
gone() { ! kill -0 $pid 2>/dev/null; }
until_gone() { local i; for ((i = 0; i < 5 * $1; i++)); do gone && return 0; sleep 0.2; done; return 1; }
# The launcher ends its ranks, stopped ones too; where it cannot, those that are here.
end_rest() {
    kill -TERM $pid 2>/dev/null
    until_gone 10 || kill -KILL $(pgrep -P $pid) $pid 2>/dev/null
}

begun() { said || [ "$(reported)" != "$before" ]; }
lost_before() { # ranks ended badly, and long after that the run has not begun
    [ -s "$ends" ] || return 1
    local i
    for ((i = 0; i < 15 * linger; i++)); do ! gone && ! begun || return 1; sleep 0.2; done
}
whom() { # "rank 2 (aborted by signal), the launcher's daemon 1 (communication failure)"
    sed -nE 's/.*PROC \[\[[0-9]+,0\],([0-9]+)\] STATE (.*) AT .*/the launcher'"'"'s daemon \1 (\L\2)/p; s/.*PROC \[\[[0-9]+,[0-9]+\],([0-9]+)\] STATE (.*) AT .*/rank \1 (\L\2)/p' "$ends" |
        awk -F '(' '!seen[$1]++' | head -n 8 | paste -sd , | sed 's/,/, /g'
}
early=
while ! gone && ! said; do
    if ! begun && lost_before; then early=$(whom); break; fi
    sleep 0.2
done
if [ -n "$early" ]; then
    echo "jobs/launch.sh: lost before the run began, for which the others wait: $early; all are ended now" >&2
    end_rest
elif ! until_gone "$linger"; then
    echo "jobs/launch.sh: the run ended $linger s ago, a rank or mpirun did not: ended now" >&2
    end_rest
fi
wait $pid
status=$?
killed() { [ $status -gt 128 ] && [ $status -le 192 ]; } # mpirun itself; above are refusals of its own, as 255
for ((i = 0; i < 10; i++)); do kill -0 $filter 2>/dev/null || break; sleep 0.1; done
for ((i = 0; i < 15; i++)); do [ -n "$early" ] || said && break; sleep 0.2; done # a shared file system shows it late
code=$(said && sed -nE 's/.*"code": ([0-9]+).*/\1/p' "$outcome")
if [ -z "$code" ] && [ -n "$early" ]; then
    code=5
elif [ -z "$code" ] && [ $status -ne 0 ] && ! killed && [ $asked -eq 0 ] && [ "$(reported)" = "$before" ]; then # of ranks that it started its status tells nothing
    echo "jobs/launch.sh: mpirun did not start the run (it ended with $status): what it says of that stands above" >&2
    code=2
elif [ -z "$code" ] && [ -s "$ends" ] && ! begun; then
    echo "jobs/launch.sh: lost before the run began: $(whom); no other rank is left" >&2
    code=5
elif [ -z "$code" ]; then
    echo "jobs/launch.sh: no $outcome: no rank lived to write it, or none was on the side of most (mpirun ended with $status)" >&2
    code=5
fi
exit "$code"
