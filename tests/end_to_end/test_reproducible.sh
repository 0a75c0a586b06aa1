#!/usr/bin/env bash
# train.reproducible: a run has the same bits, in parameters, optimizer, losses and evaluations, on 1, 2, 4 and 8 ranks, over any
# transport, and when it goes on on another number of ranks; without it, it has not.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 600 203
same=(model=net-branches.yaml train.global_batch=64 train.reproducible=true optimizer.clip_norm=2 data.train.augment.flip=true)
losses() { grep -oE '"(step|epoch|loss|accuracy|grad_norm)": [0-9.e+-]+' "$1/metrics.jsonl"; }
same_as() { # same_as DIR DIR
    compare "$1" "$2" 0 0 exact
    [ "$(losses "$1")" = "$(losses "$2")" ] || fail "$1 and $2 report other losses: $(diff <(losses "$1") <(losses "$2") | head -n 4)"
}
for n in 1 2 4 8; do run $n on-$n "${same[@]}"; done
for n in 2 4 8; do same_as on-1 on-$n; done
grep -q "gradients are added up by halving_doubling" on-4.log || fail "$(grep added on-4.log)"
run 4 tree "${same[@]}" exchange.transport=tcp exchange.algorithm=tree exchange.bucket_mb=0.002
same_as on-1 tree
run 2 other train.global_batch=64 train.threads=1 model=net-branches.yaml optimizer.clip_norm=2 data.train.augment.flip=true
"$tools/compare.py" "$(model on-1)" "$(model other)" 0 0 exact >/dev/null && fail "without train.reproducible two ranks have the same bits: this test sees nothing"

# a short last part, and ranks without any: 600 samples in batches of 88, of 4 parts
for n in 1 4; do run $n short-$n "${same[@]}" train.global_batch=88 train.micro_shards=4 optimizer.kind=adam optimizer.lr=0.003; done
same_as short-1 short-4
# more threads, all the same number
for n in 1 2; do run $n threads-$n "${same[@]}" train.threads=2 train.steps=6; done
same_as threads-1 threads-2
if ! "$PACELINE" doctor | grep -q '^cpu backend.*no bf16'; then
    for n in 1 2; do run $n bf16-$n "${same[@]}" train.precision=bf16; done
    same_as bf16-1 bf16-2
fi

# stopped on four ranks, on with one, on with eight
stopped 4 moved 4 "${same[@]}" debug.fault=step@step=4:delay=2000
run 1 moved "${same[@]}" train.steps=9
run 8 moved "${same[@]}"
compare on-1 moved 0 0 exact
[ "$(number on-1 eval loss)" = "$(number moved eval loss)" ] || fail "evaluations: $(event on-1 eval) $(event moved eval)"
"$PACELINE" eval job.yaml "${same[@]}" --checkpoint moved >eval.log 2>&1 || fail "eval: $(cat eval.log)"
evaluates_to eval.log moved
"$PACELINE" predict job.yaml "${same[@]}" --checkpoint moved --out out.h5 >predict.log 2>&1 || fail "predict: $(cat predict.log)"

expect 2 "they do not divide train.micro_shards 8" 3 job.yaml "${same[@]}"
expect 2 "train.reproducible needs train.global_batch" 2 job.yaml train.reproducible=true
expect 2 "no multiple of train.micro_shards" 2 job.yaml "${same[@]}" train.global_batch=60
expect 2 "train.reproducible with sync.backup_workers" 2 job.yaml "${same[@]}" sync.backup_workers=1
expect 2 "train.reproducible adds up in pairs" 2 job.yaml "${same[@]}" exchange.algorithm=ring
finish
