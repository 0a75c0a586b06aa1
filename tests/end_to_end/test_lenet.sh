#!/usr/bin/env bash
# LeNet: one step on 1 to 4 ranks, the same bits twice, by MPI's all-reduce, and when stopped near step 100 and resumed.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
cd "$PL_TMPDIR" || exit 1
/usr/bin/python3 "$PL_SOURCE_DIR/data/scripts/make_digits.py" --train 3000 --test 500 --out . >/dev/null || exit 1
job=("$PL_SOURCE_DIR/models/lenet/digits.yaml" data.train.file=digits-train.h5 data.test.file=digits-test.h5)

for n in 1 2 3 4; do run $n one-$n train.steps=1 train.global_batch=190 train.eval_every=never; done
for n in 2 3 4; do compare one-1 one-$n 1e-6 1e-5; done

run 2 straight train.steps=150
run 2 again train.steps=150
compare straight again 0 0 exact
run 2 native train.steps=150 exchange.two_level=never # two numbers have one sum
compare straight native 0 0 exact
( train 2 "${job[@]}" checkpoint.dir=stopped report.dir=stopped train.steps=150 report.every="1 step" >stopped.log 2>&1; echo $? >stopped.code ) &
waiter=$!
stop_at stopped '9[0-9]'
wait $waiter
[ "$(cat stopped.code)" = 75 ] || fail "a stopped run ended with $(cat stopped.code), wanted 75"
step=$(sed 's/step-0*//' stopped/latest)
echo "stopped after step $step of 150"
[ "$step" -ge 90 ] && [ "$step" -lt 140 ] || fail "stopped after step $step, wanted near 100"
run 2 stopped train.steps=150
compare straight stopped 0 0 exact
finish
