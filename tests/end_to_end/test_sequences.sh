#!/usr/bin/env bash
# Sequences: embedding, LSTM, GRU, dense layers and a loss at every position. What is learnt, on one rank and several, by every
# backend, split and not, and after a stop; what predict writes against the same formulas in numpy; what is refused.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
cp "$tools/net-sequence.yaml" net.yaml
sed -e 's/label: \[int, 12\]/label: int/' -e 's/units: 20}/units: 20, last: true}/' -e 's/, positions: true//' -e 's/units: 11}/units: 3}/' net.yaml >class.yaml
cat >job.yaml <<'Y'
model: net.yaml
data: {train: {file: train.h5}, test: {file: test.h5}}
train: {epochs: 6, batch: 20, seed: 1}
optimizer: {kind: adam, lr: 0.01, clip_norm: 5}
Y
"$tools/make_sequences.py" train.h5 1010 1 && "$tools/make_sequences.py" test.h5 103 2 || exit 1
/usr/bin/python3 - <<'PY' || exit 1
import h5py, numpy as np
with h5py.File("train.h5") as f:
    train = {k: f[k][()] for k in f}
def write(name, sets, **change):
    with h5py.File(name, "w") as f:
        for k, v in {**sets, **change}.items():
            f[k] = v
write("float.h5", train, data=train["data"].astype("f4"))
bad = {k: v.copy() for k, v in train.items()}
bad["data"][7, 3] = 11
write("bad-data.h5", bad)
bad = {k: v.copy() for k, v in train.items()}
bad["label"][5, 2] = 11
write("bad-label.h5", bad)
write("half.h5", train, data=train["data"] + np.float32(0.5))
write("one-label.h5", train, label=train["step"])
g = np.random.default_rng(4)
none = g.random((1010, 12)) < g.random((1010, 1)) # of each sequence another part
none[np.arange(1010), g.integers(0, 12, 1010)] = False
part = np.where(none, -1, train["label"])
write("part.h5", train, label=part)
part[5, 2] = -2
write("bad-none.h5", train, label=part)
part[5] = -1
write("all-none.h5", train, label=part)
step = train["step"].astype("i4")
step[5] = -1
write("no-step.h5", train, step=step)
PY

# It learns what only memory tells; the loss is the mean over positions.
run 1 one train.batch=40
holds "$(number one eval accuracy) > 0.9 && $(number one eval accuracy) <= 1 && $(number one eval loss) < 0.5" "$(event one eval)"
job=(job.yaml model=class.yaml data.train.label=step data.test.label=step)
run 1 class
holds "$(number class eval accuracy) > 0.97" "$(event class eval)"
job=(job.yaml train.epochs=1 train.threads=1 train.global_batch=40)
run 1 base
run 1 again
compare base again 0 0 exact
run 1 threads train.threads=2
compare base threads 1e-4 1e-3
run 1 floats data.train.file=float.h5
compare base floats 0 0 exact
run 1 reference device.kind=reference
compare base reference 1e-4 1e-3
for n in 2 $(sanitized || echo 3); do
    run $n shared-$n
    compare base shared-$n 1e-4 1e-3
    holds "($(number base eval loss) - $(number shared-$n eval loss))^2 < 1e-8" "$(event base eval), on $n ranks $(event shared-$n eval)"
done
run 2 tcp exchange.transport=tcp exchange.bucket_mb=0.005
compare base tcp 1e-4 1e-3
run 2 averaged sync.kind=local_sgd sync.tau=1 optimizer.kind=sgd
run 1 plain optimizer.kind=sgd
compare plain averaged 1e-3 1e-2 # clipped by rank
run 2 reproducible train.reproducible=true
run 4 reproducible-4 train.reproducible=true
compare reproducible reproducible-4 0 0 exact

