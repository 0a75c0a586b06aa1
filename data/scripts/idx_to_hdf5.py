#!/usr/bin/env python3
"""MNIST, Fashion-MNIST, KMNIST: IDX files (gzipped or not) or .npz to one HDF5 set."""
import argparse
import io

from common import np, read_bytes, stop, write_set


def read(path):
    raw = read_bytes(path)
    if path.endswith(".npz"):
        z = np.load(io.BytesIO(raw))
        return z[z.files[0]]
    if len(raw) < 4 or raw[0] or raw[1] or raw[2] != 8 or raw[3] not in (1, 3):
        stop("%s: not an IDX file of bytes" % path)
    dims = [int.from_bytes(raw[4 + 4 * i:8 + 4 * i], "big") for i in range(raw[3])]
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if body.size != np.prod(dims):
        stop("%s: %d values, the header says %s" % (path, body.size, dims))
    return body.reshape(dims)


a = argparse.ArgumentParser(description=__doc__)
a.add_argument("images"), a.add_argument("labels"), a.add_argument("out")
a.add_argument("--force", action="store_true")
a = a.parse_args()
images, labels = read(a.images), read(a.labels)
if images.ndim != 3 or labels.ndim != 1:
    stop("wanted images [N, H, W] and labels [N], found %s and %s" % (images.shape, labels.shape))
write_set(a.out, images[:, None].astype(np.uint8), labels.astype(np.uint8), a.force)
