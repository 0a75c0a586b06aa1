#!/usr/bin/env python3
"""Checks an HDF5 set as a training run would: shapes, types, labels, NaN; says how it is stored. Exit 1 on a problem."""
import argparse
import io
import sys

from common import h5py, missing, np, stop

a = argparse.ArgumentParser(description=__doc__)
a.add_argument("file"), a.add_argument("--data", default="data"), a.add_argument("--label", default="label")
a = a.parse_args()
problems = []


def decodes(raw):
    try:
        from PIL import Image
    except ImportError:
        missing("Pillow is needed to check JPEG images: apt-get install python3-pil")
    try:
        with Image.open(io.BytesIO(raw.tobytes())) as image:
            image.load()
            return image.format == "JPEG"
    except (OSError, SyntaxError):
        return False


try:
    f = h5py.File(a.file, "r")
    data, label = f[a.data], f[a.label]
except (OSError, KeyError) as e:
    stop("%s: %s" % (a.file, e))
print("%s: /%s %s %s, chunks %s, %s; /%s %s %s" % (a.file, a.data, list(data.shape), data.dtype, data.chunks, data.compression or "not compressed", a.label, list(label.shape), label.dtype))
jpeg = h5py.check_vlen_dtype(data.dtype) == np.uint8 and data.attrs.get("encoding") == "jpeg"
if len(data) == 0 or data.ndim != 1 if jpeg else data.ndim < 2 or len(data) == 0:
    problems.append("data is not [N, ...] with samples")
if len(data) != len(label):
    problems.append("%d samples but %d labels" % (len(data), len(label)))
if data.chunks and not jpeg and data.chunks[0] * np.prod(data.shape[1:]) * data.dtype.itemsize > 64 << 20:
    problems.append("a chunk is larger than 64 MB")
values = label[()]
if values.dtype.kind in "iu":
    count = np.bincount(values.ravel().astype(int) - min(0, values.min()))
    print("labels %d to %d, %s of each: %s%s" % (values.min(), values.max(), "samples" if label.ndim == 1 else "positions", count.tolist()[:32], " ..." if len(count) > 32 else ""))
    if values.min() < 0:
        problems.append("a label below 0")
elif not np.isfinite(values).all():
    problems.append("a label that is not finite")
entries, most = len(f["vocabulary"]) if "vocabulary" in f else 0, 0
rows = data.chunks[0] if data.chunks else 1024
for first in range(0, len(data), rows):
    part = data[first:first + rows]
    if jpeg:
        bad = [first + i for i, raw in enumerate(part) if not decodes(raw)]
        problems += ["sample %d is no JPEG image that can be decoded" % i for i in bad[:1]]
        if bad:
            break
    if entries and part.dtype.kind in "iu":
        most = max(most, int(part.max()))
    if part.dtype.kind == "f" and not np.isfinite(part).all():
        problems.append("sample %d holds NaN or an infinity" % (first + np.argwhere(~np.isfinite(part))[0][0]))
        break
if entries:
    print("ids up to %d, a vocabulary of %d" % (most, entries))
    if max(most, values.max() if label.shape == data.shape else 0) >= entries:
        problems.append("an id that is not in the vocabulary")
for p in problems:
    print("problem: " + p)
sys.exit(bool(problems))