# split between layers and within them; what only some ranks have is dropped by the same bits
run 1 parts train.accumulate=4 train.global_batch=40
run 2 pipeline split.pipeline=2
compare parts pipeline 1e-4 1e-3
run 2 tensor split.tensor=2 model=class.yaml data.train.label=step data.test.label=step
run 1 whole model=class.yaml data.train.label=step data.test.label=step
compare whole tensor 1e-4 1e-3
expect 2 "split.tensor 2 divides the outputs of no dense layer" 2 job.yaml checkpoint.dir=no report.dir=no split.tensor=2 # by positions nothing is shared out
run 2 node split.optimizer=node
compare shared-2 node 0 0 exact

# a normalisation behind a layer of positions, of each position over samples and features: in evaluation it is not folded, as it is not
# where something stands between
sed '/name: loss/i\  - {name: norm, kind: batchnorm}' net.yaml >norm.yaml
sed '/name: norm/i\  - {name: between, kind: dropout, rate: 0}' norm.yaml >between.yaml
for how in norm between; do run 1 $how model=$how.yaml train.epochs=3 optimizer.lr=0.02; done
holds "($(number norm eval loss) - $(number between eval loss))^2 < 1e-10" "$(event norm eval), with a layer between $(event between eval)"

# stopped, and on again
stops_and_goes_on
near_in_bf16 base

# What is written, against the formulas of PyTorch's documentation.
predicts one
/usr/bin/python3 - "$(model one)" <<'PY' || fail "predictions are not what numpy computes"
import h5py, numpy as np, sys
p = h5py.File(sys.argv[1], "r")["params"]
get = lambda layer, name: p[layer][name][()].astype("f8")
x = h5py.File("test.h5", "r")["data"][()]
sigmoid = lambda v: 1 / (1 + np.exp(-v))
v = get("embed", "weight")[x]
def both(layer, v, h):
    return v @ get(layer, "weight").T + get(layer, "bias"), h @ get(layer, "recurrent").T + get(layer, "recurrent_bias")
def lstm(v):
    h = c = np.zeros((len(v), 24))
    out = []
    for t in range(v.shape[1]):
        i, f, g, o = np.split(sum(both("first", v[:, t], h)), 4, 1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out, 1)
def gru(v):
    h = np.zeros((len(v), 20))
    out = []
    for t in range(v.shape[1]):
        a, u = (np.split(s, 3, 1) for s in both("second", v[:, t], h))
        r, z = sigmoid(a[0] + u[0]), sigmoid(a[1] + u[1])
        h = (1 - z) * np.tanh(a[2] + r * u[2]) + z * h
        out.append(h)
    return np.stack(out, 1)
v = gru(lstm(v))
v = np.maximum(v @ get("hidden", "weight").T + get("hidden", "bias"), 0) @ get("out", "weight").T + get("out", "bias")
e = np.exp(v - v.max(-1, keepdims=True))
wanted = e / e.sum(-1, keepdims=True)
f = h5py.File("P.h5", "r")
assert f["output"].shape == (103, 12, 11) and f["class"].shape == (103, 12), (f["output"].shape, f["class"].shape)
assert abs(f["output"][()] - wanted).max() < 1e-5, abs(f["output"][()] - wanted).max()
assert (f["class"][()] == f["output"][()].argmax(-1)).all()
PY

# The gradient is that of the mean over samples and positions: one step over the whole set moves the last bias by it.
sed '/dropout/d' net.yaml >plain.yaml
job=(job.yaml model=plain.yaml train.batch=1010 train.eval_every=never optimizer={kind:\ sgd,\ lr:\ 1})
run 1 moved train.init="$(model one)" train.steps=1
ranks 1 "$PACELINE" predict job.yaml model=plain.yaml checkpoint.dir=one --set train --out T.h5 >predict.log 2>&1 || fail "predict: $(cat predict.log)"
/usr/bin/python3 - "$(model one)" "$(model moved)" <<'PY' || fail "a step is not by the mean gradient"
import h5py, numpy as np, sys
before, after = (h5py.File(f)["params/out/bias"][()].astype("f8") for f in sys.argv[1:])
wanted = (h5py.File("T.h5")["output"][()] - np.eye(11)[h5py.File("train.h5")["label"][()]]).mean((0, 1))
print("a step of %.2e, wanted %.2e, %.1e apart" % (np.linalg.norm(before - after), np.linalg.norm(wanted), np.linalg.norm(before - after - wanted)))
assert np.linalg.norm(before - after - wanted) < 1e-3 * np.linalg.norm(wanted)
PY

