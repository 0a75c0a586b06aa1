#!/usr/bin/env bash
# train.precision bf16: refused where the processor cannot; otherwise a network of everything that goes through in bf16 learns as
# well as in fp32, with the same bits twice, on resuming, and (but for rounding) on 1 to 3 ranks.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 1000 400
cat >net.yaml <<'Y'
name: halves
input: {data: [1, 12, 12], label: int}
layers:
  - {name: conv1, kind: conv, filters: 16, kernel: 3, pad: 1, bias: false}
  - {name: bn1, kind: batchnorm}
  - {name: relu1, kind: relu}
  - {name: conv2, kind: conv, filters: 16, kernel: 3, pad: 1}
  - {name: add2, kind: add, from: [conv2, relu1], activation: relu}
  - {name: pool2, kind: maxpool, kernel: 2, stride: 2}
  - {name: norm2, kind: lrn, size: 5, alpha: 0.0001}
  - {name: conv3a, kind: conv, filters: 32, kernel: 1, from: norm2, activation: relu}
  - {name: conv3b, kind: conv, filters: 16, kernel: 3, pad: 1, from: norm2, activation: relu}
  - {name: both, kind: concat, from: [conv3a, conv3b]}
  - {name: pool3, kind: avgpool, kernel: 2, stride: 2}
  - {name: ip1, kind: dense, units: 24, activation: relu}
  - {name: drop1, kind: dropout, rate: 0.1}
  - {name: ip2, kind: dense, units: 4}
  - {name: loss, kind: softmax_loss}
Y
if "$PACELINE" doctor | grep -q '^cpu backend.*no bf16'; then
    expect 2 "train.precision bf16 on CPUs needs AVX512-BF16 or AMX" 2 job.yaml train.precision=bf16
    finish
fi
expect 2 "train.precision bf16 is of device.kind cpu and cuda, this is reference" 2 job.yaml train.precision=bf16 device.kind=reference

for p in fp32 bf16; do
    run 2 $p-learns train.precision=$p optimizer.kind=adam optimizer.lr=0.003 train.epochs=12
    echo "$p: $(event $p-learns eval)"
    holds "$(number $p-learns eval accuracy) >= 0.95" "accuracy of $p"
done
run 2 fp32
run 2 bf16 train.precision=bf16
"$tools/compare.py" "$(model fp32)" "$(model bf16)" 0 0 exact | grep -q "28 tensors, [1-9][0-9]* differ" || fail "bf16 has the bits of fp32"
says bf16 '"precision": "bf16"'
run 2 again train.precision=bf16
compare bf16 again 0 0 exact
stopped 2 stopped 5 train.precision=bf16 debug.fault=step@step=5:delay=2000
run 2 stopped train.precision=bf16
compare bf16 stopped 0 0 exact
for n in 1 2 3; do run $n one-$n train.precision=bf16 train.steps=1 train.global_batch=96 train.eval_every=never; done
for n in 2 3; do compare one-1 one-$n 2e-3 1e-1; done
run 1 piled train.precision=bf16 train.steps=1 train.global_batch=96 train.accumulate=3 train.eval_every=never
compare one-1 piled 2e-3 1e-1
"$PACELINE" eval job.yaml checkpoint.dir=bf16 train.precision=bf16 >out 2>&1 || fail "eval: $(cat out)"
echo "eval: $(tail -n 1 out)"
grep -q "loss $(printf %.3f "$(number bf16 eval loss)")" out || fail "the run ended with $(event bf16 eval), eval says $(cat out)"
# copies of weights that the optimizer keeps up to date, and those that each forward pass makes
run 1 kept train.precision=bf16 optimizer.kind=adam optimizer.lr=0.003
run 1 made train.precision=bf16 optimizer.kind=adam optimizer.lr=0.003 sync.kind=local_sgd sync.tau=1
compare kept made 1e-8 1e-7 # they divide by the samples in another order

# what is flattened in blocks goes on in rows; auxiliary heads; an output that several take, a loss among them
cat >net.yaml <<'Y'
name: flattened
input: {data: [1, 12, 12], label: int}
layers:
  - {name: conv1, kind: conv, filters: 32, kernel: 3, pad: 1, activation: relu}
  - {name: conv2, kind: conv, filters: 32, kernel: 3, stride: 2, pad: 1}
  - {name: flat, kind: flatten}
  - {name: norm, kind: batchnorm, from: flat, activation: relu}
  - {name: relu, kind: relu, from: flat}
  - {name: sum, kind: add, from: [norm, relu]}
  - {name: both, kind: concat, from: [sum, flat]}
  - {name: head, kind: dense, units: 4, from: flat}
  - {name: aside, kind: softmax_loss, weight: 0.3, from: head}
  - {name: ip, kind: dense, units: 4, from: both}
  - {name: loss, kind: softmax_loss}
Y
for p in fp32 bf16; do run 2 flat-$p train.precision=$p train.steps=4 optimizer.lr=0.001; done
for step in 1 2 3 4; do
    a=$(grep '"event": "step"' flat-fp32/metrics.jsonl | sed -nE "$step s/.*\"loss\": ([0-9.e+-]+).*/\1/p")
    b=$(grep '"event": "step"' flat-bf16/metrics.jsonl | sed -nE "$step s/.*\"loss\": ([0-9.e+-]+).*/\1/p")
    holds "($a - $b)^2 <= (0.02 * $a)^2" "losses of step $step, $a in fp32 and $b in bf16"
done
finish
