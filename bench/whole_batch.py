#!/usr/bin/env python3
"""L-BFGS on the whole set (sync.kind sandblaster) against gradient descent on the whole set with the best of fixed steps:
the loss over the training set after as many passes over it.
  bench/whole_batch.py TRAIN.h5 [--hidden "32 32"] [--activation tanh] [--passes "50 100 200"] [--least 0.02] [--most 40]
    [--seeds "1 2 3"] [--ranks 1] [--batch 256] [--out DIR] [key=value ...]
A dense network with those hidden layers, "" for logistic regression. Steps of gradient descent go from --least to --most by
factors of 2, then by the square root of 2 round the best; which is best is chosen anew for every number of passes and every
seed, with the loss that is compared, so that it is the best there is. Its loss is that after so many steps, one pass each;
of L-BFGS it is that of the last step whose passes, those of its line search included, are no more. Every loss is of the same
evaluation. Writes whole_batch.json and .txt to DIR (.)."""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
a.add_argument("train")
a.add_argument("--hidden", default="32 32")
a.add_argument("--activation", default="tanh")
a.add_argument("--passes", default="50 100 200")
a.add_argument("--least", type=float, default=0.02)
a.add_argument("--most", type=float, default=40)
a.add_argument("--seeds", default="1 2 3")
a.add_argument("--ranks", type=int, default=1)
a.add_argument("--batch", type=int, default=256)
a.add_argument("--out", default=".")
a, keys = a.parse_known_args()
wrong = [k for k in keys if "=" not in k or k.startswith("-")]
if wrong:
    sys.exit("whole_batch.py: %s is no key=value; see --help" % wrong[0])
try:
    import h5py
except ImportError:
    if sys.executable != "/usr/bin/python3" and not os.environ.get("PACELINE_REEXEC"):
        os.environ["PACELINE_REEXEC"] = "1"
        os.execv("/usr/bin/python3", ["/usr/bin/python3"] + sys.argv)
    sys.exit("whole_batch.py: h5py is missing: apt-get install python3-h5py, and run it by /usr/bin/python3")
passes = sorted(int(p) for p in a.passes.replace(",", " ").split())
program = os.environ.get("PACELINE", os.path.join(home, "build/release/paceline"))
if not os.access(program, os.X_OK):
    sys.exit("whole_batch.py: %s is not built; run jobs/quickstart.sh or set PACELINE" % program)
with h5py.File(a.train, "r") as f:
    samples, features = f["data"].shape
    classes = int(f["label"][:].max()) + 1


def write_job(path):
    layers = ["    - {name: fc%d, kind: dense, units: %s, activation: %s}" % (i, n, a.activation) for i, n in enumerate(a.hidden.split(), 1)]
    layers += ["    - {name: out, kind: dense, units: %d}" % classes, "    - {name: loss, kind: softmax_loss}"]
    sets = "{file: %s}" % os.path.abspath(a.train)
    with open(path, "w") as f:
        f.write("model:\n  name: dense\n  input: {data: [%d], label: int}\n  layers:\n%s\n" % (features, "\n".join(layers)))
        f.write("data: {train: %s, test: %s}\ntrain: {steps: 1}\nreport: {every: 1 steps}\n" % (sets, sets))


def run(tmp, seed, more):
    """The events of a run; none where the loss was not finite."""
    out = tempfile.mkdtemp(dir=tmp)
    command = ["mpirun", "--oversubscribe", "-n", str(a.ranks)] if a.ranks > 1 else []
    command += [program, "train", os.path.join(tmp, "job.yaml"), "train.seed=%d" % seed, "train.batch=%d" % a.batch, "report.dir=" + out] + more + keys
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1"))
    if done.returncode not in (0, 4):
        sys.exit("whole_batch.py: %s ended with %d\n%s" % (" ".join(command), done.returncode, done.stderr[-2000:]))
    return [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))] if done.returncode == 0 else []


def descend(tmp, seed, lr):
    """Loss by passes of gradient descent."""
    every = math.gcd(*passes)
    events = run(tmp, seed, ["optimizer.kind=sgd", "optimizer.lr=%g" % lr, "train.steps=%d" % passes[-1], "train.eval_every=%d steps" % every,
                             "train.accumulate=%d" % -(-samples // (a.batch * a.ranks))])
    losses = {e["step"]: e["loss"] for e in events if e["event"] == "eval"}
    return {p: losses.get(p, math.inf) for p in passes}


def sandblaster(tmp, seed):
    events = run(tmp, seed, ["sync.kind=sandblaster", "train.epochs=%d" % passes[-1], "train.eval_every=1 steps"])
    used = {e["step"]: e["passes"] for e in events if e["event"] == "step"}
    seen = {e["step"]: e["loss"] for e in events if e["event"] == "eval"}
    return {p: seen[max(s for s in used if used[s] <= p)] for p in passes}, {p: max(s for s in used if used[s] <= p) for p in passes}


def fixed_steps(tmp, seed):
    lr, losses = a.least, {}
    while lr <= a.most:
        losses[lr] = descend(tmp, seed, lr)
        lr *= 2
    for best in {min(losses, key=lambda r: losses[r][p]) for p in passes}:
        for lr in (best / math.sqrt(2), best * math.sqrt(2)):
            losses[lr] = descend(tmp, seed, lr)
    return losses


os.makedirs(a.out, exist_ok=True)
rows = []
with tempfile.TemporaryDirectory() as tmp:
    write_job(os.path.join(tmp, "job.yaml"))
    for seed in map(int, a.seeds.split()):
        fixed = fixed_steps(tmp, seed)
        lbfgs, steps = sandblaster(tmp, seed)
        for p in passes:
            lr = min(fixed, key=lambda r: fixed[r][p])
            rows.append({"seed": seed, "passes": p, "lr": lr, "descent": fixed[lr][p], "sandblaster": lbfgs[p], "steps": steps[p],
                         "edge": lr <= a.least or lr * math.sqrt(2) >= a.most})
text = "%s\n" % ", ".join(["%s: %d samples" % (os.path.basename(a.train), samples), "hidden layers %s" % (a.hidden or "none"), *keys])
text += "%6s %7s %10s %16s %14s %10s\n" % ("seed", "passes", "best lr", "gradient descent", "sandblaster", "its steps")
for r in rows:
    text += "%6d %7d %9.4g%s %16.4f %14.4f %10d\n" % (r["seed"], r["passes"], r["lr"], "!" if r["edge"] else " ", r["descent"], r["sandblaster"], r["steps"])
if any(r["edge"] for r in rows):
    text += "! at the edge of what was tried: give --least or --most\n"
with open(os.path.join(a.out, "whole_batch.json"), "w") as f:
    json.dump({"train": a.train, "hidden": a.hidden, "keys": keys, "rows": rows}, f, indent=1)
with open(os.path.join(a.out, "whole_batch.txt"), "w") as f:
    f.write(text)
print(text, end="")
worse = [r for r in rows if not r["sandblaster"] < r["descent"]]
sys.exit("whole_batch.py: L-BFGS was no better in %d of %d rows" % (len(worse), len(rows)) if worse else 0)
