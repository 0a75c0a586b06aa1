#!/usr/bin/env bash
# bench nullstep: each case on 1 to 3 ranks by every way to add up (the program itself checks the parameters at the end),
# what it prints and writes, and refusals.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
nullstep() { local n=$1; shift; ranks "$n" "$PACELINE" bench nullstep --json=all.json "$@" >out 2>&1 || { fail "nullstep on $n ranks: $*"; cat out; }; cat out; }
cases=0
for n in 1 2 3; do
    for by in "" "--transport mpi --algorithm ring" "--transport tcp --channels 1"; do
        [ $n -eq 1 ] && [ -n "$by" ] && continue
        nullstep $n --case scalar --steps 20 $by
        nullstep $n --case sparse --rows 50 --steps 10 $by # few rows: many are touched twice in a step
        cases=$((cases + 2))
    done
done
nullstep 2 --case 100MB --steps 2
nullstep 2 --case scalar # as many steps as fit
/usr/bin/python3 - $((cases + 2)) <<'PY' || { fail "what it writes"; cat all.json; }
import json, sys
lines = [json.loads(line) for line in open("all.json")]
assert len(lines) == int(sys.argv[1]), len(lines)
for b in lines:
    parts = b["fetch_ms"] + b["exchange_ms"] + b["update_ms"]
    assert b["steps"] == {"sparse": 10, "100MB": 2}.get(b["case"], 20) or b is lines[-1], b
    assert abs(1000 / b["steps_per_s"] - parts) < 0.01 * parts + 0.001 and 0 < b["step_ms"] <= b["p99_ms"], b
    assert b["parameters_mb"] == {"scalar": 0, "100MB": 100, "sparse": 0.819}[b["case"]], b
    assert b["gradient_mb"] == {"scalar": 0, "100MB": 100, "sparse": round(b["ranks"] * 32 * 4097 * 4 / 1e6, 3)}[b["case"]], b
assert lines[-1]["steps"] > 20, lines[-1]
assert [b["transport"] for b in lines if b["ranks"] == 3] == ["none", "none", "mpi", "mpi", "tcp", "tcp"], lines
PY
refuse() { local text=$1; shift; ranks 2 "$PACELINE" bench nullstep "$@" >out 2>&1; [ $? -eq "$code" ] && grep -qF -- "$text" out || { fail "wanted $code and \"$text\": $*"; cat out; }; }
code=2
refuse "--case 10GB: one of all, scalar, 100MB, 1GB, sparse" --case 10GB
refuse "--steps 0: an integer" --steps 0
refuse "--rows many: an integer" --rows many
refuse "--transport shared: one of auto, mpi, tcp, verbs" --transport shared
refuse "--algorithm star: one of auto, native, ring" --algorithm star
refuse "nullstep takes no job file" job.yaml
refuse "transport tcp has none" --case scalar --transport tcp --algorithm native
code=6 refuse "none/x: cannot be written" --case scalar --json none/x
free=$(awk '/MemAvailable/ {print $2}' /proc/meminfo)
if [ "$free" -lt 500000000 ]; then # KiB; 2 ranks of 275 GB
    code=7 refuse "nullstep sparse: node" --case sparse --rows 16777216
fi
finish
