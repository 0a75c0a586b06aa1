#!/usr/bin/env bash
# Local SGD as in SparkNet's figure: how long a job takes to an accuracy, against the steps between averagings (sync.tau)
# and the number of ranks, over a slow link. Hosts are network namespaces on this machine with a rank of one thread each
# (root, iproute2), their links shaped to --rate; tau 0 stands for synchronous SGD, and for one rank alone.
#   bench/local_sgd.sh TRAIN.h5 TEST.h5 [--job models/lenet/mnist.yaml] [--ranks "1 2 4"] [--taus "0 1 5 10 50"]
#     [--rate 100mbit] [--accuracy 0.99] [--steps 4000] [--every 50] [--out DIR] [key=value ...]
# Batch, learning rate and sequence of samples of a step are the same for every tau; --steps is the most that a run may
# take, --every how often it is evaluated. Writes local_sgd.jsonl, .json, .txt and, with matplotlib, .png to DIR (.).
# On fewer cores than ranks the ranks take turns: where a link is shaped, waiting for it is what differs by tau.
set -eu
die() { echo "bench/local_sgd.sh: $*" >&2; exit 2; }
job=models/lenet/mnist.yaml ranks="1 2 4" taus="0 1 5 10 50" rate=100mbit accuracy=0.99 steps=4000 every=50 out=. files=() keys=()
while [ $# -gt 0 ]; do
    case $1 in
        --job|--ranks|--taus|--rate|--accuracy|--steps|--every|--out) [ $# -gt 1 ] || die "$1 takes a value"; declare "${1#--}=$2"; shift ;;
        --help|-h) sed -n '2,9p' "$0" | cut -c3-; exit 0 ;;
        -*) die "unknown option $1; see --help" ;;
        *=*) keys+=("$1") ;;
        *) files+=("$1") ;;
    esac
    shift
done
[ ${#files[@]} -eq 2 ] || die "wanted a file to train on and one to test on; see --help"
for f in "${files[@]}"; do [ -r "$f" ] || die "$f cannot be read"; done
train=$(realpath "${files[0]}") test=$(realpath "${files[1]}")
mkdir -p "$out" && out=$(realpath "$out") && : >"$out/local_sgd.jsonl" || die "$out cannot be written"
[ ! -r "$job" ] || job=$(realpath "$job")
cd "$(dirname "$0")/.."
[ -r "$job" ] || die "$job cannot be read"
paceline=${PACELINE:-$PWD/build/release/paceline}
[ -x "$paceline" ] || die "$paceline is not built; run jobs/quickstart.sh or set PACELINE"
. tests/network/hosts.sh
why=$(hosts_possible) || die "$why"
PL_TMPDIR=$(mktemp -d)
export PL_TMPDIR OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
trap 'hosts_down || :; rm -rf "$PL_TMPDIR"' EXIT
for n in $ranks; do
    hosts_up "$n" "$rate"
    all=$taus
    [ "$n" -gt 1 ] || all=0
    for tau in $all; do
        sync=(sync.kind=local_sgd sync.tau=$tau)
        [ "$tau" -gt 0 ] || sync=(sync.kind=allreduce)
        echo "$n ranks, tau $tau" >&2
        dir=$PL_TMPDIR/run-$n-$tau
        mpirun_on "$n" 1 "$paceline" train "$job" data.train.file="$train" data.test.file="$test" train.threads=1 exchange.transport=tcp \
            optimizer.schedule.kind=fixed optimizer.lr=0.05 train.steps="$steps" train.eval_every="$every steps" train.stop.above="$accuracy" \
            ${keys[@]+"${keys[@]}"} "${sync[@]}" checkpoint.dir=none report.dir="$dir" report.every="1 steps" >"$PL_TMPDIR/log" 2>&1 ||
            { tail -n 5 "$PL_TMPDIR/log" >&2; exit 1; }
        python3 bench/local_sgd.py run "$dir/metrics.jsonl" "$n" "$tau" "$accuracy" "$rate" >>"$out/local_sgd.jsonl"
        tail -n 1 "$out/local_sgd.jsonl" >&2
    done
    hosts_down
done
python3 bench/local_sgd.py table "$out"
