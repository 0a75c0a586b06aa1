#!/usr/bin/env python3
"""For bench/stragglers.sh: one run's metrics.jsonl to a line of stragglers.jsonl (run METRICS NAME B
ROUND LOSS), and all of them to a table and a picture (table DIR RANKS DELAY COMPUTE)."""
import json
import os
import statistics
import sys

WINDOW = 20  # steps over which the loss is averaged

from pictures import matplotlib


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(p * len(values)))]


def run(path, name, b, number, wanted):
    """The first tenth of the steps warms up. late: how often each rank was, over all steps that say it."""
    steps = [e for e in map(json.loads, open(path)) if e["event"] == "step"]
    ms = [e["step_ms"] for e in steps[len(steps) // 10:]]
    late, reached, seconds = {}, None, 0.0
    for i, e in enumerate(steps):
        seconds += e["step_ms"] / 1000
        for r in e.get("late", "").split(", "):
            if r:
                late[r] = late.get(r, 0) + 1
        if reached is None and wanted > 0 and i >= WINDOW and statistics.mean(s["loss"] for s in steps[i - WINDOW + 1:i + 1]) < wanted:
            reached = round(seconds, 2)
    return {"name": name, "b": b, "round": number, "steps": len(steps), "p50": round(percentile(ms, .5), 2), "p90": round(percentile(ms, .9), 2),
            "p99": round(percentile(ms, .99), 2), "seconds_to_loss": reached, "loss": round(statistics.mean(s["loss"] for s in steps[-WINDOW:]), 4), "late": late}


def ratio(runs, key, a, b):
    """Of what is paired by round: median, least, most. None without pairs."""
    of = {(r["name"], r["b"], r["round"]): r[key] for r in runs}
    both = [of[(*a, n)] / of[(*b, n)] for n in sorted({r["round"] for r in runs}) if of.get((*a, n)) and of.get((*b, n))]
    return (statistics.median(both), min(both), max(both)) if both else None


def say(r):
    return "%.2f (%.2f-%.2f)" % r if r else "-"


def table(runs, ranks, delay, compute):
    lines = ["%s ranks, compute %s, delayed: %s" % (ranks, compute + " ms of sleep" if compute != "0" else "for real", delay),
             "medians over %d rounds of %d steps, ms; ratios are medians (least-most) of those paired by round" % (max(r["round"] for r in runs), runs[0]["steps"]),
             "%-8s %3s %8s %8s %8s %18s %18s %10s  %s" % ("", "b", "p50", "p90", "p99", "p50 / undelayed", "p99 / undelayed", "s to loss", "late most often")]
    for name, b in dict.fromkeys((r["name"], r["b"]) for r in runs):
        of = [r for r in runs if (r["name"], r["b"]) == (name, b)]
        med = lambda k: statistics.median(r[k] for r in of)
        reached = [r["seconds_to_loss"] for r in of if r["seconds_to_loss"]]
        late = {}
        for r in of:
            for k, n in r["late"].items():
                late[k] = late.get(k, 0) + n
        most = max(late, key=late.get) if late else None
        lines.append("%-8s %3d %8.1f %8.1f %8.1f %18s %18s %10s  %s" % (
            name, b, med("p50"), med("p90"), med("p99"), say(ratio(runs, "p50", (name, b), ("plain", b))) if name != "plain" else "",
            say(ratio(runs, "p99", (name, b), ("plain", b))) if name != "plain" else "", "%.1f" % statistics.median(reached) if reached else "",
            "rank %s, %d %% of the steps" % (most, 100 * late[most] / sum(r["steps"] for r in of)) if most else ""))
    return "\n".join(lines)


def picture(runs, path):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7, 4.5))
    names = [n for n in ("plain", "delayed") if any(r["name"] == n for r in runs)]
    bs = sorted({r["b"] for r in runs})
    for k, name in enumerate(names):
        for p, shade in (("p99", .35), ("p90", .6), ("p50", 1)):
            values = [statistics.median(r[p] for r in runs if (r["name"], r["b"]) == (name, b)) for b in bs]
            axes.bar([i + (k - (len(names) - 1) / 2) * .4 for i in range(len(bs))], values, .36, color="C%d" % k, alpha=shade, label="%s, %s" % (name, p))
    axes.set_xticks(range(len(bs))), axes.set_xticklabels(bs), axes.set_yscale("log")
    axes.set_xlabel("sync.backup_workers"), axes.set_ylabel("ms of a step"), axes.legend(fontsize=8)
    figure.tight_layout(), figure.savefig(path, dpi=120)


def main(args):
    if args[0] == "run":
        print(json.dumps(run(args[1], args[2], int(args[3]), int(args[4]), float(args[5]))))
    else:
        folder = args[1]
        runs = [json.loads(line) for line in open(os.path.join(folder, "stragglers.jsonl"))]
        text = table(runs, *args[2:5])
        print(text)
        with open(os.path.join(folder, "stragglers.txt"), "w") as f:
            f.write(text + "\n")
        with open(os.path.join(folder, "stragglers.json"), "w") as f:
            json.dump({"ranks": int(args[2]), "delay": args[3], "compute": args[4], "runs": runs}, f, indent=1)
        if matplotlib:
            picture(runs, os.path.join(folder, "stragglers.png"))
        else:
            print("no picture: matplotlib is missing", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
