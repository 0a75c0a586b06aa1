#!/usr/bin/env bash
# The tables of the systems before us in our terms: ours beside theirs, each with the hardware it ran on.
#   bench/published.sh --data DIR [--only mnist,cifar10,tau,backup,nullstep] [--out DIR] [--quick] [--rounds 3]
#     [--ranks "1 5"] [--tau-ranks "1 2 4"] [--taus "1 10 50"] [--local-sgd local_sgd.json]
# mnist: LeNet at 1000, 2000, 5000 and 10000 iterations, on more than one rank synchronously and by local SGD (SparkNet, DL4J,
# CaffeOnSpark, TensorFlow on Spark). cifar10: ResNet-20 by Adam to 85 % (Bitfusion). tau: bench/local_sgd.sh (root), its times over
# one rank's, or what it wrote before as --local-sgd (SparkNet). backup: bench/stragglers.sh on 8 ranks and bench/simulate on
# 50 + b, b from 0 to 5 (TensorFlow). nullstep: paceline bench nullstep (TensorFlow). DIR of --data holds mnist-train.h5,
# mnist-test.h5, cifar10-train.h5, cifar10-test.h5 (data/scripts). An hour and a half on two cores; --quick some minutes, on data
# that it makes up. Each table is printed when its part ends and written to PART.md in --out (runs/published), with published.md and
# published.json of all. A part that fails does not stop the others. What has ended in --out with the same keys is taken as it is.
# Their figures and where they are from: bench/published_figures.json.
set -u
die() { echo "bench/published.sh: $*" >&2; exit 2; }
say() { echo "bench/published.sh: $*" >&2; }
only=mnist,cifar10,tau,backup,nullstep data='' out=runs/published quick=0 rounds=3 ranks="1 5" tau_ranks="1 2 4" taus="1 10 50" local_sgd=''
while [ $# -gt 0 ]; do
    case $1 in
        --only|--data|--out|--rounds|--ranks|--taus) [ $# -gt 1 ] || die "$1 takes a value"; declare "${1#--}=$2"; shift ;;
        --tau-ranks) [ $# -gt 1 ] || die "$1 takes a value"; tau_ranks=$2; shift ;;
        --local-sgd) [ $# -gt 1 ] || die "$1 takes a value"; local_sgd=$2; shift ;;
        --quick) quick=1 ;;
        --help|-h) sed -n '2,12p' "$0" | cut -c3-; exit 0 ;;
        *) die "unknown option $1; see --help" ;;
    esac
    shift
done
for part in ${only//,/ }; do
    case $part in mnist|cifar10|tau|backup|nullstep) ;; *) die "--only $part: mnist, cifar10, tau, backup or nullstep" ;; esac
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "--rounds $rounds: wanted a number"
[[ "$ranks $tau_ranks $taus" =~ ^[0-9\ ]+$ ]] || die "--ranks, --tau-ranks and --taus take numbers with spaces between them"
[ -z "$local_sgd" ] || { [ -r "$local_sgd" ] && local_sgd=$(realpath "$local_sgd"); } || die "$local_sgd cannot be read"
[ $quick = 1 ] || [ -n "$data" ] || case ,$only, in *,mnist,*|*,cifar10,*) die "no --data; see --help, or try --quick" ;; esac
mkdir -p "$out" && out=$(realpath "$out") && [ -w "$out" ] || die "$out cannot be written"
[ -z "$data" ] || data=$(realpath "$data")
cd "$(dirname "$0")/.." || exit 1
paceline=${PACELINE:-$PWD/build/release/paceline}
[ -x "$paceline" ] || die "$paceline is not built; run jobs/quickstart.sh or set PACELINE"
mpi=(mpirun)
[ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
case $(mpirun --version 2>&1) in *"Open MPI"*) mpi+=(--oversubscribe --bind-to none) ;; esac

# What the parts take, at length and in a minute.
mnist=(train.steps=10000 train.eval_every="1000 steps") iterations="1000 2000 5000 10000"
cifar_job=models/cifar10/resnet20.yaml cifar=(train.epochs=14 train.batch=64 optimizer.lr=0.005 optimizer.weight_decay=0)
tau_keys=(--steps 1500) stragglers=(--steps 100) simulated=2000 null_ranks="1 2 4" null_cases="scalar 100MB 1GB sparse" null_keys=()
if [ $quick = 1 ]; then
    data=$out/made-up ranks="1 2" tau_ranks="1 2" taus="1 10" rounds=1
    mnist=(train.steps=200 train.eval_every="100 steps") iterations="100 200"
    cifar_job=models/cifar10/quick.yaml cifar=(train.steps=20 train.eval_every="10 steps" optimizer.lr=0.001)
    tau_keys=(--steps 200 --every 50 --accuracy 0.85) stragglers=(--steps 10) simulated=50 null_ranks="1 2" null_cases="scalar sparse" null_keys=(--rows 100 --steps 50)
