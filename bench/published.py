#!/usr/bin/env python3
"""For bench/published.sh: what a part left in OUT to a table, ours beside theirs (table OUT PART ...), and a part's numbers
to PART.json, all parts' to published.json and published.md; and made-up sets under the names of the real ones (sets DIR)."""
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys

from local_sgd import run  # a run's metrics.jsonl: seconds of its steps, accuracy at each evaluation

PARTS = {"mnist": "MNIST, LeNet", "cifar10": "CIFAR-10 by Adam", "tau": "Local SGD, tau x K", "backup": "Backup workers", "nullstep": "Null steps"}
UNKNOWN = "not found"


def read(*path):
    with open(os.path.join(*path)) as f:
        return json.load(f)


def theirs(part):
    return read(os.path.dirname(os.path.abspath(__file__)), "published_figures.json")[part]


def hardware():
    """From lscpu and the kernel: what ours ran on."""
    said = dict(line.split(":", 1) for line in subprocess.run(["lscpu"], capture_output=True, text=True, env=dict(os.environ, LC_ALL="C")).stdout.splitlines() if ":" in line)
    get = lambda key, other="": said.get(key, other).strip()
    family = " (family %s, model %s)" % (get("CPU family"), get("Model")) if get("CPU family") else ""
    gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return "%s%s, %d core%s, %.0f GB%s" % (get("Model name", "unknown processor"), family, cores, "s" * (cores != 1), gb,
                                           ", %s guest" % get("Hypervisor vendor") if get("Hypervisor vendor") else "")


def times(folder):
    """Of the whole command: elapsed and processor seconds."""
    with open(os.path.join(folder, "times")) as f:
        elapsed, user, system = map(float, f.read().split()[-3:])
    return elapsed, user + system


def markdown(head, rows):
    return "\n".join("| %s |" % " | ".join(map(str, row)) for row in [head, ["---"] * len(head), *rows])


def ratio(a, b):
    return "%.2f" % (a / b) if a and b else "-"


def trained(folder, ranks, tau, wanted):
    result = run(os.path.join(folder, "metrics.jsonl"), ranks, tau, wanted, "none")
    result["elapsed_s"], result["cpu_s"] = times(folder)
    return result


# ---- the parts: each returns the table's head and rows, what to say below it, and the numbers ------------------------------

def mnist(out, ranks, iterations):
    their, rows, runs = theirs("mnist"), [], []
    for n in ranks.split():
        runs += [trained(folder, int(n), int(folder.rsplit("-", 1)[1]), 1) for folder in sorted(glob.glob(os.path.join(out, "mnist", n + "-*")))]
    for step in map(int, iterations.split()):
        for r in runs:
            at = next((c for c in r["curve"] if c[0] == step), None)
            figure = lambda s: their["figures"].get(s, {}).get("%d/%d" % (step, r["ranks"]), UNKNOWN)
            rows.append([step, r["ranks"], "local SGD, tau %d" % r["tau"] if r["tau"] else "synchronous" if r["ranks"] > 1 else "",
                         "%.2f %%" % (100 * at[2]) if at else "-", "%.1f" % at[1] if at else "-", *map(figure, their["systems"])])
    more = ["An iteration is a step of every rank, by its own batch of 64. Seconds are those of steps, evaluations left out. Whole runs, evaluations and start "
            "in them: " + "; ".join("%d rank%s%s %.0f s, %.0f s of processor" % (r["ranks"], "s" * (r["ranks"] > 1), ", tau %d," % r["tau"] if r["tau"] else "",
                                                                                r["elapsed_s"], r["cpu_s"]) for r in runs) + "."]
    return ["iterations", "ranks", "", "accuracy", "seconds", *their["systems"]], rows, more, runs


