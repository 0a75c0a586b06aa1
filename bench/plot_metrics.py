#!/usr/bin/env python3
"""metrics.jsonl of one or several runs to a picture: loss and accuracy over steps."""
import argparse
import json
import os
import sys

try:
    import matplotlib
except ImportError:
    if sys.executable != "/usr/bin/python3" and not os.environ.get("PACELINE_REEXEC"):
        os.environ["PACELINE_REEXEC"] = "1"
        os.execv("/usr/bin/python3", ["/usr/bin/python3"] + sys.argv)
    sys.exit("matplotlib is needed: apt-get install python3-matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(path):
    """step -> values; a later life of the run replaces the steps that it did again; a torn last line is left out."""
    train, test = {}, {}
    with open(path) as f:
        for line in f:
            try:
                e = json.loads(line)
            except ValueError:
                continue
            if e.get("event") in ("step", "eval"):
                (train if e["event"] == "step" else test)[e["step"]] = e
    return sorted(train.items()), sorted(test.items())


a = argparse.ArgumentParser(description=__doc__)
a.add_argument("metrics", nargs="+"), a.add_argument("--out", help="default: metrics.png beside the first file")
a = a.parse_args()
figure, (loss, accuracy) = plt.subplots(1, 2, figsize=(11, 4))
for path in a.metrics:
    try:
        train, test = read(path)
    except OSError as e:
        sys.exit("plot_metrics.py: %s" % e)
    name = os.path.basename(os.path.dirname(os.path.abspath(path)))
    for axis, key in ((loss, "loss"), (accuracy, "accuracy")):
        for points, what, style in ((train, "train", {"alpha": .5, "lw": 1}), (test, "test", {"marker": "o", "ms": 4})):
            values = [(s, e[key]) for s, e in points if key in e]
            if values:
                axis.plot(*zip(*values), label="%s, %s" % (name, what), **style)
        axis.set_xlabel("step"), axis.set_ylabel(key), axis.grid(alpha=.3)
for axis in (loss, accuracy):
    if axis.has_data():
        axis.legend(fontsize=8)
figure.tight_layout()
out = a.out or os.path.join(os.path.dirname(a.metrics[0]), "metrics.png")
figure.savefig(out, dpi=110)
print(out)
