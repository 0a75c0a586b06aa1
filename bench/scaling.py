#!/usr/bin/env python3
"""What bench/scaling.sh measured (scaling.jsonl) to scaling.csv and scaling.png, and the table on the terminal."""
import argparse
import csv
import json
import os
import statistics
import sys

from pictures import matplotlib

COLUMNS = ["mode", "by", "count", "ranks", "threads", "batch", "samples_per_s", "speedup", "efficiency", "step_ms",
           "compute_ms", "exchange_ms", "update_ms"]


def table(path):
    """Medians over rounds. compute_ms: the step less the exchange that was not hidden and the update."""
    rounds = {}
    for line in open(path):
        e = json.loads(line)
        rounds.setdefault((e["mode"], e["count"]), []).append(e)
    rows = []
    for (mode, count), all_rounds in sorted(rounds.items()):
        b = [e["bench"] for e in all_rounds]
        middle = {k: statistics.median(x[k] for x in b) for k in ("samples_per_s", "step_ms", "exchange_ms", "update_ms")}
        first = next((r for r in rows if r["mode"] == mode), None)
        row = {"mode": mode, "by": all_rounds[0]["by"], "count": count, "ranks": b[0]["ranks"], "threads": b[0]["threads"], "batch": b[0]["batch"]}
        row.update(middle)
        row["compute_ms"] = middle["step_ms"] - middle["exchange_ms"] - middle["update_ms"]
        row["speedup"] = middle["samples_per_s"] / first["samples_per_s"] if first else 1.0
        row["efficiency"] = row["speedup"] * first["count"] / count if first else 1.0
        rows.append(row)
    return rows


def picture(rows, model, path):
    import matplotlib.pyplot as plt
    figure, (speed, efficiency, parts) = plt.subplots(1, 3, figsize=(15, 4))
    by = rows[0]["by"]
    for mode, style in (("weak", "o-"), ("strong", "s--")):
        of = [r for r in rows if r["mode"] == mode]
        if of:
            x = [r["count"] for r in of]
            speed.plot(x, [r["samples_per_s"] for r in of], style, label=mode)
            efficiency.plot(x, [r["efficiency"] for r in of], style, label=mode)
    weak = [r for r in rows if r["mode"] == "weak"]
    x, below = range(len(weak)), [0.0] * len(weak)
    speed.plot([r["count"] for r in weak], [weak[0]["samples_per_s"] * r["count"] / weak[0]["count"] for r in weak], ":", color="grey", label="ideal")
    for part, text in (("compute_ms", "compute"), ("update_ms", "update"), ("exchange_ms", "exchange, not hidden")):
        height = [r[part] for r in weak]
        parts.bar(x, height, bottom=below, label=text)
        below = [a + b for a, b in zip(below, height)]
    parts.set_xticks(list(x)), parts.set_xticklabels([str(r["count"]) for r in weak])
    speed.set_ylabel("samples/s"), efficiency.set_ylabel("efficiency"), parts.set_ylabel("ms of a step, weak")
    efficiency.set_ylim(0, max(1.1, 1.05 * max(r["efficiency"] for r in rows)))
    for axis in (speed, efficiency, parts):
        axis.set_xlabel(by), axis.grid(alpha=.3), axis.legend(fontsize=8)
    figure.suptitle(model)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


a = argparse.ArgumentParser(description=__doc__)
a.add_argument("raw"), a.add_argument("--out", default=".")
a = a.parse_args()
rows = table(a.raw)
if not rows:
    sys.exit("scaling.py: %s is empty" % a.raw)
with open(os.path.join(a.out, "scaling.csv"), "w", newline="") as f:
    w = csv.writer(f)
    w.writerow(COLUMNS)
    for r in rows:
        w.writerow(["%.4g" % r[c] if isinstance(r[c], float) else r[c] for c in COLUMNS])
print("%-7s %7s %6s %6s %12s %8s %10s %9s %11s %12s %10s" % ("mode", "count", "ranks", "batch", "samples/s", "speedup", "efficiency", "step_ms", "compute_ms", "exchange_ms", "update_ms"))
for r in rows:
    print("%-7s %7d %6d %6d %12.1f %8.2f %10.2f %9.2f %11.2f %12.2f %10.2f" % (r["mode"], r["count"], r["ranks"], r["batch"], r["samples_per_s"], r["speedup"], r["efficiency"],
                                                                 r["step_ms"], r["compute_ms"], r["exchange_ms"], r["update_ms"]))
model = json.loads(open(a.raw).readline())["bench"]["model"]
if matplotlib:
    matplotlib.use("Agg")
    picture(rows, model, os.path.join(a.out, "scaling.png"))
    print(os.path.join(a.out, "scaling.csv"), os.path.join(a.out, "scaling.png"))
else:
    print(os.path.join(a.out, "scaling.csv"), "(no picture: apt-get install python3-matplotlib)")
