#!/usr/bin/env python3
"""CSV (gzipped or not) to an HDF5 set: one label column, the others numbers. Class names become 0, 1, ... in sorted
order and stand in the label's attribute `classes`."""
import argparse
import csv
import io

from common import h5py, np, read_bytes, stop, write_set

a = argparse.ArgumentParser(description=__doc__)
a.add_argument("csv"), a.add_argument("out")
a.add_argument("--label", required=True, help="the label's column: a name, or an index from 0 (-1: the last)")
h = a.add_mutually_exclusive_group()
h.add_argument("--header", dest="header", action="store_true", default=None)
h.add_argument("--no-header", dest="header", action="store_false")
a.add_argument("--holdout", type=float, default=0, help="share of rows that go to --holdout-out, drawn by --seed")
a.add_argument("--holdout-out"), a.add_argument("--seed", type=int, default=1)
a.add_argument("--standardise", action="store_true", help="subtract the mean, divide by the deviation of the train rows")
a.add_argument("--statistics-from", help="standardise by what another set made by this script holds")
a.add_argument("--force", action="store_true")
a = a.parse_args()
if not 0 <= a.holdout < 1 or (a.holdout > 0) != bool(a.holdout_out):
    stop("--holdout SHARE (below 1) and --holdout-out FILE belong together")
rows = [r for r in csv.reader(io.StringIO(read_bytes(a.csv).decode())) if r]


def number(s):
    try:
        return float(s) == float(s)
    except ValueError:
        return False


if len(rows) < 2:
    stop("%s: no rows" % a.csv)
header = a.header if a.header is not None else not any(number(s) for s in rows[0])
names = rows.pop(0) if header else []
width = len(rows[0])
for i, r in enumerate(rows):
    if len(r) != width:
        stop("%s: row %d has %d columns, the first %d" % (a.csv, i + 1 + header, len(r), width))
if a.label in names:
    column = names.index(a.label)
else:
    try:
        column = range(width)[int(a.label)]
    except (ValueError, IndexError):
        stop("no column %s; there are %s" % (a.label, ", ".join(names) or "%d columns without names" % width))
text = [r[column] for r in rows]
if all(number(t) for t in text):
    values = sorted({float(t) for t in text})
    classes, label = [("%g" % v) for v in values], np.searchsorted(values, [float(t) for t in text])
else:
    classes = sorted(set(text))
    label = np.array([classes.index(t) for t in text])
try:
    data = np.array([r[:column] + r[column + 1:] for r in rows], np.float64)
except ValueError as e:
    stop("%s: %s" % (a.csv, e))
if not np.isfinite(data).all():
    stop("%s: row %d holds NaN or an infinity" % (a.csv, np.argwhere(~np.isfinite(data))[0][0] + 1 + header))
held = np.zeros(len(data), bool)
held[np.random.default_rng(a.seed).permutation(len(data))[:round(a.holdout * len(data))]] = True
attrs = {}
if a.standardise or a.statistics_from:
    if a.statistics_from:
        try:
            with h5py.File(a.statistics_from, "r") as f:
                mean, std = f["data"].attrs["mean"], f["data"].attrs["std"]
        except (OSError, KeyError) as e:
            stop("%s: no statistics: %s" % (a.statistics_from, e))
    else:
        mean, std = data[~held].mean(0), data[~held].std(0)
    std = np.where(std > 0, std, 1)
    data, attrs = (data - mean) / std, {"mean": mean, "std": std}
for path, rows_of in ((a.out, ~held), (a.holdout_out, held)):
    if path:
        write_set(path, data[rows_of].astype(np.float32), label[rows_of].astype(np.int32), a.force, attrs, {"classes": classes})
