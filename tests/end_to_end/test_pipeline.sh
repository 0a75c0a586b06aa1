#!/usr/bin/env bash
# split.pipeline: stages of a network on ranks of their own learn, bit for bit, what one rank does that has all layers and adds up
# the same micro-batches; on replicas of them but for rounding. Stopped, resumed on other stages, evaluated, refused, lost.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 600 203
one=(train.threads=1 model=net-branches.yaml)
whole() { run 1 "$1" "${one[@]}" train.batch=16 train.accumulate=4 "${@:2}"; }         # whole DIR KEYS...
split() { run "$2" "$1" "${one[@]}" train.batch=64 split.pipeline="$3" "${@:4}"; }     # split DIR RANKS STAGES KEYS...
same_losses() { # same_losses DIR DIR: of steps and evaluations
    [ "$(grep -oE '"(step|loss|total_loss|accuracy)": [0-9.e+-]+' "$1/metrics.jsonl")" = "$(grep -oE '"(step|loss|total_loss|accuracy)": [0-9.e+-]+' "$2/metrics.jsonl")" ] ||
        fail "$1 and $2 report other losses: $(event "$1" eval) $(event "$2" eval)"
}

# ---- the same bits -------------------------------------------------------------------------------------------------------
whole whole
for stages in 2 3; do
    split stages-$stages $stages $stages
    compare whole stages-$stages 0 0 exact
    same_losses whole stages-$stages
done
says stages-3 '"stages": 3, "microbatch": 16'
grep -q "1 replica of 3 ranks, a batch of 64 in parts of 16" stages-3.log || fail "$(head -n 8 stages-3.log)"
grep "their layers" stages-3.log
split at 2 2 split.at=conv2 exchange.transport=tcp
grep -q "their layers: conv1 to .*, conv2 to " at.log || fail "$(grep layers at.log)"
compare whole at 0 0 exact
# the last part of a batch is short, the last batch of an epoch has fewer parts
for keys in "optimizer.kind=adam optimizer.lr=0.003 optimizer.clip_norm=0.5" "optimizer.kind=lars train.precision=fp32"; do
    run 1 whole-"${keys:15:4}" "${one[@]}" train.batch=17 train.accumulate=3 $keys
    run 2 split-"${keys:15:4}" "${one[@]}" train.batch=51 split.pipeline=2 split.microbatches=3 $keys
    compare whole-"${keys:15:4}" split-"${keys:15:4}" 0 0 exact
    same_losses whole-"${keys:15:4}" split-"${keys:15:4}"
done
if ! "$PACELINE" doctor | grep -q '^cpu backend.*no bf16'; then
    whole whole-bf16 train.precision=bf16
    split split-bf16 2 2 train.precision=bf16
    compare whole-bf16 split-bf16 0 0 exact
fi

# Where the cut changes how a tensor lies, the same but for rounding (which next to a rectifier's 0 would be more than that).
make_set big.h5 192 3 16 4 3
make_set big-test.h5 64 3 16 4 4
wide=(data.train.file=big.h5 data.test.file=big-test.h5 train.threads=1 train.steps=3 model=wide.yaml)
cat >wide.yaml <<'Y'
name: wide
input: {data: [3, 16, 16], label: int}
layers:
  - {name: conv1, kind: conv, filters: 32, kernel: 5, pad: 2}
  - {name: pool1, kind: avgpool, kernel: 3, stride: 2}
  - {name: tanh1, kind: tanh}
  - {name: conv2, kind: conv, filters: 32, kernel: 5, pad: 2, activation: tanh}
  - {name: pool2, kind: avgpool, kernel: 3, stride: 2}
  - {name: conv3, kind: conv, filters: 64, kernel: 5, pad: 2, activation: tanh}
  - {name: ip1, kind: dense, units: 4}
  - {name: loss, kind: softmax_loss}
Y
run 1 wide-1 "${wide[@]}" train.batch=16 train.accumulate=4
for at in pool1 conv2 pool2 conv3; do
    run 2 wide-$at "${wide[@]}" train.batch=64 split.pipeline=2 split.at=$at
    compare wide-1 wide-$at 1e-6 1e-4
done

# ---- replicas ------------------------------------------------------------------------------------------------------------
run 2 replicas-1 "${one[@]}" train.batch=32 train.steps=6
for transport in auto tcp mpi; do split replicas-2-$transport 4 2 train.batch=32 split.microbatches=1 train.steps=6 exchange.transport=$transport; done
compare replicas-1 replicas-2-auto 1e-5 1e-3
compare replicas-2-auto replicas-2-tcp 1e-6 1e-4
run 6 replicas-3 "${one[@]}" train.global_batch=67 split.pipeline=3 split.microbatches=5 train.steps=4 # short batches
run 1 replicas-0 "${one[@]}" train.global_batch=67 train.steps=4
holds "($(number replicas-0 eval samples) - $(number replicas-3 eval samples))^2 == 0" "samples of an evaluation"

