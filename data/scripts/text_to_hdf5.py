#!/usr/bin/env python3
"""Text (gzipped or not, several files one after the other) to an HDF5 set for language models: `data` [N, T] are T ids of characters, words or
bytes in a row, `label` [N, T] the ids that follow each of them. `vocabulary` says what they stand for."""
import argparse
import collections
import io
import os

from common import h5py, new_file, np, read_bytes, stop

UNKNOWN, END = "<unk>", "<eos>"
a = argparse.ArgumentParser(description=__doc__)
a.add_argument("texts", nargs="+"), a.add_argument("out")
a.add_argument("--level", choices=("char", "word", "byte"), default="char", help="word: what white space parts; the end of a line is the word " + END)
a.add_argument("--length", type=int, default=128, help="T (128)")
a.add_argument("--stride", type=int, help="from one sample's first to the next one's (--length: they do not overlap)")
a.add_argument("--most", type=int, help="so many words at most, those that are most frequent; the others become " + UNKNOWN)
a.add_argument("--vocabulary-from", help="ids as in another set made by this script")
a.add_argument("--holdout", type=float, default=0, help="share of the text, its end, that goes to --holdout-out")
a.add_argument("--holdout-out")
a.add_argument("--force", action="store_true")
a = a.parse_args()
if not 0 <= a.holdout < 1 or (a.holdout > 0) != bool(a.holdout_out):
    stop("--holdout SHARE (below 1) and --holdout-out FILE belong together")
if a.holdout_out and os.path.realpath(a.holdout_out) == os.path.realpath(a.out):
    stop("%s is to be both the set and its end" % a.out)
a.stride = a.length if a.stride is None else a.stride
if a.length < 1 or a.stride < 1:
    stop("--length and --stride are at least 1")
if a.most is not None and (a.level != "word" or a.most < 2 or a.vocabulary_from):
    stop("--most is for words whose vocabulary is made here, and at least 2")


def read_text(path):
    raw = read_bytes(path)
    if a.level == "byte":
        return list(raw)
    try:
        text = raw.decode()
    except UnicodeDecodeError as e:
        stop("%s: byte %d is not UTF-8" % (path, e.start))
    if "\0" in text:
        stop("%s: character %d is 0, which no name in HDF5 holds: take --level byte" % (path, text.index("\0")))
    if a.level == "char":
        return list(text)
    return [word for line in io.StringIO(text, newline=None) for word in line.split() + [END]]  # a form feed ends no line


def read_vocabulary(path):
    try:
        with h5py.File(path, "r") as f:
            if f["vocabulary"].attrs["level"] != a.level:
                stop("%s: its vocabulary is of level %s" % (path, f["vocabulary"].attrs["level"]))
            names = f["vocabulary"][()]
    except (OSError, KeyError) as e:
        stop("%s: no vocabulary: %s" % (path, e))
    return [n.decode() if isinstance(n, bytes) else int(n) for n in names]


def make_vocabulary(tokens):
    if a.level != "word":
        return sorted(set(tokens))
    count = collections.Counter(tokens)
    words = sorted(count, key=lambda w: (-count[w], w))
    if a.most is not None and len(words) > a.most:
        words = [w for w in words if w != UNKNOWN][:a.most - 1] + [UNKNOWN]
    return words


def ids_of(path, tokens, vocabulary):
    place = {t: i for i, t in enumerate(vocabulary)}
    unknown = place.get(UNKNOWN) if a.level == "word" else None
    for i, t in enumerate(tokens):
        if t not in place and unknown is None:
            stop("%s: %s %r at %d is not in the vocabulary of %s" % (path, a.level, t, i, a.vocabulary_from))
    kind = next(k for k in (np.uint8, np.uint16, np.uint32) if len(vocabulary) <= np.iinfo(k).max + 1)
    return np.array([place.get(t, unknown) for t in tokens], kind)


def check(path, ids):
    if os.path.exists(path) and not a.force:
        stop("%s exists; --force replaces it" % path)
    if len(ids) <= a.length:
        stop("%s: %d %ss are too few for samples of %d and what follows" % (path, len(ids), a.level, a.length))


def write(path, ids, vocabulary):
    windows = np.lib.stride_tricks.sliding_window_view(ids, a.length + 1)[::a.stride]
    rows = max(1, min(len(windows), (256 << 10) // (windows.itemsize * a.length)))
    with new_file(path, a.force) as f:
        for name, values in ("data", windows[:, :-1]), ("label", windows[:, 1:]):
            f.create_dataset(name, data=values, chunks=(rows, a.length), compression="gzip", compression_opts=1, shuffle=True)
        text = h5py.string_dtype() if a.level != "byte" else np.uint8
        f.create_dataset("vocabulary", data=np.array(vocabulary, object if a.level != "byte" else np.uint8), dtype=text).attrs["level"] = a.level
    print("%s: data %s %s, a vocabulary of %d %ss" % (path, list(windows[:, 1:].shape), windows.dtype, len(vocabulary), a.level))


texts = [(path, read_text(path)) for path in a.texts]
if not any(tokens for _, tokens in texts):
    stop("%s: no text" % ", ".join(a.texts))
vocabulary = read_vocabulary(a.vocabulary_from) if a.vocabulary_from else make_vocabulary([t for _, tokens in texts for t in tokens])
ids = np.concatenate([ids_of(path, tokens, vocabulary) for path, tokens in texts])
held = len(ids) - round(a.holdout * len(ids))
parts = [(a.out, ids[:held])] + ([(a.holdout_out, ids[held:])] if a.holdout_out else [])
for part in parts:  # of both before either is written
    check(*part)
for part in parts:
    write(*part, vocabulary)
