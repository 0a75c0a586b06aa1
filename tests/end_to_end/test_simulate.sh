#!/usr/bin/env bash
# bench/simulate: order statistics and all-reduces against their closed forms, groups of hand-made steps one by one, the
# check against runs made up to fit and not to fit, and against a real one; refusals; what it writes.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
/usr/bin/python3 -c 'import numpy' 2>/dev/null || { echo "skipped: python3-numpy is not installed"; exit 77; }
simulate=$PL_SOURCE_DIR/bench/simulate
cat >unit.py <<'PY'
import importlib.machinery, importlib.util, math, sys
import numpy as np

sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("simulate", sys.argv[1])
s = importlib.util.module_from_spec(importlib.util.spec_from_loader("simulate", loader))
loader.exec_module(s)

bad = 0
def near(what, found, wanted, part=1e-9):
    global bad
    good = abs(found - wanted) <= part * abs(wanted)
    bad += not good
    print("%s %s: %.6g, wanted %.6g" % ("ok" if good else "FAIL", what, found, wanted))

# Nothing but compute: no exchange, no messages, no fetch, and late ranks begin anew at once.
ideal = ["--mb", "0", "--alpha-us", "0", "--update-ms", "0", "--message-us", "0", "--fetch-ms", "0", "--layers", "1000000000", "--steps", "8000"]
def model(*args):
    return s.model_of(s.options(ideal + list(args)))

H = lambda n: sum(1 / i for i in range(1, n + 1))
exponential, pareto = model("--compute", "exponential:10"), model("--compute", "pareto:5:3")
for n, b in ((1, 0), (8, 0), (8, 1), (8, 4), (100, 0), (100, 5), (100, 99)):
    row = s.figures(exponential, n, b)
    near("of %d exponentials the one with %d behind it" % (n, b), row["mean_ms"], 10 * (H(n) - H(b)), 0.03)
    near("samples/s", row["samples_per_s"], 64 * (n - b) / row["mean_ms"] * 1000)
    near("dropped", row["dropped"], b / n)
    near("efficiency", row["efficiency"], (n - b) / n * 10 / row["mean_ms"], 0.03)
for n in (2, 20):  # median of the longest of n, from P(longer than x) = (5 / x) ** 3
    near("longest of %d paretos" % n, s.figures(pareto, n, 0)["p50_ms"], 5 * (1 - 0.5 ** (1 / n)) ** (-1 / 3), 0.03)
near("half of all", np.mean(model("--compute", "constant:3+constant:8@0.5").compute(np.random.default_rng(1), 40000)), 7, 0.03)

# 8 MB; 0.1 ms a message, 0.008 ms a KB sent, 1 GB/s added.
link = s.model_of(s.options(["--mb", "8", "--alpha-us", "100", "--gbit", "1", "--add-gbs", "1"]))
send, add = 64.0, 8.0
near("ring of 5", s.allreduce_ms("ring", 5, 8e6, link), 8 * 0.1 + 2 * 0.8 * send + 0.8 * add)
near("halving and doubling of 8", s.allreduce_ms("halving_doubling", 8, 8e6, link), 6 * 0.1 + 2 * 7 / 8 * send + 7 / 8 * add)
near("halving and doubling of 5", s.allreduce_ms("halving_doubling", 5, 8e6, link), 4 * 0.1 + 2 * 3 / 4 * send + 3 / 4 * add + 2 * (0.1 + send) + add)
near("tree of 5", s.allreduce_ms("tree", 5, 8e6, link), 3 * (2 * (0.1 + send) + add))
near("alone", s.allreduce_ms("ring", 1, 8e6, link), 0)
near("auto, few bytes", s.allreduce_ms("auto", 5, 100, link), s.allreduce_ms("tree", 5, 100, link))
near("auto, many", s.allreduce_ms("auto", 8, 8e6, link), s.allreduce_ms("ring", 8, 8e6, link))
near("best", s.allreduce_ms("best", 100, 1e5, link), min(s.allreduce_ms(a, 100, 1e5, link) for a in s.ALGORITHMS))
nodes = s.model_of(s.options(["--mb", "8", "--node", "4:2", "--algorithm", "ring", "--gbit", "1", "--compute", "constant:100", "--overlap", "0"]))
near("two levels", s.exchange_ms(nodes, 10), 4 + s.allreduce_ms("ring", 3, 8e6, nodes))
near("a step", s.figures(nodes, 10, 0)["p50_ms"], 100 + s.exchange_ms(nodes, 10) + 1)
nodes.overlap = 0.1
near("ten ms of it hidden", s.figures(nodes, 10, 0)["p50_ms"], 90 + s.exchange_ms(nodes, 10) + 1)
nodes.overlap = 100
near("all but a bucket of 4 MB hidden", s.figures(nodes, 10, 0)["p50_ms"], 100 + s.exchange_ms(nodes, 10) / 2 + 1)
near("messages through one", s.control_ms(nodes, 100, 90), 4 * nodes.alpha + 291 * nodes.message)