def cifar10(out):
    their, folder = theirs("cifar10"), os.path.join(out, "cifar10", "1")
    r = trained(folder, 1, 0, 0.85)
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        r["images_per_s"] = round(statistics.median(e["samples_per_s"] for e in map(json.loads, f) if e["event"] == "step"), 1)
    last = "%.1f %% after %.0f s of steps, %.0f s in all" % (100 * r["best"], r["seconds"], r["elapsed_s"])
    rows = [["images/s", r["images_per_s"], *[their["figures"].get("images_per_s", UNKNOWN) for _ in their["systems"]]],
            ["to 85 %", last if r["reached"] else "not reached: " + last, *[their["figures"].get("seconds", UNKNOWN) for _ in their["systems"]]]]
    return ["", "Paceline, 1 rank, 1 thread", *their["systems"]], rows, ["%.0f s of processor, evaluations in them. By evaluation: %s." % (
        r["cpu_s"], ", ".join("%.1f" % (100 * c[2]) for c in r["curve"]))], r


def tau(out, path):
    """To the accuracy of the runs or, if one rank alone was not there in its steps, what it reached, by half percents."""
    their, runs = theirs("tau"), read(path)
    alone = next((r for r in runs if r["ranks"] == 1), None)
    wanted = min([runs[0]["accuracy"]] + ([int(200 * alone["best"]) / 200] if alone else []))
    reached = {(r["ranks"], r["tau"]): next((c for c in r["curve"] if c[2] > wanted), None) for r in runs}
    one = reached[1, alone["tau"]] if alone else None
    ranks, taus = (sorted({key[i] for key in reached if key[0] > 1}) for i in (0, 1))
    def cell(n, t):
        there = reached.get((n, t))
        if not there:
            return "not reached" if (n, t) in reached else "-"
        return "%s, %s (%.0f s)" % (ratio(one[1], there[1]), ratio(one[0], there[0]), there[1]) if one else "%.0f s" % there[1]
    rows = [[t or "synchronous", *[cell(n, t) for n in ranks], *[their["figures"].get(str(t), UNKNOWN) for _ in their["systems"]]] for t in taus]
    more = ["To %g %% over links of %s/s. %s" % (100 * wanted, runs[0]["rate"].replace("mbit", " Mbit").replace("gbit", " Gbit"),
            "Speed-up over one rank, which takes %.0f s and %d steps: in seconds, and in steps, what it would be if averaging took no time." % (one[1], one[0])
            if one else "One rank's time is not there: no speed-up.")]
    return ["tau", *["K = %d" % n for n in ranks], *their["systems"]], rows, more, runs


def backup(out):
    """Step times by median. Normalised: samples/s by each worker of all, over those without backup workers; theirs is the same."""
    their, measured = theirs("backup"), read(out, "backup", "measured", "stragglers.json")
    n = measured["ranks"]
    def median(key, b):
        return statistics.median(r[key] for r in measured["runs"] if r["name"] == "delayed" and r["b"] == b)
    def model(tail):
        return {r["backup"]: r["p50_ms"] for r in read(out, "backup", tail, "simulate.json")["rows"] if r["ranks"] == 50 + r["backup"]}
    heavy, light = model("pareto"), model("exponential")
    rows, numbers = [], []
    for b in range(6):
        speed = median("p50", 0) / median("p50", b)
        of = {"b": b, "p50_ms": median("p50", b), "p99_ms": median("p99", b), "normalised": speed * (n - b) / n,
              "model_pareto_ms": heavy[b], "model_pareto_normalised": heavy[0] / heavy[b] * 50 / (50 + b),
              "model_exponential_ms": light[b], "model_exponential_normalised": light[0] / light[b] * 50 / (50 + b)}
        numbers.append(of)
        figure = their["figures"].get(str(b), {})
        said = ["%.2f s" % figure["step_s"] if "step_s" in figure else "", "%.3f" % figure["normalised"] if "normalised" in figure else "", figure.get("note", "")]
        rows.append([b, "%.0f" % of["p50_ms"], "%.0f" % of["p99_ms"], "%.2f" % of["normalised"], "%.0f, %.2f" % (heavy[b], of["model_pareto_normalised"]),
                     "%.1f, %.2f" % (light[b], of["model_exponential_normalised"]), ", ".join(filter(None, said)) or ("1" if b == 0 else UNKNOWN)])
    more = ["%d ranks in all, of which each step takes %d - b; the model and TensorFlow take 50 of 50 + b. Compute %s ms of sleep, and on every rank %s. "
            "Normalised: samples/s of a worker over those at b = 0, t(0) / t(b) times the share of workers whose gradients count. Medians over rounds (%d) of %d steps. "
            "The model's two tails: the Pareto of the measured runs, and an exponential of 15 ms after the same 100 ms, fitted so that b = 3 gains about TensorFlow's 9.5 %%."
            % (n, n, measured["compute"], measured["delay"], max(r["round"] for r in measured["runs"]), measured["runs"][0]["steps"])]
    return ["b", "median ms", "p99 ms", "normalised", "model, Pareto: ms, normalised", "model, exponential", *["%s: step, normalised" % s for s in their["systems"]]], rows, more, numbers


