#!/usr/bin/env bash
# Sandblaster L-BFGS: on any number of ranks the way of one, the same bits in every run of one; it counts passes; it stops in the
# midst of a step, goes on, also with another sync, and ends in order when something fails, a rank is lost or silent, or
# there is no way further down. What cannot work is refused.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job
sand="sync.kind=sandblaster optimizer.kind=sgd optimizer.weight_decay=0.01"
few="$sand train.steps=12 train.eval_every=never"

# ---- one way down, whoever computes ----------------------------------------------------------------------------
run 1 one $few
run 1 again $few
compare one again 0 0 exact
holds "$(number one step loss) < 0.2" "loss after 12 steps"
says one '"sync": "sandblaster"'
says one '"passes": 1[2-9],.*"lr":.*"grad_norm"'
for n in 2 3 4; do
    for transport in mpi tcp; do
        run $n few-$n-$transport $few exchange.transport=$transport
        compare one few-$n-$transport 1e-3 1e-2
    done
done
portions=$(event few-3-tcp end | sed -nE 's/.*"portions": \[([0-9]+), ([0-9]+), ([0-9]+)\].*/\1+\2+\3/p')
[ $((portions)) -eq $((16 * $(number few-3-tcp step passes))) ] || fail "portions by rank: $portions in $(number few-3-tcp step passes) passes"
run 1 bigger $few train.batch=200
compare one bigger 1e-3 1e-2

# ---- epochs are passes -----------------------------------------------------------------------------------------------
run 2 epochs $sand train.epochs=15 train.eval_every="5 epochs"
holds "$(number epochs step passes) >= 15 && $(number epochs step passes) < 25" "passes of 15 epochs"
[ "$(number epochs end samples)" = $((1000 * $(number epochs step passes))) ] || fail "samples: $(event epochs end)"
[ "$(grep -c '"event": "eval"' epochs/metrics.jsonl)" = 3 ] || fail "evaluations in 15 epochs: $(grep -c '"event": "eval"' epochs/metrics.jsonl)"
holds "$(number epochs eval accuracy) > 0.95" "accuracy"
ranks 2 "$PACELINE" eval job.yaml $sand checkpoint.dir=epochs >eval.out 2>&1 || fail "no evaluation: $(cat eval.out)"
run 1 epochs $sand train.epochs=15
grep -q "this run is done" epochs.log || fail "it began again: $(tail -n 2 epochs.log)"
run 2 goal $sand train.steps=50 train.stop.above=0.9 train.eval_every=1
event goal end | grep -q '"reason": "goal"' || fail "no goal: $(event goal end)"
run 2 flat $sand train.steps=50 sync.tolerance=0.5
event flat end | grep -q '"reason": "converged"' || fail "not converged: $(event flat end)"
grep -q "converged at step .*sync.tolerance" flat.log || fail "no word on it: $(tail -n 3 flat.log)"
run 3 bottom $sand train.steps=3000 train.eval_every=never data.train.limit=100 report.every="100 steps" model=net-dense.yaml optimizer.weight_decay=1
event bottom end | grep -q '"reason": "converged"' || fail "no end at the bottom: $(event bottom end)"

# ---- stopped, and gone on ---------------------------------------------------------------------------------------------
run 1 halves $few train.steps=6
run 2 halves $few
resumed halves 6
holds "$(number halves step loss) < $(number halves resume step) * 0.05" "loss after 6 steps and 6"
run 2 sync $few train.steps=6
run 2 sync optimizer.kind=sgd optimizer.weight_decay=0.01 train.steps=20 sync.history=5
grep -q "sync.history and tolerance are of sandblaster" sync.log || fail "sync.history was ignored without a word"
run 3 sync $few train.steps=26
resumed sync 20
# A signal does not wait for the end of a step: 63 portions of 50 ms each.
stopped 3 stopped "[1-9]" $sand train.batch=16 train.steps=100 debug.delay.ms=50
run 2 stopped $few
resumed stopped '[1-9]'
run 3 clock $few checkpoint.every="1 ms" checkpoint.keep=50 checkpoint.background=false
[ "$(grep -c '"event": "checkpoint"' clock/metrics.jsonl)" -gt 5 ] || fail "no checkpoints by the clock"

