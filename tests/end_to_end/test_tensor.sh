#!/usr/bin/env bash
# split.tensor: ranks that have a part of every layer learn what one rank does, but for the rounding of sums over them; so do replicas of
# them. Stopped, resumed on other splits, evaluated, refused, lost.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 600 203
one=(train.threads=1 model=net-branches.yaml)
few=(train.steps=4 train.eval_every="2 steps")
# Everything that may stand beside what is split: a layer with weights that all compute (groups), in front of one that is split; shares
# and wholes that are added and joined; dropout, pooling and normalisation of shares; two users of one output.
cat >net-mixed.yaml <<'Y'
name: mixed
input: {data: [1, 12, 12], label: int}
layers:
  - {name: norm0, kind: batchnorm}
  - {name: conv1, kind: conv, filters: 12, kernel: 3, pad: 1, activation: tanh}
  - {name: conv2, kind: conv, filters: 12, kernel: 3, pad: 1, groups: 3}
  - {name: conv3, kind: conv, filters: 12, kernel: 3, pad: 1, bias: false}
  - {name: norm3, kind: batchnorm, activation: tanh}
  - {name: drop3, kind: dropout, rate: 0.2}
  - {name: sum, kind: add, from: [drop3, conv2]}
  - {name: sum1, kind: add, from: [drop3, conv1]}
  - {name: both, kind: concat, from: [sum, sum1]}
  - {name: lrn, kind: lrn}
  - {name: conv4, kind: conv, filters: 24, kernel: 3, stride: 2, activation: sigmoid}
  - {name: pool4, kind: avgpool, kernel: 2, stride: 2}
  - {name: flat, kind: flatten}
  - {name: ip1, kind: dense, units: 36, activation: tanh}
  - {name: drop1, kind: dropout, rate: 0.3}
  - {name: ip2, kind: dense, units: 4}
  - {name: loss, kind: softmax_loss}
Y
same() { # same DIR DIR [LIMITS]: parameters and losses, but for rounding
    compare "$1" "$2" ${3:-1e-6 1e-4}
    [ "$(grep -c '"event": "eval"' "$1/metrics.jsonl")" = "$(grep -c '"event": "eval"' "$2/metrics.jsonl")" ] || fail "$1 and $2: evaluations"
    holds "($(number "$1" eval loss) - $(number "$2" eval loss))^2 < 1e-10 && $(number "$1" eval samples) == $(number "$2" eval samples)" "$1 and $2: $(event "$1" eval), $(event "$2" eval)"
    holds "($(number "$1" step loss) - $(number "$2" step loss))^2 < 1e-10 && $(number "$1" step accuracy) == $(number "$2" step accuracy)" "$1 and $2: $(event "$1" step), $(event "$2" step)"
}

# ---- what one rank learns --------------------------------------------------------------------------------------------------
declare -A limits=([momentum]="1e-6 1e-4" [adam]="1e-4 1e-3") # which divides small gradients by themselves
for net in branches mixed; do
    for kind in momentum adam; do
        keys=(train.threads=1 model=net-$net.yaml "${few[@]}" optimizer.kind=$kind optimizer.lr=0.01 optimizer.weight_decay=0.01 optimizer.clip_norm=0.3)
        run 1 $net-$kind-1 "${keys[@]}" train.batch=50
        for parts in 2 3 4; do
            run $parts $net-$kind-$parts "${keys[@]}" train.batch=50 split.tensor=$parts
            same $net-$kind-1 $net-$kind-$parts "${limits[$kind]}"
        done
    done
