#!/usr/bin/env bash
# Downpour SGD: alone it is plain SGD; its warm-up is synchronous SGD; old gradients are dropped; it learns on several ranks,
# and a slow one is handed less; it stops, goes on, and ends in order when something fails or a rank is lost.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job
downpour="sync.kind=downpour"
never="train.eval_every=never"
# faults POINT RANK ACTION: in the third epoch; a rank need not come by each step
faults() { local step all=; for step in 37 38 39 40 41 42 43; do all+="${all:+,}$1@$2@step=$step:$3"; done; echo "$all"; }
ends() { event "$1" end | grep -q -- "$2" || fail "$1: wanted $2 at its end: $(event "$1" end)"; }

# One rank that pushes and fetches in every step: the same bits as without, whatever the optimizer, running statistics too;
# over the end of an epoch, with a schedule, and cut in two.
for kind in sgd momentum adam; do
    for net in net net-bn; do
        how="model=$net.yaml optimizer.kind=$kind optimizer.lr=0.01 optimizer.schedule.kind=poly train.steps=40"
        run 1 plain-$kind-$net $how
        run 1 down-$kind-$net $how $downpour
        compare plain-$kind-$net down-$kind-$net 0 0 exact
    done
done
expect 7 "debug.fault at step" 1 job.yaml $downpour checkpoint.dir=halves report.dir=halves train.steps=40 optimizer.kind=momentum optimizer.lr=0.01 optimizer.schedule.kind=poly optimizer.schedule.total=40 debug.fault=step@step=25:fail checkpoint.every="10 steps"
run 1 halves $downpour train.steps=40 optimizer.kind=momentum optimizer.lr=0.01 optimizer.schedule.kind=poly optimizer.schedule.total=40
resumed halves 20
compare plain-momentum-net halves 0 0 exact
# Steps of its own between, then their sum at the shard: the same way down, but for rounding.
even="data.train.limit=960 optimizer.kind=sgd optimizer.weight_decay=0 train.steps=30 $never"
run 1 each $even
run 1 thirds $even $downpour sync.n_fetch=3 sync.n_push=3
compare each thirds 1e-6 1e-5
run 1 late $even $downpour sync.n_fetch=10 train.steps=10 sync.max_staleness=2
ends late '"staleness": {"0": 1, "1": 1, "2": 1, "3": 7}, "dropped_gradients": 7, "micro_batches": \[10\]'
# What was dropped moved nothing: three steps by the shard, the rest not.
run 1 three $even train.steps=3
compare three late 1e-6 1e-5

# The warm-up is synchronous SGD: of two ranks bit for bit, of more but for the order of the sum.
run 2 sync-2 $never model=net-bn.yaml exchange.transport=mpi exchange.algorithm=ring
run 2 warm-2 $never model=net-bn.yaml $downpour sync.warmup="1000 steps"
compare sync-2 warm-2 0 0 exact
for transport in mpi tcp; do
    run 3 warm-$transport $never $downpour sync.warmup="2 epochs" exchange.transport=$transport train.epochs=2 train.global_batch=190
done
run 3 sync-3 $never train.epochs=2 train.global_batch=190
compare sync-3 warm-mpi 1e-6 1e-5
compare sync-3 warm-tcp 1e-6 1e-5

# It learns, from every sample once an epoch, and evaluates when all are there.
learn="$downpour train.batch=16 train.epochs=8 optimizer.kind=sgd optimizer.lr=0.05 sync.warmup=10"
for n in 3 4; do
    for transport in mpi tcp; do
        run $n learn-$n-$transport $learn exchange.transport=$transport
        ends learn-$n-$transport '"samples": 8000'
        holds "$(number learn-$n-$transport eval accuracy) > 0.9" "accuracy on $n ranks over $transport"
        evals=$(grep -c '"event": "eval"' learn-$n-$transport/metrics.jsonl)
        [ "$evals" = 8 ] || fail "$evals evaluations in 8 epochs"
    done