# ---- what cannot work ---------------------------------------------------------------------------------------------------
sed 's/^  - {name: loss/  - {name: drop, kind: dropout}\n&/' net.yaml >net-drop.yaml
sed 's/units: 24/&, bias_lr_mult: 2/' net.yaml >net-twice.yaml
expect 2 "layer drop: with sync.kind sandblaster every pass must see the same function" 2 job.yaml $few checkpoint.dir=no report.dir=no model=net-drop.yaml
expect 2 "batch normalisation's depends on which samples a portion has" 2 job.yaml $few checkpoint.dir=no report.dir=no model=net-bn.yaml
expect 2 "layer ip1: lr_mult 2 of its bias" 1 job.yaml $few checkpoint.dir=no report.dir=no model=net-twice.yaml
expect 2 "L-BFGS takes its place" 1 job.yaml sync.kind=sandblaster checkpoint.dir=no report.dir=no
ranks 1 "$PACELINE" bench step job.yaml $few >bench.out 2>&1; code=$?
[ $code = 2 ] && grep -q "over a whole training set" bench.out || fail "bench step: $code, $(cat bench.out)"
# Keys without use are named; an optimizer's state it does not go on with, and what it advises works.
grep -q "not used by sync.kind sandblaster: optimizer.lr, optimizer.momentum" few-3-tcp.log || fail "optimizer.momentum was ignored without a word"
run 1 momentum train.epochs=1
expect 6 "give another checkpoint.dir with train.init=momentum/step-00000016 to start from its weights" 1 job.yaml $few checkpoint.dir=momentum report.dir=no
run 1 from-momentum $few train.init=momentum/step-00000016

# ---- what fails on one rank ends all, with its code and one message ---------------------------------------------------------
sed 's/units: 24/&, init: gaussian, init_value: 1e25/; s/units: 4/&, init: gaussian, init_value: 1e25/' net.yaml >net-huge.yaml
for n in 1 3; do expect 4 "the loss is not finite in step 0" $n job.yaml $few checkpoint.dir=no report.dir=no model=net-huge.yaml; done
expect 3 "debug.fault at loader.read" 3 job.yaml $few checkpoint.dir=bad report.dir=bad debug.fault="loader.read@rank=1:fail"
# A rank that is lost, or silent, ends it with 5, after a checkpoint of the last step; from there it goes on. When it is
# killed as it begins the next, others may not have heard of that step, or not be through with it.
left_at() { [ -e "$1/step-0000000$2" ] && [ "$(cat "$1/latest")" = "step-0000000$2" ]; } # left_at DIR STEP
PL_MPIRUN+=(--enable-recovery)
for how in tcp:2:kill tcp:2:hang tcp:0:kill tcp:0:hang mpi:2:hang; do
    IFS=: read -r transport rank action <<<"$how"
    dir=lost-$transport-$rank-$action
    loses "$rank" $dir $few train.steps=40 exchange.transport="$transport" debug.fault="step@rank=$rank@step=8:$action"
    last=8
    [ $action != kill ] || left_at $dir 8 || last=7
    left_at $dir $last || fail "$how: no checkpoint of step $last: $(ls $dir)"
    run 3 $dir $few
    resumed $dir $last
done
# Who is left writes, if it is lost before it has the next one; and when rank 0 is lost over its last checkpoint, another writes that.
train 4 job.yaml $few train.steps=40 checkpoint.dir=lost-two report.dir=lost-two exchange.transport=tcp debug.fault="step@rank=0@step=8:kill,checkpoint.before_rename@rank=1:kill" >lost-two.log 2>&1
grep -q '"code": 5' lost-two/exit.json && { left_at lost-two 8 || left_at lost-two 7; } || fail "ranks 0 and 1 lost: $(cat lost-two/exit.json) $(ls lost-two) $(tail -n 3 lost-two.log)"
[ "$(grep -c "rank 2/4.* sync: .*rank 0.*rank 1" lost-two.log)" = 1 ] || fail "ranks 0 and 1 lost: wanted one message of rank 2: $(cat lost-two.log)"
train 4 job.yaml $few checkpoint.dir=lost-last report.dir=lost-last exchange.transport=tcp debug.fault="checkpoint.before_rename@rank=0:kill" >lost-last.log 2>&1
grep -q '"code": 5' lost-last/exit.json && [ -e lost-last/step-00000012 ] || fail "rank 0 lost at the end: $(cat lost-last/exit.json) $(ls lost-last) $(tail -n 3 lost-last.log)"
finish
