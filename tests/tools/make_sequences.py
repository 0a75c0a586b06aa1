#!/usr/bin/python3
"""make_sequences.py OUT SAMPLES SEED: data [N, 12] and label [N, 12], the numbers that follow: each sequence goes round 11 numbers by
a step of 1 to 3 of its own, step [N] (from 0), which its first two tell."""
import sys
import h5py
import numpy as np

g, n = np.random.default_rng(int(sys.argv[3])), int(sys.argv[2])
step = g.integers(1, 4, n)
ids = (g.integers(0, 11, n)[:, None] + step[:, None] * np.arange(13)) % 11
with h5py.File(sys.argv[1], "w") as f:
    f["data"], f["label"], f["step"] = ids[:, :12].astype("u1"), ids[:, 1:].astype("i8"), (step - 1).astype("u1")