done
says learn-4-tcp '"sync": "downpour"'
run 3 often $learn sync.n_fetch=3 sync.n_push=2 model=net-bn.yaml
ends often '"samples": 8000'
run 3 slow $learn debug.delay.ms=30 debug.delay.rank=2
shares=$(sed -nE 's/.*"micro_batches": \[([0-9]+), ([0-9]+), ([0-9]+)\].*/\1 \2 \3/p' slow/metrics.jsonl)
set -- $shares
[ $# -eq 3 ] && [ $((3 * $3)) -lt "$1" ] && [ $((3 * $3)) -lt "$2" ] || fail "the slow rank was handed as much as others: $shares"
ranks 2 "$PACELINE" eval job.yaml $downpour checkpoint.dir=slow >eval.out 2>&1 || fail "no evaluation: $(cat eval.out)"

# Stopped, and gone on, on other ranks and with another sync.
stopped 3 stopped "(1[2-9]|[2-9][0-9])" $learn debug.delay.ms=20
cp -r stopped other && cp -r stopped sync
run 3 stopped $learn
run 2 other $learn
run 2 sync $learn sync.kind=allreduce
for dir in stopped other sync; do resumed $dir '[1-9]'; done
grep -q "are of downpour and not used by sync.kind allreduce" sync.log || fail "sync.warmup was ignored without a word"
run 3 clock $learn train.epochs=4 checkpoint.every="20 ms" checkpoint.keep=50 checkpoint.background=false debug.delay.ms=5
[ "$(grep -c '"event": "checkpoint"' clock/metrics.jsonl)" -gt 2 ] || fail "no checkpoints by the clock"

# What fails on one rank ends all, with its code and one message.
expect 3 "debug.fault at loader.read" 3 job.yaml $learn checkpoint.dir=bad report.dir=bad debug.fault="$(faults loader.read rank=1 fail)"
expect 4 "the loss is not finite in step" 1 job.yaml $learn checkpoint.dir=no report.dir=no optimizer.lr=1e17
expect 4 "the loss is not finite in step" 3 job.yaml $learn checkpoint.dir=no report.dir=no optimizer.lr=1e17 sync.warmup="1000 steps"
expect 4 "the loss is not finite in step" 3 job.yaml $learn checkpoint.dir=no report.dir=no optimizer.lr=1e17 debug.delay.rank=0 debug.delay.ms=100 # others find it
# A rank that is lost, or silent, ends it with 5, after a checkpoint of what is left; from there it goes on.
PL_MPIRUN+=(--enable-recovery)
for how in 2:kill 2:hang 0:kill; do # without rank 0 it is the next one that gathers what is left, and says how it ended
    dir=lost-${how/:/-}
    loses "${how%:*}" $dir $learn exchange.transport=tcp debug.fault="$(faults step "rank=${how%:*}" "${how#*:}")"
    run 3 $dir $learn
    resumed $dir '[34]'
done
# If the next one is lost as well before it has written, it is the next one's turn.
train 4 job.yaml $learn checkpoint.dir=lost-two report.dir=lost-two exchange.transport=tcp debug.fault="$(faults step rank=0 kill),checkpoint.before_rename@rank=1:kill" >lost-two.log 2>&1
grep -q '"code": 5' lost-two/exit.json || fail "ranks 0 and 1 lost: $(cat lost-two/exit.json) $(tail -n 3 lost-two.log)"
[ "$(grep -c "rank 2/4.* sync: .*rank 0.*rank 1" lost-two.log)" = 1 ] || fail "ranks 0 and 1 lost: wanted one message of rank 2: $(cat lost-two.log)"
run 2 lost-two $learn
grep -q '"event": "resume", "step": [34]' lost-two/metrics.jsonl || fail "ranks 0 and 1 lost: it did not go on: $(grep resume lost-two/metrics.jsonl)"
# A rank that stands still for so long that the others give it up writes nothing over what they wrote, when it wakes up.
train 3 job.yaml $learn checkpoint.dir=asleep report.dir=asleep exchange.transport=tcp exchange.timeout="2 s" train.epochs=60 debug.delay.ms=20 >asleep.log 2>&1 &
pid=$!
wait_for 30 reported asleep '2[0-9]'
asleep=$(rank_of asleep 2)
kill -STOP "$asleep"
wait_for 10 test -e asleep/exit.json
written=$(cat asleep/latest) outcome=$(cat asleep/exit.json)
sleep 1; kill -CONT "$asleep"; wait $pid
[ "$written" = "$(cat asleep/latest)" ] && [ "$outcome" = "$(cat asleep/exit.json)" ] || fail "asleep: $written and $outcome became $(cat asleep/latest) and $(cat asleep/exit.json)"
grep -q 'stood still for' asleep.log || fail "asleep: it did not say so: $(tail -n 4 asleep.log)"
finish