fi

once() { # once DIR COMMAND...: unless the same command has ended well with DIR
    local dir=$1; shift
    [ "$(cat "$dir/command" 2>/dev/null)" != "$*" ] || { say "${dir#"$out"/} is there already"; return; }
    rm -rf "$dir" && mkdir -p "$dir" || return
    say "${dir#"$out"/}"
    { time "$@" >"$dir/log" 2>&1; } 2>"$dir/times" || { tail -n 5 "$dir/log" >&2; return 1; }
    printf '%s\n' "$*" >"$dir/command"
}
TIMEFORMAT='%R %U %S' # of once: elapsed, processor

train() { # train DIR RANKS JOB KEY...
    once "$1" "${mpi[@]}" -n "$2" "$paceline" train "$3" train.threads=1 "${@:4}" checkpoint.dir=none report.every="1 steps" report.dir="$1"
}

sets() { # sets NAME: the keys of its data in `files`
    files=(data.train.file="$data/$1-train.h5" data.test.file="$data/$1-test.h5")
    [ $quick = 0 ] || [ -r "$data/cifar10-test.h5" ] || {
        mkdir -p "$data" && /usr/bin/python3 data/scripts/make_digits.py --out-dir "$data" --force >"$data/log" 2>&1 &&
            /usr/bin/python3 bench/published.py sets "$data"; } || { say "no data could be made"; tail -n 3 "$data/log" >&2; return 1; }
    [ -r "$data/$1-train.h5" ] && [ -r "$data/$1-test.h5" ] || { say "$data has no $1-train.h5 and $1-test.h5"; return 1; }
}

# Caffe's schedule for LeNet does not know the end of the run, so that one run tells the accuracy at all of them.
part_mnist() {
    local n tau files inv=(optimizer.lr=0.01 optimizer.schedule.kind=inv optimizer.schedule.gamma=0.0001 optimizer.schedule.power=0.75)
    sets mnist || return
    for n in $ranks; do
        for tau in 0 50; do
            [ "$n" -gt 1 ] || [ $tau = 0 ] || continue
            local sync=(sync.kind=allreduce)
            [ $tau = 0 ] || sync=(sync.kind=local_sgd sync.tau=$tau)
            train "$out/mnist/$n-$tau" "$n" models/lenet/mnist.yaml "${files[@]}" "${mnist[@]}" "${inv[@]}" "${sync[@]}" || return
        done
    done
    table mnist "$ranks" "$iterations"
}

part_cifar10() {
    local files
    sets cifar10 || return
    train "$out/cifar10/1" 1 "$cifar_job" "${files[@]}" optimizer.kind=adam train.stop.above=0.85 "${cifar[@]}" || return
    table cifar10
}

part_tau() {
    local files
    [ -n "$local_sgd" ] || { sets mnist && once "$out/tau" bench/local_sgd.sh "$data/mnist-train.h5" "$data/mnist-test.h5" \
        --ranks "$tau_ranks" --taus "$taus" "${tau_keys[@]}" --out "$out/tau"; } || return
    table tau "${local_sgd:-$out/tau/local_sgd.json}"
}

part_backup() {
    local tail
    once "$out/backup/measured" bench/stragglers.sh --ranks 8 --backup "0 1 2 3 4 5" --compute 100 --delay tail --ms 25 "${stragglers[@]}" --rounds "$rounds" \
        --out "$out/backup/measured" || return
    for tail in pareto:25:1.5 exponential:15; do # as measured; one by which 3 of 53 gain what TensorFlow's gained
        once "$out/backup/${tail%%:*}" bench/simulate --compute constant:100+$tail --ranks 50,51,52,53,54,55 --backup 0,1,2,3,4,5 --mb 1.72 \
            --steps $simulated --out "$out/backup/${tail%%:*}" || return
    done
    table backup
}

part_nullstep() {
    local n what round dir
    for round in $(seq "$rounds"); do
        for n in $null_ranks; do
            for what in $null_cases; do
                dir=$out/nullstep/$n-$what-$round
                once "$dir" "${mpi[@]}" -n "$n" "$paceline" bench nullstep --case "$what" ${null_keys[@]+"${null_keys[@]}"} --json="$dir/nullstep.jsonl" || return
            done
        done
    done
    table nullstep
}

table() { python3 bench/published.py table "$out" "$@"; }

failed=''
for part in ${only//,/ }; do
    part_$part || { say "$part: no table"; failed+=" $part"; }
done
[ -z "$failed" ] || { say "without$failed; what has ended is in $out"; exit 1; }