# Steps by hand, with a grace that lets a tie be one: three ranks, the third takes 35 once; b = 1.
def by_hand(compute, *args, b=1, silent=()):
    run = s.Run(model("--grace-ms", "0.001", *args), len(compute[0]), b, 1)
    falls = [(np.array(a, bool), np.array(c, bool)) for a, c in silent]
    if falls:
        run.fall_silent = lambda: falls.pop(0) if falls else (np.zeros(run.n, bool),) * 2
    rows, times, members = [np.array(r, float) for r in compute], [], []
    for row in rows:
        before = run.now
        members.append(run.step(row))
        times.append(float(run.now - before))
    return times, members
def same(what, found, wanted):
    global bad
    times, members = wanted
    good = found[1] == members and np.allclose(found[0], times, atol=0.01)
    bad += not good
    print("%s %s: %s, wanted %s" % ("ok" if good else "FAIL", what, found, wanted))
once = [[10, 10, 35], [10, 10, 10], [10, 10, 10], [10, 10, 10]]
same("abandoned at once", by_hand(once), ([10] * 4, [2, 3, 3, 3]))
same("abandoned, a fetch of 4 and a grace of 5", by_hand(once, "--fetch-ms", "4", "--grace-ms", "5"), ([15, 14, 10, 10], [2, 3, 3, 3]))
same("not to be interrupted", by_hand(once, "--abandon", "end"), ([10] * 4, [2, 2, 2, 2]))
same("not to be interrupted, a grace", by_hand(once, "--abandon", "end", "--grace-ms", "6"), ([16, 16, 13, 10], [2, 2, 3, 3]))
same("all wait", by_hand(once, b=0), ([35, 10, 10, 10], [3] * 4))
even, no = [[10, 10, 10]] * 4, [0, 0, 0]
late = ("--silence", "0:45", "--suspect-ms", "20")
same("one silent, all wait", by_hand(even, *late, b=0, silent=[([0, 0, 1], no)]), ([55, 10, 10, 10], [3] * 4))
same("one silent, one to spare", by_hand(even * 2, *late, silent=[([0, 0, 1], no)]), ([10] * 8, [2] * 6 + [3] * 2))
same("two silent, one to spare: suspected once", by_hand(even * 2, *late, silent=[([0, 1, 1], no)]), ([20] + [10] * 7, [1] * 5 + [3] * 3))
same("silent in the collective: once", by_hand(even * 2, *late, silent=[(no, [0, 0, 1])]), ([30] + [10] * 7, [2] * 4 + [3] * 4))
sys.exit(bad > 0)
PY
/usr/bin/python3 unit.py "$simulate" >unit.log || fail "the model"
cat unit.log

