#!/usr/bin/python3
"""A plain model of local SGD in double, against which runs of it are held.
  local_sgd.py init WEIGHTS.h5: weights of a network 144 - 16 relu - 4 classes, for train.init (net-dense.yaml)
  local_sgd.py check WEIGHTS.h5 TRAIN.h5 CHECKPOINT METRICS RANKS GLOBAL_BATCH STEPS TAU AVERAGE(0|1) LIMIT [CLIP]
trains the same (data in its order, momentum 0.9, lr 0.05, decay 0.0005, scale 1/256) and compares the parameters, by the
norm of the difference over the norm, and the loss of each averaging in metrics.jsonl. Prints both."""
import json
import sys
import h5py
import numpy as np

NAMES = ["ip1/weight", "ip1/bias", "ip2/weight", "ip2/bias"]
SHAPES = [(16, 144), (16,), (4, 16), (4,)]


def gradient(w, x, y):
    """Sum over samples: loss, gradients."""
    h = np.maximum(x @ w[0].T + w[1], 0)
    z = h @ w[2].T + w[3]
    z -= z.max(1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).sum()
    p[np.arange(len(y)), y] -= 1
    d = p @ w[2] * (h > 0)
    return loss, [d.T @ x, d.sum(0), p.T @ h, p.sum(0)]


def share(samples, batch, step, rank, ranks):
    """What a rank reads of a global batch: section 7 of the design, and pl_sampler_share."""
    step %= -(-samples // batch)
    begin, end, each = step * batch, min((step + 1) * batch, samples), -(-batch // ranks)
    return min(begin + rank * each, end), min(begin + (rank + 1) * each, end)


def train(w0, x, y, ranks, batch, steps, tau, average, clip):
    w = [[a.copy() for a in w0] for _ in range(ranks)]
    v = [[np.zeros_like(a) for a in w0] for _ in range(ranks)]
    seen, loss, losses = np.zeros(ranks), 0.0, {}
    for step in range(steps):
        for r in range(ranks):
            a, b = share(len(x), batch, step, r, ranks)
            if a == b:
                continue
            one, g = gradient(w[r], x[a:b], y[a:b])
            loss += one
            seen[r] += b - a
            norm = np.sqrt(sum((k ** 2).sum() for k in g)) / (b - a)
            factor = min(1, clip / norm) if clip else 1
            for i in range(4):
                v[r][i] = 0.9 * v[r][i] + factor * g[i] / (b - a) + 0.0005 * w[r][i] * DECAYS[i]
                w[r][i] -= 0.05 * v[r][i]
        if (step + 1) % tau == 0 or step + 1 == steps:
            for what in (w, v) if average else (w,):
                mean = [sum(seen[r] * what[r][i] for r in range(ranks)) / seen.sum() for i in range(4)]
                for r in range(ranks):
                    what[r] = [m.copy() for m in mean]
            losses[step + 1], loss, seen = loss / seen.sum(), 0.0, np.zeros(ranks)
    return w[0], losses


DECAYS = [1, 1, 1, 1]
if sys.argv[1] == "init":
    r = np.random.default_rng(3)
    with h5py.File(sys.argv[2], "w") as f:
        for name, shape in zip(NAMES, SHAPES):
            f["params/" + name] = (r.normal(0, 0.1, shape)).astype(np.float32)
    sys.exit()
weights, data, checkpoint, metrics = sys.argv[2:6]
ranks, batch, steps, tau, average = map(int, sys.argv[6:11])
limit, clip = float(sys.argv[11]), float(sys.argv[12]) if len(sys.argv) > 12 else 0
read = lambda path: [h5py.File(path)["params/" + n][()].astype(float) for n in NAMES]
with h5py.File(data) as f:
    x, y = f["data"][()].reshape(-1, 144) / 256.0, f["label"][()]
wanted, losses = train(read(weights), x, y, ranks, batch, steps, tau, average, clip)
found = read(checkpoint)
worst = max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(wanted, found))
said = {e["step"]: e["loss"] for e in map(json.loads, open(metrics)) if e["event"] == "step"}
apart = max(abs(losses[s] - said.get(s, np.inf)) for s in losses)
print("parameters differ by %.1e, losses by %.1e (limit %.0e)" % (worst, apart, limit))
if said.keys() != losses.keys():
    print("steps reported: %s, averaged: %s" % (sorted(said), sorted(losses)))
sys.exit(not (worst <= limit and apart <= limit and said.keys() == losses.keys()))
