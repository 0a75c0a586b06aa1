#!/usr/bin/env bash
# LeNet: one step on 1 to 4 ranks, the same bits twice, by MPI's all-reduce, and when stopped in mid-run and resumed.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
/usr/bin/python3 "$PL_SOURCE_DIR/data/scripts/make_digits.py" --train 3000 --test 500 --out . >/dev/null || exit 1
job=("$PL_SOURCE_DIR/models/lenet/digits.yaml" data.train.file=digits-train.h5 data.test.file=digits-test.h5)

for n in 1 2 3 4; do run $n one-$n train.steps=1 train.global_batch=190 train.eval_every=never; done
for n in 2 3 4; do compare one-1 one-$n 1e-6 1e-5; done

steps=150 stop='9[0-9]'
sanitized && steps=40 stop='1[0-9]'
run 2 straight train.steps=$steps
run 2 again train.steps=$steps
compare straight again 0 0 exact
run 2 native train.steps=$steps exchange.two_level=never # two numbers have one sum
compare straight native 0 0 exact
stopped 2 stopped "$stop" train.steps=$steps report.every="1 step"
step=$(sed 's/step-0*//' stopped/latest)
echo "stopped after step $step of $steps"
[ "$step" -ge 10 ] && [ "$step" -lt $steps ] || fail "stopped after step $step of $steps"
run 2 stopped train.steps=$steps
compare straight stopped 0 0 exact
finish