done
says branches-adam-4 '"parts": 4'
grep -q "1 replica of 4 ranks, each with a part of every layer: [0-9]* of 10734 parameters" mixed-adam-4.log || fail "$(head -n 8 mixed-adam-4.log)"
grep -q "split layers: conv1, conv3, norm3, conv4, ip1, ip2$" mixed-adam-4.log || fail "$(grep "split layers" mixed-adam-4.log)"
grep -q "split layers: ip1$" branches-adam-3.log || fail "$(grep "split layers" branches-adam-3.log)" # 16 filters and 4 classes are not divided by 3
run 1 steps-1 "${one[@]}" "${few[@]}" train.batch=17 train.accumulate=3
run 2 steps-2 "${one[@]}" "${few[@]}" train.batch=17 train.accumulate=3 split.tensor=2 exchange.transport=tcp
same steps-1 steps-2
run 2 twice "${one[@]}" "${few[@]}" train.batch=17 train.accumulate=3 split.tensor=2
compare steps-2 twice 0 0 exact
run 2 reference "${one[@]}" train.steps=1 train.batch=50 split.tensor=2 device.kind=reference
run 1 reference-1 "${one[@]}" train.steps=1 train.batch=50 device.kind=reference
same reference-1 reference
if ! "$PACELINE" doctor | grep -q '^cpu backend.*no bf16'; then
    for n in 1 2; do run $n bf16-$n "${one[@]}" train.steps=1 train.batch=50 train.precision=bf16 split.tensor=$n; done
    compare bf16-1 bf16-2 1e-3 0.3
fi

# ---- replicas: what the parts compute alike stays alike -----------------------------------------------------------------------
run 2 replicas-1 "${one[@]}" "${few[@]}" train.global_batch=67
for transport in auto tcp mpi; do
    run 4 replicas-$transport "${one[@]}" "${few[@]}" train.global_batch=67 split.tensor=2 exchange.transport=$transport
    same replicas-1 replicas-$transport
done
run 6 replicas-3 train.threads=1 model=net-mixed.yaml "${few[@]}" train.global_batch=67 split.tensor=2
run 3 replicas-0 train.threads=1 model=net-mixed.yaml "${few[@]}" train.global_batch=67
same replicas-0 replicas-3
run 1 sync-1 train.threads=1 model=net-mixed.yaml "${few[@]}" train.global_batch=67
run 4 sync-4 train.threads=1 model=net-mixed.yaml "${few[@]}" train.global_batch=67 split.tensor=2 train.sync_bn=true
same sync-1 sync-4

# ---- stopped, and split otherwise ------------------------------------------------------------------------------------------------
run 2 straight "${one[@]}" train.batch=64 split.tensor=2
stopped 2 stopped 4 "${one[@]}" train.batch=64 split.tensor=2 debug.fault=step@step=4:delay=2000
run 2 stopped "${one[@]}" train.batch=64 split.tensor=2
compare straight stopped 0 0 exact
run 1 whole "${one[@]}" train.batch=64 train.steps=6 train.eval_every=never
run 4 moved "${one[@]}" train.batch=64 split.tensor=4 train.steps=2 train.eval_every=never
run 1 moved "${one[@]}" train.batch=64 train.steps=3 train.eval_every=never
run 2 moved "${one[@]}" train.batch=64 split.pipeline=2 split.microbatches=1 train.steps=4 train.eval_every=never
run 2 moved "${one[@]}" train.batch=64 split.tensor=2 train.steps=6 train.eval_every=never
for step in 2 3 4; do resumed moved $step; done
compare whole moved 1e-6 1e-4

# ---- what is read back -------------------------------------------------------------------------------------------------------------
for n in 1 2 4; do
    ranks $n "$PACELINE" eval job.yaml "${one[@]}" train.batch=64 split.tensor=2 --checkpoint straight >eval.$n 2>&1 || fail "eval on $n: $(cat eval.$n)"
    evaluates_to eval.$n straight
done
for n in 1 2 4; do # whole; by 2 parts; on two replicas
    ranks $n "$PACELINE" predict job.yaml "${one[@]}" train.batch=19 split.tensor=2 --checkpoint straight --out out-$n.h5 >predict.log 2>&1 || fail "predict on $n: $(cat predict.log)"
