#!/usr/bin/env bash
# split.optimizer: ranks of a node that have parameters and optimizer state together, and update a share each, learn to the bit what ranks
# learn that have all of both. Stopped, resumed with and without, from weights; refused where no memory is shared; a rank that hangs or is
# lost while the others wait for its share.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 600 203
few=(train.threads=1 train.steps=5 train.eval_every="2 steps" model=net-norms.yaml train.global_batch=67)
node=(split.optimizer=node)
rates=(optimizer.lr=0.01 optimizer.weight_decay=0.01 optimizer.clip_norm=0.3)
both() { # both N NAME KEYS...: with and without
    local n=$1 name=$2; shift 2
    run "$n" "$name" "$@"
    run "$n" "$name-node" "$@" "${node[@]}"
    compare "$name" "$name-node" 0 0 exact
    [ "$(event "$name" eval | sed 's/"ms.*//')" = "$(event "$name-node" eval | sed 's/"ms.*//')" ] || fail "$name: $(event "$name" eval), $(event "$name-node" eval)"
}
for kind in sgd momentum adagrad adam lars; do
    both 3 $kind "${few[@]}" "${rates[@]}" optimizer.kind=$kind
done
grep -q "parameters and optimizer state, 0.[0-9]* MB, are on a node once" adam-node.log || fail "$(head -n 8 adam-node.log)"
grep -q '"split_optimizer": "node"' adam-node/metrics.jsonl || fail "$(head -n 1 adam-node/metrics.jsonl)"
grep -q "are on a node once" adam.log && fail "$(head -n 8 adam.log)"
both 2 micro "${few[@]}" train.accumulate=3 train.global_batch=63 optimizer.kind=adam
both 2 threads "${few[@]}" train.threads=2 optimizer.kind=adam
both 2 sync "${few[@]}" train.sync_bn=true
both 2 reference "${few[@]}" train.steps=2 device.kind=reference
both 5 many "${few[@]}" exchange.bucket_mb=0.01 optimizer.kind=adam
"$PACELINE" doctor | grep -q '^cpu backend.*no bf16' || both 2 bf16 "${few[@]}" train.precision=bf16 "${rates[@]}"

# alone there is nothing to share
run 1 alone "${few[@]}"
run 1 alone-node "${few[@]}" "${node[@]}"
compare alone alone-node 0 0 exact
grep -q "note: split.optimizer is for several ranks of one node, here each has one of its own" alone-node.log || fail "$(head -n 5 alone-node.log)"

# stopped and on again; with, without and with; by a directory; on other ranks; from weights
long=(train.threads=1 model=net-norms.yaml train.batch=16 train.epochs=3 optimizer.kind=adam optimizer.lr=0.003)
run 3 straight "${long[@]}"
stopped 3 parts 5 "${long[@]}" "${node[@]}" debug.fault=step@step=5:delay=2000
run 3 parts "${long[@]}" "${node[@]}"
compare straight parts 0 0 exact
run 3 kept "${long[@]}" train.epochs=1
for end in 2 3; do
    how=(); [ $end = 2 ] && how=("${node[@]}")
    run 3 kept "${long[@]}" "${how[@]}" train.epochs=$end
done
resumed kept 26
compare straight kept 0 0 exact
run 3 first "${few[@]}" optimizer.kind=adam train.steps=3
run 2 second "${few[@]}" optimizer.kind=adam checkpoint.resume=first
run 2 second-node "${few[@]}" optimizer.kind=adam checkpoint.resume=first "${node[@]}"
compare second second-node 0 0 exact
both 2 init "${few[@]}" train.init="$(model straight)"
# momentum that each rank had of its own, of which all take the mean
run 2 local "${few[@]}" optimizer.kind=momentum sync.kind=local_sgd sync.tau=2 train.steps=4
for how in none node; do
    run 2 after-$how "${few[@]}" optimizer.kind=momentum train.steps=8 checkpoint.resume=local split.optimizer=$how
done
compare after-none after-node 0 0 exact

# no memory that is shared
expect 2 "no shared memory by the job's choice of exchange.transport" 2 job.yaml "${few[@]}" "${node[@]}" exchange.transport=tcp checkpoint.dir=none
expect 7 "exchange: no shared memory: rank 1 cannot have" 2 job.yaml "${few[@]}" "${node[@]}" debug.fault=exchange.shared@rank=1:fail checkpoint.dir=none
expect 2 "split.optimizer needs memory that the ranks of a node share; exchange.two_level is never" 2 job.yaml "${few[@]}" "${node[@]}" exchange.two_level=never checkpoint.dir=none

# the others wait for the share of a rank that hangs, or is lost, and name it
expect 5 "waited 1 s for the ranks in step 3; missing: rank 1" 3 job.yaml "${few[@]}" "${node[@]}" exchange.timeout="2 s" debug.fault=update.meet@rank=1@step=3:hang checkpoint.dir=hang report.dir=hang
expect 5 "debug.fault at update.meet" 3 job.yaml "${few[@]}" "${node[@]}" exchange.timeout="2 s" debug.fault=update.meet@rank=1@step=3:fail checkpoint.dir=fails report.dir=fails
PL_MPIRUN+=(--enable-recovery)
train 3 job.yaml "${few[@]}" "${node[@]}" exchange.timeout="2 s" debug.fault=update.meet@rank=2@step=3:kill checkpoint.dir=kill report.dir=kill >kill.log 2>&1
grep -q "in step 3; missing: rank 2" kill.log || fail "a killed rank is not named: $(tail -n 5 kill.log)"
finish
