#!/usr/bin/python3
"""compare.py A B WHOLE TENSOR [exact]: parameters of two checkpoints: the norm of the difference over the norm, in the
whole vector and in each tensor. exact: equal bits, optimizer state too. Prints both values."""
import sys
import h5py
import numpy as np


def read(path, groups):
    found = {}
    with h5py.File(path, "r") as f:
        for g in groups:
            if g in f:
                f[g].visititems(lambda n, d, g=g: found.__setitem__(g + "/" + n, d[()]) if isinstance(d, h5py.Dataset) else None)
    return found


exact = len(sys.argv) > 5
groups = ["params", "optimizer"] if exact else ["params"]
a, b = read(sys.argv[1], groups), read(sys.argv[2], groups)
assert a.keys() == b.keys() and a, "other tensors: %s" % (a.keys() ^ b.keys())
if exact:
    bad = [n for n in a if a[n].tobytes() != b[n].tobytes()]
    print("%d tensors, %d differ %s" % (len(a), len(bad), bad[:3]))
    sys.exit(bool(bad))
whole, tensor = float(sys.argv[3]), float(sys.argv[4])
d = sum(float(((a[n].astype(float) - b[n]) ** 2).sum()) for n in a)
w = sum(float((a[n].astype(float) ** 2).sum()) for n in a)
worst = max((np.linalg.norm(a[n].astype(float) - b[n]) / (np.linalg.norm(a[n].astype(float)) + 1e-12), n) for n in a)
print("whole %.2e (limit %.0e), worst tensor %.2e %s (limit %.0e)" % ((d / w) ** 0.5, whole, worst[0], worst[1], tensor))
sys.exit(not ((d / w) ** 0.5 <= whole and worst[0] <= tensor))
