# Sourced by the test scripts: where things are, how ranks are started and outcomes checked. It goes to the test's folder.
set -u
. "$PL_SOURCE_DIR/tests/environment.sh"
tools=$PL_SOURCE_DIR/tests/tools
failures=0
fail() { echo "FAIL: $*"; failures=$((failures + 1)); }
finish() { [ $failures -eq 0 ] || { echo "$failures checks failed"; exit 1; }; exit 0; }
/usr/bin/python3 -c 'import h5py' 2>/dev/null || { echo "skipped: python3-h5py is not installed"; exit 77; }
cd "$PL_TMPDIR" || exit 1
make_set() { "$tools/make_set.py" "$@" || exit 1; }
# small_job [TRAIN [TEST]]: job.yaml, its networks, and sets of so many samples that they can learn
small_job() { cp "$tools"/*.yaml . && make_set train.h5 "${1:-1000}" 1 12 4 1 && make_set test.h5 "${2:-203}" 1 12 4 2; }
sanitized() { [ -n "${PL_SANITIZE:-}" ]; } # everything takes several times as long

# ---- ranks ----------------------------------------------------------------------------------------------------------
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

# ---- what a run has reported ------------------------------------------------------------------------------------------
says() { grep -q "$2" "$1/metrics.jsonl" || fail "$1: wanted $2: $(head -n 1 "$1/metrics.jsonl")"; } # says DIR PATTERN
event() { grep "\"event\": \"$2\"" "$1/metrics.jsonl" | tail -n 1; } # event DIR NAME: the last
number() { event "$1" "$2" | sed -nE "s/.*\"$3\": ([0-9.e+-]+).*/\1/p"; } # number DIR EVENT KEY
# evaluates_to FILE DIR: what eval has printed is, but for rounding, what the run in DIR ended with
evaluates_to() { holds "($(sed -nE 's/.*: loss ([0-9.]+),.*/\1/p' "$1") - $(number "$2" eval loss))^2 < 1e-10" "$(cat "$1"), the run ended with $(event "$2" eval)"; }
holds() { awk "BEGIN{exit !($1)}" || fail "wanted $1: $2"; } # holds CONDITION WHAT: of numbers
resumed() { grep -q "\"event\": \"resume\", \"step\": $2" "$1/metrics.jsonl" || fail "$1: it did not go on from step $2"; } # resumed DIR STEP

# ---- what all networks must do ------------------------------------------------------------------------------------------
# no_network TEXT SED: net.yaml, changed so, is refused with this text
no_network() {
    sed "$2" net.yaml >other.yaml
    cmp -s net.yaml other.yaml && fail "nothing is changed by $2"
    expect 2 "$1" 1 job.yaml checkpoint.dir=no report.dir=no model=other.yaml
}
# stops_and_goes_on: with the bits of a run that was not stopped
stops_and_goes_on() {
    run 1 long train.epochs=2
    stopped 1 stops 7 train.epochs=2 report.every="1 steps" debug.fault=step@step=9:delay=2000
    run 1 stops train.epochs=2
    compare long stops 0 0 exact
}
# near_in_bf16 DIR: where the processor has it, a run in bf16 comes near to the loss of the run in DIR
near_in_bf16() {
    ! "$PACELINE" doctor | grep -q '^cpu backend.*no bf16' || return 0
    run 1 bf16 train.precision=bf16
    holds "($(number "$1" eval loss) - $(number bf16 eval loss))^2 < 1e-2" "$(event "$1" eval), in bf16 $(event bf16 eval)"
}
# predicts DIR: by the run's network, on 2 ranks, into P.h5; eval says what the run ended with
predicts() {
    ranks 2 "$PACELINE" predict job.yaml train.batch=7 checkpoint.dir="$1" --out P.h5 >predict.log 2>&1 || fail "predict: $(cat predict.log)"
    ranks 1 "$PACELINE" eval job.yaml checkpoint.dir="$1" >eval.log 2>&1 && evaluates_to eval.log "$1" || fail "eval: $(cat eval.log)"
}

# ---- what happens to a run ---------------------------------------------------------------------------------------------
wait_for() { local i; for ((i = 0; i < 50 * $1; i++)); do "${@:2}" 2>/dev/null && return; sleep 0.02; done; return 1; } # wait_for SECONDS COMMAND...
reported() { grep -qE "\"step\": $2," "$1/metrics.jsonl"; } # reported DIR STEPS (a pattern)
# rank_of DIR [R]: the pid of rank R of the run in DIR, or of all its ranks
rank_of() {
    local p
    for p in $(pgrep -x paceline); do
        grep -qzx "report.dir=$1" "/proc/$p/cmdline" 2>/dev/null && grep -qzx "PL_TMPDIR=$PL_TMPDIR" "/proc/$p/environ" &&
            { [ $# -eq 1 ] || grep -qzx "OMPI_COMM_WORLD_RANK=$2" "/proc/$p/environ"; } && echo "$p"
    done
}
# stopped N DIR STEPS KEYS...: a run in DIR whose last rank gets USR1 once one of STEPS (a pattern) is reported: it ends with 75
stopped() {
    local n=$1 dir=$2 steps=$3 pid code; shift 3
    train "$n" "${job[@]}" checkpoint.dir="$dir" report.dir="$dir" "$@" >"$dir.log" 2>&1 &
    pid=$!
    wait_for 100 reported "$dir" "$steps" && kill -USR1 "$(rank_of "$dir" | tail -n 1)"
    wait $pid
    code=$?
    [ $code -eq 75 ] || fail "$dir: a stopped run ended with $code, wanted 75: $(tail -n 3 "$dir.log")"
}
# row_loses KEYS...: of a split model on 4 ranks rank 1 is killed, or ends: rank 0, which has the rest of its replica, says so; there is no checkpoint
row_loses() {
    local how code
    PL_MPIRUN+=(--enable-recovery)
    for how in kill exit; do
        train 4 "${job[@]}" exchange.transport=tcp exchange.timeout="5 s" debug.fault="step@rank=1@step=3:$how" checkpoint.dir=lost-$how report.dir=lost-$how "$@" >lost-$how.log 2>&1
        code=$?
        [ $code -ne 124 ] || fail "lost-$how: some rank goes on"
        [ "$(grep -c "rank 0/4.* step 3. split: .*lost rank 1 " lost-$how.log)" = 1 ] || fail "lost-$how: wanted one message: $(grep rank lost-$how.log)"
        [ ! -e lost-$how/latest ] || fail "lost-$how: a checkpoint"
    done
}
# loses R DIR KEYS...: a run of 4 that loses rank R: code 5 and one message of who notices; a rank that hangs is killed then
loses() {
    local lost=$1 dir=$2 pid by; shift 2
    by=$([ "$lost" = 0 ] && echo 1 || echo 0)
    train 4 "${job[@]}" checkpoint.dir="$dir" report.dir="$dir" exchange.timeout="3 s" "$@" >"$dir.log" 2>&1 &
    pid=$!
    wait_for 30 test -e "$dir/exit.json"
    grep -q '"code": 5' "$dir/exit.json" || fail "$dir: $(cat "$dir/exit.json") $(tail -n 3 "$dir.log")"
    wait_for 5 grep -q "sync: .*rank $lost" "$dir.log" # said after exit.json
    # shellcheck disable=SC2046
    kill -KILL $(rank_of "$dir" "$lost") 2>/dev/null
    wait $pid
    [ "$(grep -c "rank $by/4.* sync: .*rank $lost" "$dir.log")" = 1 ] || fail "$dir: wanted one message: $(cat "$dir.log")"
}
