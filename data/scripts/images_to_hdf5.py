#!/usr/bin/env python3
"""A folder of images, one sub-folder a class (as torchvision's ImageFolder reads it), to an HDF5 set: `data` uint8
[N, 3, S, S], `label` int32 [N]. Classes are numbered in the order of their names, which stand in the label's attribute
`classes`. Each image is scaled so that its shorter side is S, and its centre cut to a square; the order is shuffled.
--jpeg stores the JPEG files as they are, several times smaller than pixels, which a run then decodes, scales and crops."""
import argparse
import io
import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from common import h5py, missing, new_file, np, stop

try:
    from PIL import Image
except ImportError:
    missing("Pillow is needed: apt-get install python3-pil")

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
CHUNK_BYTES = 4 << 20       # of samples that are stored together: few, large reads
ATTRIBUTE_CLASSES = 4000    # more names need the file format of HDF5 1.8

a = argparse.ArgumentParser(description=__doc__)
a.add_argument("folder"), a.add_argument("out")
a.add_argument("--size", type=int, metavar="S", help="side of the stored images (256)")
a.add_argument("--jpeg", action="store_true", help="store the bytes of JPEG files, whatever their size")
a.add_argument("--classes-from", metavar="SET", help="number the classes as this set does, as a test set must")
a.add_argument("--seed", type=int, default=1, help="of the shuffled order (1)")
a.add_argument("--compress", action="store_true", help="with gzip: smaller, slower to read")
a.add_argument("--skip-broken", action="store_true", help="leave out images that cannot be read, and count them")
a.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="that decode images (all cores)")
a.add_argument("--force", action="store_true")
a = a.parse_args()
if a.jpeg and (a.size or a.compress):
    stop("--jpeg stores files as they are: no --size, no --compress")
a.size = 256 if a.size is None else a.size
if not 1 <= a.size <= 16384 or a.threads < 1:
    stop("--size must be from 1 to 16384, --threads at least 1")


def class_names(folders):
    """Names of the classes in the order of their numbers."""
    if not a.classes_from:
        return folders
    try:
        with h5py.File(a.classes_from, "r") as f:
            names = [str(c) for c in f["label"].attrs["classes"]]
    except (OSError, KeyError) as e:
        stop("%s: no class names: %s" % (a.classes_from, e))
    unknown = [c for c in folders if c not in names]
    if unknown:
        stop("%s: %s has no class of this name" % (os.path.join(a.folder, unknown[0]), a.classes_from))
    return names


def images_of(folder):
    """Paths of all images in and below folder, in an order that depends on their names alone."""
    paths = []
    for where, below, names in os.walk(folder, followlinks=True):
        below.sort()
        paths += [os.path.join(where, n) for n in sorted(names) if n.lower().endswith(ENDINGS)]
    if not paths:
        stop("%s: no images (%s)" % (folder, " ".join(ENDINGS)))
    return paths


def read_jpeg(path):
    """The file's bytes, once they have been decoded: what is broken is known now."""
    with open(path, "rb") as f:
        raw = f.read()
    try:
        opened = Image.open(io.BytesIO(raw))
    except OSError:
        return "%s: is no image" % path
    with opened as image:
        if image.format != "JPEG":
            return "%s: is %s inside, not JPEG" % (path, image.format)
        image.load()
    return np.frombuffer(raw, np.uint8)


def read_image(path):
    """[3, S, S], or with --jpeg the bytes, or the reason why there is none. The bilinear filter widens when it makes an image smaller."""
    try:
        if a.jpeg:
            return read_jpeg(path)
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would cut their values off at 255
                return "%s: has more than 8 bits a pixel (mode %s); convert it to 8 bits first" % (path, image.mode)
            image = image.convert("RGB")
        w, h = image.size
        x, y = (w - min(w, h)) / 2, (h - min(w, h)) / 2
        return np.asarray(image.resize((a.size, a.size), Image.BILINEAR, box=(x, y, w - x, h - y))).transpose(2, 0, 1)
    except MemoryError:
        raise
    except Exception as e:  # damaged files bring Pillow to raise nearly anything
        return "%s: %s" % (path, e if isinstance(e, OSError) else "%s: %s" % (type(e).__name__, e))


def read_all(pool, images):
    """(pixels or reason, label) of images in their order, read by the pool a little ahead."""
    ahead = deque()
    for path, label in images:
        ahead.append((pool.submit(read_image, path), label))
        if len(ahead) > 4 * a.threads:
            future, label = ahead.popleft()
            yield future.result(), label
    for future, label in ahead:
        yield future.result(), label


def store(data, first, images):
    """h5py takes arrays of different lengths one by one."""
    if a.jpeg:
        for i, image in enumerate(images):
            data[first + i] = image
    else:
        data[first:first + len(images)] = images


try:
    folders = sorted(e.name for e in os.scandir(a.folder) if e.is_dir() and not e.name.startswith("."))
except OSError as e:
    stop("%s: %s" % (a.folder, e.strerror))
if not folders:
    stop("%s: no sub-folders; there is one for each class" % a.folder)
classes = class_names(folders)
number = {c: i for i, c in enumerate(classes)}
images = [(path, number[c]) for c in folders for path in images_of(os.path.join(a.folder, c))]
order = np.random.default_rng(a.seed).permutation(len(images))
rows = max(1, min(len(images), 512, CHUNK_BYTES // (3 * a.size * a.size)))
libver = "v108" if len(classes) > ATTRIBUTE_CLASSES else None
stored = waiting = broken = 0  # waiting: images in chunk
with new_file(a.out, a.force, libver=libver) as f, ThreadPoolExecutor(a.threads) as pool:
    if a.jpeg:
        data = f.create_dataset("data", (len(images),), h5py.vlen_dtype(np.uint8), chunks=(min(len(images), 4096),), maxshape=(len(images),))
        data.attrs["encoding"] = "jpeg"
        chunk = np.empty(rows, object)
    else:
        shape = (len(images), 3, a.size, a.size)
        data = f.create_dataset("data", shape, np.uint8, chunks=(rows,) + shape[1:], maxshape=shape,
                                **({"compression": "gzip", "compression_opts": 1} if a.compress else {}))
        chunk = np.zeros((rows,) + shape[1:], np.uint8)
    labels = np.zeros(len(images), np.int32)
    for done, (pixels, label) in enumerate(read_all(pool, (images[i] for i in order)), 1):
        if isinstance(pixels, str):
            if not a.skip_broken:
                stop("%s\n--skip-broken leaves such images out" % pixels)
            broken += 1
            print("skipped " + pixels, file=sys.stderr)
        else:
            chunk[waiting], labels[stored + waiting] = pixels, label
            waiting += 1
        if waiting == rows:
            store(data, stored, chunk)
            stored, waiting = stored + rows, 0
        if done % 20000 == 0:
            print("%d of %d images" % (done, len(images)), file=sys.stderr)
    store(data, stored, chunk[:waiting])
    stored += waiting
    if stored == 0:
        stop("%s: not one image could be read" % a.folder)
    data.resize(stored, 0)
    f.create_dataset("label", data=labels[:stored]).attrs["classes"] = classes
skipped = ", %d broken images skipped" % broken if a.skip_broken else ""
what = "%d JPEG images" % stored if a.jpeg else "data %s uint8" % [stored, *shape[1:]]
print("%s: %s, label int32, %d classes%s" % (a.out, what, len(classes), skipped))
