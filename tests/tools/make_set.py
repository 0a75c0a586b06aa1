#!/usr/bin/python3
"""make_set.py OUT N CHANNELS SIZE CLASSES SEED [WHAT]: a small set that can be learned (class patterns in noise).
WHAT: damaged variants for the tests of bad input."""
import sys
import h5py
import numpy as np

out, n, c, s, k, seed = sys.argv[1], *map(int, sys.argv[2:7])
what = sys.argv[7] if len(sys.argv) > 7 else ""
patterns = np.random.default_rng(7).uniform(0, 255, (k, c, s, s))
r = np.random.default_rng(seed)
label = r.integers(0, k, n)
data = np.clip(0.5 * patterns[label] + r.normal(0, 60, (n, c, s, s)) + 64, 0, 255).astype(np.uint8)
if what == "label":
    label[n // 2] = k + 3
if what == "nan":
    data = data.astype(np.float32)
    data[n // 2, 0, 0, 0] = np.nan
if what == "huge":
    data = data.astype(np.float32) * 1e30
with h5py.File(out, "w") as f:
    chunk = (min(64, n), c, s, s)
    f.create_dataset("wrong" if what == "name" else "data", data=data, chunks=chunk, compression="gzip", shuffle=True)
    f.create_dataset("label", data=label.astype(np.int32))
if what == "truncated":
    with open(out, "r+b") as f:
        f.truncate(f.seek(0, 2) // 2)