# A run made up by the model's own rules fits; twice its delay does not.
/usr/bin/python3 - <<'PY'
import json
import numpy as np
rng = np.random.default_rng(3)
for n in (4, 8):
    with open("made-%d.jsonl" % n, "w") as f:
        f.write(json.dumps({"event": "start", "ranks": n}) + "\n")
        for i in range(500):
            f.write(json.dumps({"event": "step", "step": i, "step_ms": 22 + rng.exponential(5, n).max(), "compute_ms": 20 + rng.exponential(5), "data_ms": 0.5, "update_ms": 1.5}) + "\n")
        f.write('{"event": "st')
PY
none="--mb 0 --alpha-us 0 --update-ms 0"
deviation() { "$simulate" $none --compute "$1" --check "${@:2}" >check.log || fail "--check fails"; sed -nE 's/^largest deviation of the model: ([0-9.]+) %/\1/p' check.log; }
d=$(deviation constant:20+exponential:5 made-4.jsonl made-8.jsonl); awk "BEGIN{exit !($d < 20)}" || { fail "it deviates by $d % from its own rules"; cat check.log; }
[ "$(grep -c made- check.log)" -eq 4 ] || { fail "not two figures for each of two runs"; cat check.log; }
d=$(deviation made-4.jsonl made-8.jsonl); awk "BEGIN{exit !($d < 20)}" || { fail "it deviates by $d % with measured compute"; cat check.log; }
d=$(deviation constant:20+exponential:10 made-8.jsonl); awk "BEGIN{exit !($d > 30)}" || { fail "it does not see twice the delay: $d %"; cat check.log; }
# What a run of ours writes can be read; how near the model comes is for a quieter machine to say.
small_job
train 4 job.yaml train.eval_every=never checkpoint.dir=none report.dir=real train.steps=40 debug.compute_ms=5 "debug.delay={distribution: exponential, ms: 5}" >real.log 2>&1 || { fail "the real run"; tail -n 5 real.log; }
deviation constant:5+exponential:5 real/metrics.jsonl >/dev/null; grep -E '^ +4 +39 median' check.log || { fail "a real run is not read"; cat check.log; }

"$simulate" --ranks 4,64 --backup 0,2,5% --steps 50 --out out >table.log || fail "a sweep"
/usr/bin/python3 - <<'PY' || { fail "what it writes"; cat table.log; }
import json
rows = json.load(open("out/simulate.json"))["rows"]
assert [(r["ranks"], r["backup"]) for r in rows] == [(4, 0), (4, 2), (64, 0), (64, 2), (64, 3)], rows
assert all(r["p50_ms"] <= r["p90_ms"] <= r["p99_ms"] and 0 < r["efficiency"] < 1 for r in rows), rows
PY
[ "$(grep -cE '^ +(4|64) +[0-9]' table.log)" -eq 5 ] || { fail "the table"; cat table.log; }
! /usr/bin/python3 -c 'import matplotlib' 2>/dev/null || [ -s out/simulate.png ] || fail "no picture"
refuse() { local text=$1; shift; "$simulate" "$@" >out.log 2>&1 && fail "taken: $*"; grep -qF -- "$text" out.log || { fail "wanted \"$text\": $*"; cat out.log; }; }
refuse "--compute weibull:3: neither a file nor one of constant" --compute weibull:3
refuse "--compute pareto:5: pareto takes 2 numbers" --compute pareto:5
refuse "--compute constant:1@2: a probability is at most 1" --compute constant:1@2
refuse "--gbit: wanted a number" --gbit 0
refuse "--backup: wanted numbers, or a share" --backup 1.5
refuse "--ranks: wanted a number" --ranks 4,0
refuse "--node: wanted two numbers with a colon" --node 4
refuse "no start and ten steps" --check unit.log
refuse "No such file" --check missing.jsonl
refuse "--check takes ranks and steps from the runs, all with one --backup: no --steps" --check made-4.jsonl --steps 5
finish