done
/usr/bin/python3 -c '
import h5py
whole, *others = ({k: f[k][()] for k in ("output", "class")} for f in map(h5py.File, ("out-1.h5", "out-2.h5", "out-4.h5")))
assert len(whole["output"]) == 203 and abs(whole["output"]).max() > 0.1
assert all(abs(o["output"] - whole["output"]).max() < 1e-6 and (o["class"] == whole["class"]).all() for o in others)' || fail "predict by parts gives something else"
"$PACELINE" inspect straight --export alone.h5 >export.log 2>&1 || fail "export: $(cat export.log)"
grep -qE '^alone.h5: all of straight, 0\.[0-9]+ MB$' export.log || fail "export: $(cat export.log)"
"$PACELINE" inspect straight | grep -q 'params/conv1/weight .*, stored in parts$' && "$PACELINE" inspect alone.h5 | grep -q 'params/conv1/weight .* MB stored$' ||
    fail "inspect: $("$PACELINE" inspect straight | grep weight)"
grep -q '"why": "one replica, whose gradients need no others".*"within_replica": "transport mpi' straight/metrics.jsonl || fail "$(head -n 1 straight/metrics.jsonl)"
# What ranks wait for between steps, in evaluations, is no part of a step.
run 2 waits split.tensor=2 train.steps=20 train.eval_every="1 steps" report.every="1 steps" data.train.limit=200
grep '"event": "step"' waits/metrics.jsonl | awk '{match($0, /"step_ms": [0-9.e+-]+/); s = substr($0, RSTART + 11, RLENGTH - 11); match($0, /"exchange_ms": [0-9.e+-]+/)
    if (substr($0, RSTART + 15, RLENGTH - 15) + 0 > s + 0) bad++} END {exit bad > 0 || NR < 20}' || fail "more was waited than a step took: $(grep "step_ms" waits/metrics.jsonl | head -n 4)"
"$tools/compare.py" "$(model straight)" alone.h5 0 0 exact || fail "what was exported differs"
/usr/bin/python3 - "$(model straight)" <<'PY' || fail "parts hold too much, or model.h5 too little"
import h5py, os, sys
f = h5py.File(sys.argv[1])
assert f["params/ip1/weight"].shape == (24, 432) and f["optimizer/momentum/conv3a/weight"].shape == (32, 16, 1, 1), f["params/ip1/weight"].shape
parts = [h5py.File(os.path.join(os.path.dirname(sys.argv[1]), "parts/part-0000%d.h5" % i)) for i in range(2)]
assert [p["params/ip1/weight"].shape for p in parts] == [(12, 432)] * 2
PY
cp -r straight damaged && rm "damaged/$(cat damaged/latest)/parts/part-00001.h5"
expect 6 "damaged holds checkpoints, but none that is whole" 2 job.yaml "${one[@]}" split.tensor=2 checkpoint.dir=damaged report.dir=damaged

# ---- refused -------------------------------------------------------------------------------------------------------------------------
expect 2 "split.tensor 2 does not divide the 3 ranks" 3 job.yaml split.tensor=2
expect 2 "split.tensor 7 divides the outputs of no dense layer and of no convolution" 7 job.yaml split.tensor=7
expect 2 "split.pipeline and split.tensor together" 4 job.yaml split.tensor=2 split.pipeline=2
expect 2 "split.tensor with optimizer.kind lars" 2 job.yaml split.tensor=2 optimizer.kind=lars
expect 2 "exchange.algorithm native with split.tensor" 2 job.yaml split.tensor=2 exchange.algorithm=native

# ---- lost ----------------------------------------------------------------------------------------------------------------------------
expect 5 "waited 2 s for rank 1, part 1 of this replica" 2 job.yaml "${one[@]}" split.tensor=2 exchange.timeout="2 s" debug.fault="step@rank=1@step=3:hang" \
    checkpoint.dir=lost-hang report.dir=lost-hang
expect 4 "is not finite" 4 job.yaml "${one[@]}" split.tensor=2 optimizer.lr=1e15 checkpoint.dir=nan report.dir=nan
row_loses "${one[@]}" split.tensor=2
finish
