#!/usr/bin/env bash
# Throughput against ranks or nodes, strong (the global batch stays) and weak (the batch of a rank stays): a table
# (scaling.csv) and a picture (scaling.png) with samples/s, efficiency and where a step's time goes. In an allocation
# of Slurm (sbatch, salloc) or on the machine it is started on:
#   bench/scaling.sh models/lenet/mnist.yaml [--by ranks|nodes] [--counts "1 2 4"] [--rounds 3] [--out DIR] [key=value ...]
#   sbatch -N 8 --ntasks-per-node=4 bench/scaling.sh models/imagenet/resnet50.yaml --by nodes
# Without --counts: 1, 2, 4 ... to all that there are. Every round runs all counts, so that all see the same machine;
# medians are taken over rounds. Training steps are on made-up data: bench step.
set -eu
die() { echo "bench/scaling.sh: $*" >&2; exit 2; }
by='' counts='' rounds=3 out=. job='' keys=()
while [ $# -gt 0 ]; do
    case $1 in
        --by|--counts|--rounds|--out) [ $# -gt 1 ] || die "$1 takes a value"; declare "${1#--}=$2"; shift ;;
        --help|-h) sed -n '2,8p' "$0" | cut -c3-; exit 0 ;;
        -*) die "unknown option $1; see --help" ;;
        *=*) keys+=("$1") ;;
        *) [ -z "$job" ] || die "one job file is enough"; job=$1 ;;
    esac
    shift
done
[ -n "$job" ] || die "no job file given; see --help"
[ -r "$job" ] || die "$job cannot be read"
# sbatch runs a copy of this script: the folder it was submitted from counts.
root=$(cd "$(dirname "$0")/.." && pwd)
[ -r "$root/bench/scaling.py" ] || root=${SLURM_SUBMIT_DIR:-$PWD}
paceline=${PACELINE:-$root/build/release/paceline}
[ -x "$paceline" ] || die "$paceline is not built; run jobs/quickstart.sh or set PACELINE"
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
nodes=${SLURM_JOB_NUM_NODES:-1} per_node=${SLURM_NTASKS_PER_NODE:-$(nproc)}
per_node=${per_node%%(*}
[ -n "$by" ] || { [ "$nodes" -gt 1 ] && by=nodes || by=ranks; }
case $by in
    nodes) most=$nodes ;;
    ranks) most=$((nodes * per_node)) ;;
    *) die "--by $by: ranks or nodes" ;;
esac
[ -n "$counts" ] || for ((n = 1; n <= most; n *= 2)); do counts+="$n "; done
mkdir -p "$out"
raw=$out/scaling.jsonl
: >"$raw" || die "$raw cannot be written"
[ -n "${OMP_NUM_THREADS:-}" ] || [[ " ${keys[*]:-} " == *train.threads=* ]] || keys+=(train.threads=$(($(nproc) / per_node > 0 ? $(nproc) / per_node : 1)))

launch() { # launch COUNT COMMAND...
    if [ "$by" = nodes ]; then
        mpirun -n $(($1 * per_node)) --map-by "ppr:$per_node:node" --bind-to none "${@:2}"
    else
        mpirun -n "$1" --oversubscribe --bind-to none "${@:2}"
    fi
}
smallest=${counts%% *} batch=''
for k in ${keys[@]+"${keys[@]}"}; do
    case $k in
        train.batch=*) batch=${k#*=} ;;
        train.global_batch=*) die "give train.batch: the global batches follow from it" ;;
    esac
done
if [ -z "$batch" ]; then # the job's
    line=$(launch "$smallest" "$paceline" bench step "$job" "${keys[@]}" --steps 1 --rounds 1) || exit $?
    batch=$(sed -E 's/.*"batch": ([0-9]+).*/\1/' <<<"$line")
fi
unit=1
[ "$by" = nodes ] && unit=$per_node
for ((round = 1; round <= rounds; round++)); do
    for n in $counts; do
        for mode in weak strong; do
            size=train.batch=$batch
            [ $mode = strong ] && size=train.global_batch=$((batch * smallest * unit))
            [ $mode = strong ] && [ $((batch * smallest)) -lt "$n" ] && continue # less than a sample a rank
            echo "round $round of $rounds: $n $by, $mode" >&2
            line=$(launch "$n" "$paceline" bench step "$job" "${keys[@]}" "$size" --rounds 3) || exit $?
            printf '{"mode": "%s", "count": %d, "by": "%s", "bench": %s}\n' $mode "$n" "$by" "$line" >>"$raw"
        done
    done
done
"$root/bench/scaling.py" "$raw" --out "$out"
