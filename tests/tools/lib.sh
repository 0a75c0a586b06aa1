# Sourced by the test scripts: where things are, and how ranks are started and outcomes checked.
set -u
. "$PL_SOURCE_DIR/tests/environment.sh"
tools=$PL_SOURCE_DIR/tests/tools
failures=0
fail() { echo "FAIL: $*"; failures=$((failures + 1)); }
# ranks N command...: under mpirun, with a limit
ranks() { local n=$1; shift; timeout --kill-after=5 120 "${PL_MPIRUN[@]}" -n "$n" "$@"; }
train() { local n=$1; shift; ranks "$n" "$PACELINE" train "$@"; }
expect() { # expect WANTED-CODE TEXT N ARGS...: a run that fails with this code and this text, once
    local wanted=$1 text=$2 n=$3 code count; shift 3
    train "$n" "$@" >out 2>&1
    code=$?
    count=$(grep -cF -- "$text" out)
    if [ $code -ne "$wanted" ] || [ "$count" -ne 1 ]; then
        fail "wanted exit $wanted and \"$text\" once, got exit $code and it $count times: $*"
        head -n 20 out
    else
        echo "ok: exit $code, $(grep -F -- "$text" out | head -n 1)"
    fi
}
job=(job.yaml) # what run trains, and keys that go with it
run() { # run N DIR KEYS...: a run in DIR that must succeed
    local n=$1 dir=$2; shift 2
    train "$n" "${job[@]}" checkpoint.dir="$dir" report.dir="$dir" "$@" >"$dir.log" 2>&1 || { fail "training failed: $dir"; tail -n 5 "$dir.log"; }
}
model() { echo "$1/$(cat "$1/latest")/model.h5"; } # of the run in DIR, the newest
compare() { # compare DIR DIR HOW...: the models of two runs; HOW: of compare.py
    echo -n "$1 against $2: "
    "$tools/compare.py" "$(model "$1")" "$(model "$2")" "${@:3}" || fail "$1 and $2 differ"
}
says() { grep -q "$2" "$1/metrics.jsonl" || fail "$1: wanted $2: $(head -n 1 "$1/metrics.jsonl")"; } # says DIR PATTERN
# rank_of TEXT: the pid of the last paceline process of this test with TEXT in its command line
rank_of() {
    local p last=
    for p in $(pgrep -f -- "$1"); do
        [ "$(cat "/proc/$p/comm" 2>/dev/null)" = paceline ] && grep -qzx "PL_TMPDIR=$PL_TMPDIR" "/proc/$p/environ" && last=$p
    done
    echo "$last"
}
# stop_at DIR STEPS: USR1 to a rank of the run that writes to DIR once it has reported one of STEPS (a pattern)
stop_at() {
    local i
    for ((i = 0; i < 2000; i++)); do grep -qE "\"step\": $2," "$1/metrics.jsonl" 2>/dev/null && break; sleep 0.02; done
    kill -USR1 "$(rank_of "checkpoint.dir=$1")"
}
finish() { [ $failures -eq 0 ] || { echo "$failures checks failed"; exit 1; }; exit 0; }
/usr/bin/python3 -c 'import h5py' 2>/dev/null || { echo "skipped: python3-h5py is not installed"; exit 77; }
