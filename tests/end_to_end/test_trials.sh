#!/usr/bin/env bash
# Trials of stragglers: debug.delay holds the named ranks up, as drawn, in every run alike, and changes no bit of the
# result; debug.compute_ms sleeps in place of computing while all else goes on; both say so; wrong values are refused.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job
job+=(train.eval_every=never)
tells() { grep -qF "trial: $2" "$1.log" && grep -qF "\"trial\": \"$2" "$1/metrics.jsonl" || { fail "$1 does not say: $2"; head -n 5 "$1.log"; }; }
steps() { # steps DIR PYTHON-CONDITION over step_ms, compute_ms (lists) and metrics (a list of all steps)
    /usr/bin/python3 - "$@" <<'PY' || fail "$1: not true: $2"
import json, sys
from statistics import median
metrics = [e for e in map(json.loads, open(sys.argv[1] + "/metrics.jsonl")) if e["event"] == "step"]
step_ms, compute_ms = ([e[k] for e in metrics] for k in ("step_ms", "compute_ms"))
print("%s: %d steps of %.1f to %.1f ms" % (sys.argv[1], len(metrics), min(step_ms), max(step_ms)))
sys.exit(not eval(sys.argv[2]))
PY
}

run 2 plain train.steps=12
# The sleeping rank's compute_ms has it, the other's exchange; both take the step's time. Not a bit changes.
run 2 first train.steps=12 "debug.delay={rank: 0, ms: 40}"
run 2 other train.steps=12 "debug.delay={rank: [1], ms: 40}"
run 3 both train.steps=4 "debug.delay={rank: [1, 2], ms: 40}"
steps first 'min(step_ms) >= 40 and min(compute_ms) >= 40'
steps other 'median(step_ms) >= 40 and median(e["step_ms"] - e["data_ms"] - e["update_ms"] for e in metrics) >= 39' # but where it was late itself
compare plain first 0 0 exact
compare plain other 0 0 exact
tells first 'debug.delay: rank 0 held up in each step, 40 ms'
tells both 'debug.delay: ranks 1, 2 held up in each step, 40 ms'
grep -q trial plain.log plain/metrics.jsonl && fail "a run without a trial speaks of one"
# Drawn: some of 20 steps are held up, and the same ones again; rank 0 may come late to what the other sleeps through.
run 2 drawn train.steps=20 "debug.delay={ms: 600, probability: 0.1}"
run 2 again train.steps=20 "debug.delay={ms: 600, probability: 0.1}"
steps drawn '0 < sum(t >= 500 for t in step_ms) < 20'
held() { sed -nE 's/.*"step": ([0-9]+),.*"step_ms": ([0-9.]+).*/\1 \2/p' "$1/metrics.jsonl" | awk '$2 >= 500 {print $1}' | tr '\n' ' '; }
[ "$(held drawn)" = "$(held again)" ] || fail "held up in steps $(held drawn)and then in $(held again)"
tells drawn 'debug.delay: every rank held up in each step, 600 ms, with probability 0.1'
# Sleeping in place of computing: a constant loss, gradients of 0, the exchange and the update as ever.
still="debug.compute_ms=20 optimizer.weight_decay=0"
run 2 early $still train.steps=1
run 2 late $still train.steps=6 train.global_batch=190 "debug.delay={distribution: pareto, ms: 10, shape: 3}"
run 2 network $still train.steps=6 exchange.transport=mpi exchange.algorithm=ring train.accumulate=2 "debug.delay={distribution: exponential, ms: 3}"
steps early 'min(compute_ms) >= 20'
steps late 'min(step_ms) >= 30 and all(e["loss"] == 1 and e["accuracy"] == 0 for e in metrics)'
steps network 'min(step_ms) >= 40'
compare early late 0 0 exact
compare early network 0 0 exact
run 2 decays debug.compute_ms=1 train.steps=6
"$tools/compare.py" "$(model early)" "$(model decays)" 0 0 exact >/dev/null && fail "no weight decay: the optimizer does not run"
tells late 'debug.compute_ms: forward and backward are a sleep of 20 ms, gradients are 0; debug.delay: every rank held up in each step, pareto, at least 10 ms, shape 3'
tells network 'debug.compute_ms: forward and backward are a sleep of 20 ms, gradients are 0; debug.delay: every rank held up in each step, exponential, mean 3 ms'

no="checkpoint.dir=no report.dir=no"
expect 2 "debug.delay.rank 2: there are ranks 0 to 1" 2 job.yaml $no "debug.delay={rank: 2, ms: 5}"
expect 2 "debug.delay needs ms: how long a rank sleeps" 2 job.yaml $no "debug.delay={rank: 1}"
expect 2 "debug.delay.shape is of distribution pareto only" 2 job.yaml $no "debug.delay={ms: 1, shape: 2}"
expect 2 'debug.delay.shape: wanted a number, from 0.1 to 100, found "0"' 2 job.yaml $no "debug.delay={ms: 1, distribution: pareto, shape: 0}"
expect 2 'debug.delay.probability: wanted a number, from 0 to 1, found "1.5"' 2 job.yaml $no "debug.delay={ms: 1, probability: 1.5}"
expect 2 'debug.delay.distribution: wanted one of fixed|exponential|pareto, found "normal"' 2 job.yaml $no "debug.delay={ms: 1, distribution: normal}"
expect 2 'debug.delay.ms: wanted a number, from 0 to 1e+06, found "-1"' 2 job.yaml $no debug.delay.ms=-1
expect 2 'debug.delay.rank: wanted an integer or a list of integers' 2 job.yaml $no "debug.delay={ms: 1, rank: all}"
expect 2 'debug.compute_ms: wanted a number, from 0 to 1e+06, found "soon"' 2 job.yaml $no debug.compute_ms=soon
finish
