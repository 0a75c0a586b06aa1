#!/usr/bin/env bash
# Local SGD: with one local step it is synchronous SGD; with more it does what a plain model of it does; when what is due
# happens; a loss that is not finite on one rank ends all; what it refuses.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job
"$tools/local_sgd.py" init weights.h5 || exit 1
events() { sed -nE "s/.*\"event\": \"$2\".*\"step\": ([0-9]+).*/\1/p" "$1/metrics.jsonl" | tr '\n' ' '; }
at() { local found; found=$(events "$1" "$2"); [ "$found" = "$3 " ] || fail "$1: $2 at steps $found, wanted $3"; }
local="sync.kind=local_sgd train.eval_every=never"

sed -i 's/kind: conv,/& bias: false,/' net-bn.yaml # normalisation takes it away again: it would be noise
# tau 1: an epoch of 1000 samples in global batches of 190. The shares are unequal on 3 and 4 ranks; the last 50 samples
# are all on the first ranks. Rounding apart (1e-6) the parameters are those of synchronous SGD, running statistics too.
for n in 2 3 4; do
    for net in net net-bn; do
        same="model=$net.yaml train.global_batch=190 train.epochs=1 train.eval_every=never"
        run $n sync-$net-$n $same optimizer.kind=sgd
        run $n plain-$net-$n $same $local optimizer.kind=sgd sync.tau=1
        compare sync-$net-$n plain-$net-$n 1e-6 1e-5
        run $n momentum-$net-$n $same
        run $n averaged-$net-$n $same $local sync.tau=1 sync.average_momentum=true
        compare momentum-$net-$n averaged-$net-$n 1e-6 1e-5
    done
done
# The other way to average, with several buckets: MPI's all-reduce and tcp.
run 3 native $same $local sync.tau=1 sync.average_momentum=true exchange.two_level=never exchange.bucket_mb=0.01
run 3 tcp $same $local sync.tau=1 sync.average_momentum=true exchange.transport=tcp exchange.bucket_mb=0.01
compare momentum-net-bn-3 native 1e-6 1e-5
compare momentum-net-bn-3 tcp 1e-6 1e-5

# tau 3 against the model, over the end of an epoch (6 steps) to a last step that is no multiple of 3.
for n in 2 4; do
    for average in 0 1; do
        run $n model-$n-$average $local model=net-dense.yaml train.init=weights.h5 data.train.shuffle=false train.global_batch=190 train.steps=11 \
            sync.tau=3 sync.average_momentum=$([ $average = 1 ] && echo true || echo false)
        "$tools/local_sgd.py" check weights.h5 train.h5 "$(model model-$n-$average)" model-$n-$average/metrics.jsonl $n 190 11 3 $average 2e-6 ||
            fail "on $n ranks it is another local SGD than the model's"
    done
done
run 3 clipped $local model=net-dense.yaml train.init=weights.h5 data.train.shuffle=false train.global_batch=190 train.steps=7 sync.tau=3 optimizer.clip_norm=0.2
"$tools/local_sgd.py" check weights.h5 train.h5 "$(model clipped)" clipped/metrics.jsonl 3 190 7 3 0 2e-6 0.2 || fail "the local gradient is clipped otherwise"
halves="train.steps=7 train.global_batch=64 train.accumulate=2 optimizer.kind=sgd train.eval_every=never"
run 2 halves $halves
run 2 local-halves $halves $local sync.tau=1
compare halves local-halves 1e-6 1e-5

# With backup workers: rank 2 never comes in time. With tau 1 the first two make the steps that they make of gradients; the
# one that is late goes on from their average, whatever tau is and wherever evaluations and the end fall.
delayed() { local dir=$1; shift; run 3 "$dir" exchange.transport=tcp sync.backup_workers=1 train.global_batch=192 train.steps=14 "debug.delay={rank: 2, ms: 400}" "$@"
    grep -q 'by rank: 2: ' "$dir.log" || fail "$dir: rank 2 was not late: $(tail -n 2 "$dir.log")"
    grep -q '^3 ranks hold the same parameters' "$dir.log" || fail "$dir: $(tail -n 1 "$dir.log")"; }
delayed late-sync optimizer.kind=sgd train.eval_every=never
delayed late-tau1 $local optimizer.kind=sgd sync.tau=1
compare late-sync late-tau1 1e-6 1e-5
delayed late-momentum train.eval_every=never
delayed late-averaged $local sync.tau=1 sync.average_momentum=true
compare late-momentum late-averaged 1e-6 1e-5
delayed late-due sync.kind=local_sgd sync.tau=4 train.eval_every="5 steps" checkpoint.every="5 steps" report.every="4 steps" checkpoint.background=false
at late-due eval "8 12 14"
at late-due checkpoint "8 12 14"
at late-due step "4 8 12 14"
grep -q '"step": 14, .*"local_steps": 2,' late-due/metrics.jsonl || fail "the last line does not say what it is over: $(grep '"step": 14' late-due/metrics.jsonl)"

# The last step of an epoch has samples for rank 0 alone, which is late: the others cannot make an average of none.
run 4 tail exchange.transport=tcp sync.backup_workers=1 sync.kind=local_sgd sync.tau=1 train.batch=16 data.train.limit=656 train.epochs=1 "debug.delay={rank: 0, ms: 30}"
grep '"event": "eval"' tail/metrics.jsonl | grep -qE '"step": 11, .*"loss": [0-9]' || fail "tail: $(tail -n 3 tail/metrics.jsonl)"
grep '"event": "step", "step": 11,' tail/metrics.jsonl | grep -qE '"loss": [0-9]' || fail "tail: a step without samples: $(grep '"step": 11' tail/metrics.jsonl)"

