#!/usr/bin/env python3
"""CIFAR-10, its binary version (gzipped or not) or its Python version, several batches to one HDF5 set."""
import argparse
import io
import pickle

from common import np, read_bytes, stop, write_set


class Arrays(pickle.Unpickler):
    """Arrays and plain values only: a pickle from elsewhere runs no code here."""

    def find_class(self, module, name):
        if (module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype")) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError("it holds %s.%s" % (module, name))


def read(path):
    raw = read_bytes(path)
    if raw[:1] == b"\x80":
        try:
            batch = Arrays(io.BytesIO(raw), encoding="bytes").load()
            return np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"], np.uint8)
        except Exception as e:
            stop("%s: not a batch of the Python version: %s" % (path, e))
    if not raw or len(raw) % 3073:
        stop("%s: %d bytes are no multiple of 3073" % (path, len(raw)))
    rows = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
    return rows[:, 1:], rows[:, 0]


a = argparse.ArgumentParser(description=__doc__)
a.add_argument("input", nargs="+"), a.add_argument("--out", required=True)
a.add_argument("--force", action="store_true")
a = a.parse_args()
parts = [read(p) for p in a.input]
label = np.concatenate([p[1] for p in parts])
if label.max() > 9:
    stop("label %d: not CIFAR-10" % label.max())
write_set(a.out, np.concatenate([p[0] for p in parts]).reshape(-1, 3, 32, 32), label, a.force)