# ---- stopped, and on other stages -----------------------------------------------------------------------------------------
stopped 2 stopped 4 "${one[@]}" train.batch=64 split.pipeline=2 debug.fault=step@step=4:delay=2000
split stopped 2 2
compare whole stopped 0 0 exact
split moved 3 3 train.steps=5
whole moved train.steps=9
split moved 2 2
resumed moved 5
resumed moved 9
compare whole moved 0 0 exact
rm -rf first && cp -r whole first && rm -rf first/step-* && whole first checkpoint.resume=never train.steps=7 checkpoint.dir=first/new report.dir=first/new && mv first/new first-7
split first-7 2 2 checkpoint.dir=first-7 report.dir=first-7
compare whole first-7 0 0 exact

# ---- what is read back -----------------------------------------------------------------------------------------------------
for n in 1 2; do
    ranks $n "$PACELINE" eval job.yaml "${one[@]}" train.batch=64 split.pipeline=2 --checkpoint stages-2 >eval.$n 2>&1 || fail "eval on $n: $(cat eval.$n)"
    evaluates_to eval.$n stages-2
done
for n in 1 2 6; do # whole; by 2 stages; by 3, on two replicas
    ranks $n "$PACELINE" predict job.yaml "${one[@]}" train.batch=19 split.pipeline=$([ $n -eq 6 ] && echo 3 || echo 2) --checkpoint stages-2 --out out-$n.h5 >predict.log 2>&1 || fail "predict on $n: $(cat predict.log)"
done
/usr/bin/python3 -c '
import h5py
whole, *others = ({k: f[k][()] for k in ("output", "class")} for f in map(h5py.File, ("out-1.h5", "out-2.h5", "out-6.h5")))
assert len(whole["output"]) == 203 and abs(whole["output"]).max() > 0.1
assert all(abs(o["output"] - whole["output"]).max() < 1e-6 and (o["class"] == whole["class"]).all() for o in others)' || fail "predict by stages gives something else"
"$PACELINE" inspect stages-2 --export alone.h5 >export.log 2>&1 || fail "export: $(cat export.log)"
mv stages-2 elsewhere
"$tools/compare.py" "$(model whole)" alone.h5 0 0 exact || fail "what was exported differs"
run 1 from-export "${one[@]}" train.init=alone.h5 train.steps=1 train.batch=16

# ---- refused ----------------------------------------------------------------------------------------------------------------
expect 2 "split.pipeline 2 does not divide the 3 ranks" 3 job.yaml split.pipeline=2
expect 2 "split.pipeline with this sync.kind" 2 job.yaml split.pipeline=2 sync.kind=local_sgd
expect 2 "split.at names the first layer of each rank but the first" 2 job.yaml split.pipeline=2 split.at=[conv1,ip1]
expect 2 "no layer has this name; did you mean" 2 job.yaml split.pipeline=2 split.at=conv9
expect 2 "split.pipeline" 8 job.yaml split.pipeline=8

# What is damaged is not taken for nothing.
cp -r elsewhere damaged && rm "damaged/$(cat damaged/latest)/parts/part-00001.h5"
expect 6 "damaged holds checkpoints, but none that is whole" 2 job.yaml "${one[@]}" split.pipeline=2 checkpoint.dir=damaged report.dir=damaged
/usr/bin/python3 -c 'import h5py, sys, numpy as n; f = h5py.File(sys.argv[1]); sys.exit(not (n.isnan(f["params/ip1/weight"][()]).all() and n.isfinite(f["params/conv1/weight"][()]).all()))' \
    "$(model damaged)" || fail "another reader takes what is missing for numbers"
"$PACELINE" inspect train.h5 --export none.h5 >out 2>&1 && fail "a data set was exported"
grep -q "train.h5 is no checkpoint" out && [ ! -e none.h5 ] || fail "export of a data set: $(cat out)"

# ---- lost --------------------------------------------------------------------------------------------------------------------
expect 5 "waited 2 s for rank 1, stage 1 of this replica" 2 job.yaml "${one[@]}" split.pipeline=2 exchange.timeout="2 s" debug.fault="step@rank=1@step=3:hang" \
    checkpoint.dir=lost-hang report.dir=lost-hang
expect 5 "waited 2 s for rank 3, stage 1 of this replica" 4 job.yaml "${one[@]}" split.pipeline=2 exchange.timeout="2 s" debug.fault="step@rank=3@step=3:hang" checkpoint.dir=lost-hang2 report.dir=lost-hang2
expect 4 "is not finite" 4 job.yaml "${one[@]}" split.pipeline=2 optimizer.lr=1e15 checkpoint.dir=nan report.dir=nan
row_loses "${one[@]}" split.pipeline=2
finish
