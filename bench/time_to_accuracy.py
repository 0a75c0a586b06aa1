#!/usr/bin/env python3
"""How long a job takes until an accuracy, in Paceline and in PyTorch by the same recipe (pytorch_train.py):
    bench/time_to_accuracy.py models/cifar10/resnet20.yaml --above 0.85 --venv VENV [--threads 1] [--together] [key=value ...]
Epochs, time of the processes from start to end and their processor time, and the ratios. --together runs both at once, each
on as many cores of its own as it has threads, so that a noisy machine disturbs both alike; the processor time is then the
figure to compare. VENV is a virtual environment with torch, h5py and pyyaml (bench/vs_pytorch.py says how)."""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def run(command, cores, env, out):
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=env,
                               preexec_fn=lambda: os.sched_setaffinity(0, cores))
    out["lines"] = process.stdout.read().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    out.update(code=process.returncode, seconds=time.perf_counter() - begin, cpu_seconds=usage.ru_utime + usage.ru_stime)


def evaluations(folder):
    with open(os.path.join(folder, "metrics.jsonl")) as f:
        return [e for e in map(json.loads, f) if e["event"] == "eval"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("job")
    p.add_argument("overrides", nargs="*", metavar="key=value")
    p.add_argument("--above", type=float, required=True)
    p.add_argument("--venv", required=True)
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--together", action="store_true")
    p.add_argument("--paceline", default=os.environ.get("PACELINE", os.path.join(HERE, "..", "build", "release", "paceline")))
    a = p.parse_intermixed_args()
    cores = sorted(os.sched_getaffinity(0))
    python = os.path.join(a.venv, "bin", "python")
    if not 0 < a.above < 1:
        refuse("--above is an accuracy, between 0 and 1")
    if a.threads < 1:
        refuse("--threads is 1 or more")
    for path in (a.job, a.paceline, python):
        if not os.path.exists(path):
            refuse(f"there is no {path}")
    if len(cores) < a.threads * (1 + a.together):
        refuse(f"{len(cores)} cores are too few for {a.threads} threads" + (" of both together" if a.together else ""))
    recipe = [python, os.path.join(HERE, "pytorch_train.py"), a.job, str(a.threads), *a.overrides]
    if subprocess.run([*recipe, "--check"]).returncode:
        refuse("PyTorch does not take this recipe")
    with tempfile.TemporaryDirectory(prefix="time-to-accuracy-") as folder:
        compare(a, cores, folder)


def refuse(why):
    sys.exit("time_to_accuracy.py: " + why)


def compare(a, cores, folder):
    env = dict(os.environ, OMP_NUM_THREADS=str(a.threads))
    overrides = [*a.overrides, f"train.stop.above={a.above}"]
    ours, theirs = {}, {}
    jobs = [([a.paceline, "train", a.job, *overrides, f"train.threads={a.threads}", "checkpoint.dir=none", f"report.dir={folder}"], cores[:a.threads], ours),
            ([os.path.join(a.venv, "bin", "python"), os.path.join(HERE, "pytorch_train.py"), a.job, str(a.threads), *overrides],
             cores[a.threads:2 * a.threads] if a.together else cores[:a.threads], theirs)]
    threads = [threading.Thread(target=run, args=(command, mask, env, out)) for command, mask, out in jobs]
    for t in threads:
        t.start()
        if not a.together:
            t.join()
    for t in threads:
        t.join()
    if ours["code"] or theirs["code"]:
        refuse(f"Paceline ended with {ours['code']}, PyTorch with {theirs['code']}; nothing to compare")
    ours["epochs"] = [{"epoch": i + 1, "accuracy": e["accuracy"]} for i, e in enumerate(evaluations(folder))]
    theirs["epochs"] = [json.loads(line) for line in theirs["lines"]]
    print(f"{'':10} {'epochs':>6} {'accuracy':>9} {'seconds':>9} {'processor s':>12}")
    for name, r in (("Paceline", ours), ("PyTorch", theirs)):
        last = r["epochs"][-1]
        print(f"{name:10} {last['epoch']:6d} {last['accuracy']:9.4f} {r['seconds']:9.1f} {r['cpu_seconds']:12.1f}")
        print("           by epoch:", " ".join(f"{e['accuracy']:.3f}" for e in r["epochs"]))
    late = [name for name, r in (("Paceline", ours), ("PyTorch", theirs)) if not r["epochs"][-1]["accuracy"] > a.above]
    if late:
        refuse(f"{' and '.join(late)} did not reach {a.above}: no ratio")
    print(f"{'ratio':10} {'':6} {'':9} {theirs['seconds'] / ours['seconds']:9.2f} {theirs['cpu_seconds'] / ours['cpu_seconds']:12.2f}")


if __name__ == "__main__":
    main()
