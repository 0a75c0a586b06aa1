#!/usr/bin/env python3
"""For bench/local_sgd.sh: one run's metrics.jsonl to a line of local_sgd.jsonl (run METRICS RANKS TAU ACCURACY RATE), and
all of them to a table and a picture (table DIR)."""
import json
import os
import sys

from pictures import matplotlib


def run(path, ranks, tau, accuracy, rate):
    """Seconds are those of steps alone, evaluations left out; reached: null where the accuracy was not."""
    seconds, exchange, sent, steps, curve = 0.0, 0.0, 0.0, 0, []
    for e in map(json.loads, open(path)):
        if e["event"] == "step":
            seconds += e["step_ms"] / 1000
            exchange += e["exchange_ms"] / 1000
            sent += e.get("sent_mb", 0)
            steps = e["step"]
        if e["event"] == "eval":
            curve.append([e["step"], round(seconds, 3), e["accuracy"]])
    reached = next((c for c in curve if c[2] > accuracy), None)
    return {"ranks": ranks, "tau": tau, "rate": rate, "accuracy": accuracy, "reached": reached is not None,
            "steps": steps, "seconds": round(seconds, 2), "step_ms": round(1000 * seconds / steps, 2), "exchange_s": round(exchange, 2),
            "sent_mb": round(sent, 1), "best": max(c[2] for c in curve) if curve else None, "curve": curve}


def table(runs):
    """The speed-up is over tau 1 on as many ranks."""
    lines = ["%5s %5s %10s %8s %10s %10s %11s %10s %9s" % ("ranks", "tau", "reached", "steps", "seconds", "step_ms", "exchange_s", "sent_MB", "speed-up")]
    for r in runs:
        first = next((o for o in runs if o["ranks"] == r["ranks"] and o["tau"] == 1 and o["reached"]), None)
        lines.append("%5d %5s %10s %8d %10.1f %10.1f %11.1f %10.1f %9s" % (
            r["ranks"], r["tau"] or "sync", "%.4f" % r["best"] if r["reached"] else "(%.4f)" % r["best"], r["steps"], r["seconds"], r["step_ms"],
            r["exchange_s"], r["sent_mb"], "%.2f" % (first["seconds"] / r["seconds"]) if first and r["reached"] else ""))
    return "\n".join(lines)


def picture(runs, path):
    import matplotlib.pyplot as plt
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(12, 4.5))
    for r in runs:
        name = "%d ranks, %s" % (r["ranks"], "tau %d" % r["tau"] if r["tau"] else "synchronous")
        curves.plot([c[1] for c in r["curve"]], [c[2] for c in r["curve"]], label=name)
    wanted = runs[0]["accuracy"]
    curves.axhline(wanted, color="grey", linestyle=":")
    curves.set_ylim(max(0, 1 - 8 * (1 - wanted)), 1), curves.set_xlabel("seconds of steps"), curves.set_ylabel("test accuracy"), curves.legend(fontsize=7)
    taus, ranks = sorted({r["tau"] for r in runs}), sorted({r["ranks"] for r in runs})
    for k, n in enumerate(ranks):
        of = {r["tau"]: r for r in runs if r["ranks"] == n and r["reached"]}
        at = [i + (k - (len(ranks) - 1) / 2) * 0.8 / len(ranks) for i, tau in enumerate(taus) if tau in of]
        bars.bar(at, [of[tau]["seconds"] for tau in taus if tau in of], 0.8 / len(ranks), label="%d ranks" % n)
    bars.set_xticks(range(len(taus))), bars.set_xticklabels([str(t) if t else "sync" for t in taus])
    bars.set_xlabel("tau"), bars.set_ylabel("seconds to %g" % wanted), bars.legend(fontsize=8)
    figure.suptitle("links of %s" % runs[0]["rate"])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(args):
    if args[0] == "run":
        print(json.dumps(run(args[1], int(args[2]), int(args[3]), float(args[4]), args[5])))
        return
    out = args[1]
    runs = [json.loads(line) for line in open(os.path.join(out, "local_sgd.jsonl"))]
    if not runs:
        sys.exit("local_sgd.py: no runs in %s" % out)
    with open(os.path.join(out, "local_sgd.json"), "w") as f:
        json.dump(runs, f, indent=1)
    with open(os.path.join(out, "local_sgd.txt"), "w") as f:
        f.write(table(runs) + "\n")
    print(table(runs))
    if matplotlib:
        matplotlib.use("Agg")
        picture(runs, os.path.join(out, "local_sgd.png"))
    else:
        print("(no picture: apt-get install python3-matplotlib)")


if __name__ == "__main__":
    main(sys.argv[1:])