# What is said of it, and when things happen: at the next averaging, and at the last step.
run 3 due $local train.steps=20 sync.tau=3 train.eval_every="4 steps" checkpoint.every="5 steps" report.every="5 steps" checkpoint.background=false
at due eval "6 9 12 18 20"
at due checkpoint "6 12 15 20"
at due step "3 6 12 15 20"
grep -q '"sync": "local_sgd", "tau": 3, "average": "parameters"' due/metrics.jsonl || fail "the start does not name tau: $(head -n 1 due/metrics.jsonl)"
grep -q '"step": 20, .*"local_steps": 2,' due/metrics.jsonl || fail "the last line does not say what it is over: $(grep '"step": 20' due/metrics.jsonl)"
grep -q 'local SGD: parameters are averaged every 3 steps (sync.tau) by shared memory' due.log || fail "nobody says how ranks agree: $(head -n 4 due.log)"
run 2 epochs $local train.epochs=3 sync.tau=5 train.eval_every="1 epoch" # 8 steps each
at epochs eval "10 20 24"
run 2 goal $local train.steps=40 sync.tau=4 train.eval_every="6 steps" train.stop.above=0.01
[ "$(cat goal/latest)" = step-00000008 ] || fail "the goal ended it at $(cat goal/latest), wanted step-00000008"
run 2 note train.steps=2 sync.tau=5
grep -q 'note: sync.tau is of local_sgd and not used by sync.kind allreduce' note.log || fail "sync.tau was ignored without a word"

# It learns, and the same job twice has the same bits, whatever carries it.
run 3 twice-a $local train.epochs=6 sync.tau=5
run 3 twice-b $local train.epochs=6 sync.tau=5
compare twice-a twice-b 0 0 exact
run 3 ring-tcp $local train.epochs=6 sync.tau=5 exchange.transport=tcp exchange.algorithm=ring
run 3 ring-mpi $local train.epochs=6 sync.tau=5 exchange.transport=mpi exchange.algorithm=ring
compare ring-tcp ring-mpi 0 0 exact
run 1 alone $local train.epochs=2 sync.tau=5
run 1 alone-sync train.epochs=2 train.eval_every=never
compare alone alone-sync 1e-5 1e-4
ranks 2 "$PACELINE" eval job.yaml checkpoint.dir=twice-a >eval.out 2>&1
accuracy=$(sed -nE 's/.*accuracy ([0-9.]+).*/\1/p' eval.out | head -n 1)
holds "$accuracy > 0.9" "$(cat eval.out)"

# Cut in two, the same bits: momentum that is each rank's own comes back to it, on other ranks as the mean of all.
for kind in false true adam; do
    how="$local train.global_batch=190 sync.tau=5 train.steps=30"
    [ $kind = adam ] && how+=" optimizer.kind=adam optimizer.lr=0.003" || how+=" sync.average_momentum=$kind"
    run 3 straight-$kind $how
    run 3 halves-$kind $how train.steps=15
    cp -r halves-$kind other-$kind && cp -r halves-$kind sync-$kind
    run 3 halves-$kind $how
    compare straight-$kind halves-$kind 0 0 exact
    run 2 other-$kind $how
    echo -n "on other ranks: "; "$tools/compare.py" "$(model straight-$kind)" "$(model other-$kind)" 0.5 1 || fail "another trajectory on other ranks"
    run 3 sync-$kind $how sync.kind=allreduce sync.average_momentum=false
    grep -q '"event": "resume"' sync-$kind/metrics.jsonl || fail "synchronous SGD did not go on from local SGD"
done
[ -e straight-false/step-00000030/parts/part-00002.h5 ] || fail "no part for rank 2's momentum"
[ ! -e straight-true/step-00000030/parts ] || fail "parts for momentum that is the same on all ranks"
# A stop asked for at any time comes with an averaging.
run 3 unstopped $local train.steps=60 sync.tau=7
stopped 3 stopped 14 $local train.steps=60 sync.tau=7 debug.delay.ms=60
step=$(sed 's/step-0*//' stopped/latest)
[ $((step % 7)) -eq 0 ] && [ "$step" -lt 60 ] || fail "stopped after step $step"
run 3 stopped $local train.steps=60 sync.tau=7
compare unstopped stopped 0 0 exact
# Each evaluation once, though the stop came before it.
stopped 2 held 4 $local train.steps=20 sync.tau=4 train.eval_every="3 steps" debug.fault=step@step=6:delay=3000
run 2 held $local train.steps=20 sync.tau=4 train.eval_every="3 steps"
at held eval "4 8 12 16 20"
run 2 clock $local train.steps=30 sync.tau=4 checkpoint.every="1 ms" checkpoint.keep=2 checkpoint.background=false debug.delay.ms=1 # steps alone may take less
at clock checkpoint "4 8 12 16 20 24 28 30"
[ -z "$(find . -name '.parts-*')" ] || fail "parts were left: $(find . -name '.parts-*')"

# Sample 100, read by rank 1 of 3 in step 0, is not finite for it alone; all end at the averaging.
cp train.h5 bad.h5
/usr/bin/python3 - <<'PY' || fail "bad.h5"
import h5py
with h5py.File("bad.h5", "r+") as f:
    data = f["data"][()].astype("f4")
    data[100] = 3e38
    del f["data"]
    f["data"] = data
PY
expect 4 "the loss is not finite in one of the steps 0 to 3 (on 1 rank)" 3 job.yaml $local checkpoint.dir=bad report.dir=bad data.train.file=bad.h5 data.train.shuffle=false train.steps=9 sync.tau=4
[ ! -e bad/latest ] || fail "a checkpoint of parameters that are not finite: $(cat bad/latest)"
expect 2 "exchange.compress is for gradients" 2 job.yaml $local checkpoint.dir=no report.dir=no exchange.compress=bf16
finish
