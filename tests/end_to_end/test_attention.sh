#!/usr/bin/env bash
# Transformers: attention, layer normalisation, GELU, position embeddings. What is learnt, on one rank and several, by every backend,
# split and not, and after a stop; what predict writes against the same formulas in numpy; what is refused.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
cp "$tools/net-attention.yaml" net.yaml
cat >job.yaml <<'Y'
model: net.yaml
data: {train: {file: train.h5}, test: {file: test.h5}}
train: {epochs: 8, batch: 20, seed: 1}
optimizer: {kind: adamw, lr: 0.01, weight_decay: 0.01, clip_norm: 1, schedule: {kind: cosine}, warmup: 20 steps}
Y
"$tools/make_sequences.py" train.h5 1010 1 && "$tools/make_sequences.py" test.h5 103 2 || exit 1

# It learns what the first two positions tell; at the first one nothing does.
run 1 one
holds "$(number one eval accuracy) > 0.9 && $(number one eval loss) < 0.3" "$(event one eval)"
sed 's/, causal: true//' net.yaml >all.yaml # a position that sees those behind it sees what it is asked for
run 1 all model=all.yaml
holds "$(number all eval accuracy) > 0.99" "$(event all eval)"
# The bias of the keys changes nothing: Adam would make steps of the rounding of its gradient.
job=(job.yaml train.epochs=1 train.threads=1 train.global_batch=40 "optimizer={kind: momentum, lr: 0.05}")
run 1 base
run 1 again
compare base again 0 0 exact
run 1 threads train.threads=2
compare base threads 1e-4 1e-3
run 1 reference device.kind=reference
compare base reference 1e-4 1e-3
run 2 shared
compare base shared 1e-4 1e-3
run 2 reproducible train.reproducible=true
run 4 reproducible-4 train.reproducible=true
compare reproducible reproducible-4 0 0 exact
run 1 parts train.accumulate=4 train.global_batch=40
run 2 pipeline split.pipeline=2
compare parts pipeline 1e-4 1e-3
run 2 node split.optimizer=node
compare shared node 0 0 exact
stops_and_goes_on
near_in_bf16 base

# What is written, against the formulas of PyTorch's documentation.
predicts one
/usr/bin/python3 - "$(model one)" <<'PY' || fail "predictions are not what numpy computes"
import h5py, math, numpy as np, sys
p = h5py.File(sys.argv[1], "r")["params"]
get = lambda layer, name: p[layer][name][()].astype("f8")
dense = lambda layer, v: v @ get(layer, "weight").T + get(layer, "bias")
def normal(v, epsilon=1e-5):
    return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + epsilon)
norm = lambda layer, v, *epsilon: normal(v, *epsilon) * get(layer, "scale") + get(layer, "shift")
gelu = lambda v: v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2)))
def softmax(v):
    e = np.exp(v - v.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)
x = h5py.File("test.h5", "r")["data"][()]
n, t = x.shape
v = get("embed", "weight")[x] + get("place", "weight")
q, k, w = (u.reshape(n, t, 3, 8).transpose(0, 2, 1, 3) for u in np.split(dense("qkv", norm("norm1", v)), 3, 2))
score = np.where(np.tri(t, dtype=bool), q @ k.transpose(0, 1, 3, 2) / math.sqrt(8), -np.inf)
v = v + dense("mix", (softmax(score) @ w).transpose(0, 2, 1, 3).reshape(n, t, 24))
v = v + dense("down", gelu(dense("up", norm("norm2", v, 0.1))))
wanted = softmax(dense("out", normal(v)))
f = h5py.File("P.h5", "r")
assert f["output"].shape == (103, 12, 11), f["output"].shape
assert abs(f["output"][()] - wanted).max() < 1e-5, abs(f["output"][()] - wanted).max()
assert (f["class"][()] == f["output"][()].argmax(-1)).all()
PY

no_network "72 features are not 3 x 5 x a whole number" 's/heads: 3/heads: 5/'
no_network "let a dense layer with \`positions: true\` before it give a multiple of 15" 's/heads: 3/heads: 5/'
no_network "look: attention needs \`heads\`" 's/heads: 3, //'
no_network "look: attention needs an input of positions x features, but gets 72" '/name: qkv/s/, positions: true//'
no_network "place: position_embedding needs an input of positions x features, but gets 12" '/embedding, entries/d'
no_network "norm1: layernorm needs epsilon > 0" '/name: norm1/s/layernorm/layernorm, epsilon: 0/'
finish