def nullstep(out):
    their, runs = theirs("nullstep"), []
    for path in glob.glob(os.path.join(out, "nullstep", "*", "nullstep.jsonl")):
        with open(path) as f:
            runs += map(json.loads, f)
    ranks, cases = sorted({r["ranks"] for r in runs}), [c for c in ("scalar", "100MB", "1GB", "sparse") if any(r["case"] == c for r in runs)]
    ms = {(c, n): statistics.median(r["step_ms"] for r in runs if (r["case"], r["ranks"]) == (c, n)) for c in cases for n in ranks}
    rows = [[c, *["%.4g" % ms[c, n] for n in ranks], "; ".join("%s ms by %s" % (v, k) for k, v in their["figures"][c].items())] for c in cases]
    more = ["Median ms of a step. TensorFlow's parameters are on 16 servers and cross the network both ways; ours are on every rank, and the ranks of one machine add up in "
            "shared memory. Sparse is 32 random rows of 1 GB a worker; one rank has no exchange."]
    return ["", *["%d rank%s" % (n, "s" * (n > 1)) for n in ranks], *["%s, workers" % s for s in their["systems"]]], rows, more, runs


# ---- what comes out -------------------------------------------------------------------------------------------------------

def table(out, part, *args):
    head, rows, more, numbers = globals()[part](out, *args)
    where, their = hardware(), theirs(part)
    text = "\n\n".join(["## " + PARTS[part], markdown(head, rows), *more, "Ours: %s." % where, "%s: %s. Source: %s." % (", ".join(their["systems"]), their["hardware"], their["source"])] + [also + "." for also in [their.get("also")] if also])
    print(text + "\n", flush=True)
    with open(os.path.join(out, part + ".md"), "w") as f:
        f.write(text + "\n")
    with open(os.path.join(out, part + ".json"), "w") as f:
        json.dump({"hardware": where, "ours": numbers, "theirs": their}, f, indent=1)
    there = [p for p in PARTS if os.path.exists(os.path.join(out, p + ".json"))]
    with open(os.path.join(out, "published.json"), "w") as f:
        json.dump({p: read(out, p + ".json") for p in there}, f, indent=1)
    with open(os.path.join(out, "published.md"), "w") as f:
        f.write("\n".join(open(os.path.join(out, p + ".md")).read() for p in there))


def sets(folder):
    """Of make_digits.py's: mnist-*.h5, and cifar10-*.h5 with the digits of the first in three channels of 32 x 32."""
    import h5py
    import numpy as np
    for part, count in (("train", 2000), ("test", 500)):
        source = os.path.join(folder, "digits-%s.h5" % part)
        shutil.copy(source, os.path.join(folder, "mnist-%s.h5" % part))
        with h5py.File(source) as f, h5py.File(os.path.join(folder, "cifar10-%s.h5" % part), "w") as g:
            g["data"] = np.pad(f["data"][:count], ((0, 0), (0, 0), (2, 2), (2, 2))).repeat(3, 1)
            g["label"] = f["label"][:count]


if __name__ == "__main__":
    {"table": table, "sets": sets}[sys.argv[1]](*sys.argv[2:])
