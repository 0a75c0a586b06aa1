#!/usr/bin/env bash
# What backup workers are worth: step times and the time to a loss against sync.backup_workers, with ranks that are late.
#   bench/stragglers.sh [--ranks 4] [--backup "0 1 2"] [--delay none|one|tail] [--ms MS] [--shape 1.5] [--steps 500] [--rounds 5]
#     [--compute 20] [--loss L] [--out DIR] [--job JOB.yaml] [key=value ...]
# one: the last rank sleeps --ms (180) longer in every step; tail: every rank sleeps a Pareto draw of scale --ms (5); none.
# Compute is a sleep of --compute ms, so that ranks do not compete for cores; --compute 0 really computes, and with --loss the
# seconds until the training loss (mean over 20 steps) is below it are told. Each round runs every case, with and without the
# delay, the one of fewest backup workers without delay twice: their ratio (A/A) is what this machine's noise makes of nothing.
# Ratios are medians over rounds. Over tcp unless a key says otherwise. Data is made up (make_digits.py) unless keys name some.
# Writes stragglers.jsonl, .json, .txt and, with matplotlib, .png to DIR (.).
set -eu
die() { echo "bench/stragglers.sh: $*" >&2; exit 2; }
ranks=4 backup="0 1 2" delay=tail ms='' shape=1.5 steps=500 rounds=5 compute=20 loss='' out=. job=models/lenet/mnist.yaml keys=()
while [ $# -gt 0 ]; do
    case $1 in
        --ranks|--backup|--delay|--ms|--shape|--steps|--rounds|--compute|--loss|--out|--job) [ $# -gt 1 ] || die "$1 takes a value"; declare "${1#--}=$2"; shift ;;
        --help|-h) sed -n '2,10p' "$0" | cut -c3-; exit 0 ;;
        *=*) keys+=("$1") ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift
done
case $delay in
    none) late='' ;;
    one) ms=${ms:-180} late="debug.delay={rank: $((ranks - 1)), ms: $ms}" ;;
    tail) ms=${ms:-5} late="debug.delay={distribution: pareto, ms: $ms, shape: $shape}" ;;
    *) die "--delay $delay: none, one or tail" ;;
esac
mkdir -p "$out" && out=$(realpath "$out") && : >"$out/stragglers.jsonl" || die "$out cannot be written"
[ ! -r "$job" ] || job=$(realpath "$job")
cd "$(dirname "$0")/.."
[ -r "$job" ] || die "$job cannot be read"
paceline=${PACELINE:-$PWD/build/release/paceline}
[ -x "$paceline" ] || die "$paceline is not built; run jobs/quickstart.sh or set PACELINE"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mpi=(mpirun)
[ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
case $(mpirun --version 2>&1) in *"Open MPI"*) mpi+=(--oversubscribe --bind-to none) ;; esac
case " ${keys[*]-} " in
    *data.train*) ;;
    *) /usr/bin/python3 data/scripts/make_digits.py --out-dir "$tmp" >/dev/null || die "no data could be made"
       keys+=("data.train.file=$tmp/digits-train.h5" "data.test.file=$tmp/digits-test.h5") ;;
esac
trial=()
[ "$compute" = 0 ] || trial=("debug.compute_ms=$compute")

run() { # name b [key]
    local name=$1 b=$2; shift 2
    rm -rf "$tmp/run"
    "${mpi[@]}" -n "$ranks" "$paceline" train "$job" train.steps="$steps" train.threads=1 train.eval_every=never exchange.transport=tcp \
        ${keys[@]+"${keys[@]}"} ${trial[@]+"${trial[@]}"} ${1+"$@"} sync.backup_workers="$b" checkpoint.dir=none report.dir="$tmp/run" \
        report.every="1 steps" >"$tmp/log" 2>&1 || { tail -n 5 "$tmp/log" >&2; exit 1; }
    python3 bench/stragglers.py run "$tmp/run/metrics.jsonl" "$name" "$b" "$round" "${loss:-0}" >>"$out/stragglers.jsonl"
    tail -n 1 "$out/stragglers.jsonl" >&2
}
for round in $(seq "$rounds"); do
    again=1
    for b in $backup; do
        run plain "$b"
        [ "$again" = 0 ] || run again "$b"
        again=0
        [ -z "$late" ] || run delayed "$b" "$late"
    done
done
python3 bench/stragglers.py table "$out" "$ranks" "${late:-no delay}" "$compute"