# Positions without a label: of a sample those count that have one, in the gradient, in the loss and in what is right.
run 1 part train.init="$(model one)" train.steps=1 data.train.file=part.h5
ranks 1 "$PACELINE" eval job.yaml model=plain.yaml checkpoint.dir=one data.test.file=part.h5 >part.eval 2>&1 || fail "eval: $(cat part.eval)"
/usr/bin/python3 - "$(model one)" "$(model part)" <<'PY' || fail "positions without a label count: $(cat part.eval)"
import h5py, numpy as np, re, sys
before, after = (h5py.File(f)["params/out/bias"][()].astype("f8") for f in sys.argv[1:])
p, label = h5py.File("T.h5")["output"][()].astype("f8"), h5py.File("part.h5")["label"][()]
counts = (label >= 0) / (label >= 0).sum(1, keepdims=True) / len(label)
wanted = ((p - np.eye(11)[label]) * counts[:, :, None]).sum((0, 1))
far = np.linalg.norm(before - after - wanted) / np.linalg.norm(wanted)
loss = -(counts * np.log(np.take_along_axis(p, np.maximum(label, 0)[:, :, None], 2)[:, :, 0])).sum()
right = (counts * (p.argmax(2) == label)).sum()
said = [float(v) for v in re.search(r"loss ([0-9.]+), accuracy ([0-9.]+)", open("part.eval").read()).groups()]
print("a step %.1e off, loss and accuracy %s, wanted %.6f, %.6f" % (far, said, loss, right))
assert far < 1e-3 and abs(said[0] - loss) < 1e-4 and abs(said[1] - right) < 1e-4
PY

expect 3 "bad-data.h5:/data: sample 7 has 11 at element 3, wanted an integer of 0..10" 2 job.yaml checkpoint.dir=no report.dir=no data.train.file=bad-data.h5
expect 3 ".5 at element 0, wanted an integer of 0..10" 1 job.yaml checkpoint.dir=no report.dir=no data.train.file=half.h5
expect 3 "bad-label.h5:/label: sample 5 has label 11 at element 2, wanted 0..10" 1 job.yaml checkpoint.dir=no report.dir=no data.train.file=bad-label.h5
expect 3 "bad-none.h5:/label: sample 5 has label -2 at element 2, wanted 0..10, or -1 where there is none" 1 job.yaml checkpoint.dir=no report.dir=no data.train.file=bad-none.h5
expect 3 "all-none.h5:/label: sample 5 has no label, -1 at all its positions" 2 job.yaml checkpoint.dir=no report.dir=no data.train.file=all-none.h5
expect 3 "no-step.h5:/step: sample 5 has label -1, wanted 0..2" 1 job.yaml model=class.yaml data.train.label=step data.test.label=step checkpoint.dir=no report.dir=no data.train.file=no-step.h5
expect 3 "one-label.h5:/label: wanted [N, 12], found [1010]" 1 job.yaml checkpoint.dir=no report.dir=no data.train.file=one-label.h5
expect 3 "leave out scale, mean, std and augment" 1 job.yaml checkpoint.dir=no report.dir=no data.train.scale=0.5
no_network "softmax_loss of input 12x11, but the input's label is 1 class" 's/\[int, 12\]/int/'
no_network "softmax_loss of input 12x11, but the input's label is 10 classes" 's/\[int, 12\]/[int, 10]/'
no_network "input.label: int for a class, [int, K] for K classes" 's/\[int, 12\]/[int, 12, 2]/'
no_network "first: lstm needs an input of positions x features, but gets 12" '/embedding/d'
no_network "embedding takes the data themselves" 's/kind: dropout, rate: 0.1/kind: embedding, entries: 3, units: 3/'
no_network "embedding needs \`entries\` and \`units\`" 's/entries: 11, //'
no_network "hidden: dense needs an input of positions x features, but gets 20" '/gru/s/20}/20, last: true}/'
finish
