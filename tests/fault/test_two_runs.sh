#!/usr/bin/env bash
# A run that is started again while its older life still computes: the older one ends with 6 at its next checkpoint, and says
# nothing in place of the newer one, which goes on from the last that the older one wrote.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job
keys=(train.batch=8 train.eval_every=never debug.compute_ms=10)

# begin DIR N KEYS...: a run in the background
begin() {
    local dir=$1 n=$2; shift 2
    if [ "$dir" = launched ] && [ ! -e "$dir" ]; then # the older one
        PACELINE_LINGER=3 timeout --kill-after=5 120 "$PL_SOURCE_DIR/jobs/launch.sh" "${PL_MPIRUN[@]:1}" -n "$n" job.yaml "${keys[@]}" checkpoint.dir="$dir" report.dir="$dir" "$@" >"$dir.log" 2>&1 &
    else
        train "$n" job.yaml "${keys[@]}" checkpoint.dir="$dir" report.dir="$dir" "$@" >"$dir.log" 2>&1 &
    fi
    begun=$!
}
# two_runs DIR N KEYS...
two_runs() {
    local dir=$1 n=$2 older code; shift 2
    rm -rf "$dir"
    begin "$dir" "$n" train.steps=20000 checkpoint.every="5 steps" "$@"
    older=$begun
    wait_for 30 test -e "$dir/latest" || fail "$dir: the older run wrote no checkpoint: $(tail -n 3 "$dir.log")"
    mv "$dir.log" "$dir.older.log"
    begin "$dir" "$n" train.steps=20000 checkpoint.every="100 steps" "$@"
    wait $older
    code=$?
    [ $code -eq 6 ] || fail "$dir: the older run ended with $code, wanted 6: $(tail -n 3 "$dir.older.log")"
    [ "$(grep -c 'another run has begun here since (process' "$dir.older.log")" -eq 1 ] || fail "$dir: wanted one message: $(cat "$dir.older.log")"
    [ ! -e "$dir/exit.json" ] || fail "$dir: the older run said how the newer one ended: $(cat "$dir/exit.json")"
    reported=$(grep -c '"event": "checkpoint"' "$dir/metrics.jsonl")
    wait_for 30 more_checkpoints "$dir" || fail "$dir: the newer run writes no checkpoints"
    kill -USR1 "$(rank_of "$dir" | tail -n 1)"
    wait $begun
    code=$?
    [ $code -eq 75 ] || fail "$dir: the newer run ended with $code, wanted 75: $(tail -n 3 "$dir.log")"
    grep -q '"code": 75' "$dir/exit.json" || fail "$dir: exit.json of the newer run: $(cat "$dir/exit.json")"
    grep -q '"event": "resume"' "$dir/metrics.jsonl" || fail "$dir: the newer run did not go on"
    echo "ok: $dir: $(grep -m 1 'another run' "$dir.older.log")"
}
more_checkpoints() { [ "$(grep -c '"event": "checkpoint"' "$1/metrics.jsonl")" -gt "$reported" ]; }

two_runs alone 1
two_runs continues 2 checkpoint.on_error=continue
two_runs parts 2 exchange.transport=tcp exchange.compress=one_bit
two_runs quorum 3 exchange.transport=tcp sync.backup_workers=1
if mpirun --version 2>&1 | grep -q 'Open MPI'; then
    two_runs launched 3 exchange.transport=tcp sync.backup_workers=1
    [ "$(echo launched/exit*.json)" = launched/exit.json ] || fail "launched: left behind: $(echo launched/exit*.json)"
fi

# What the newer one writes stays: the older finds out with its own part written, and when it would name its checkpoint.
begin parts-late 2 train.steps=2000 checkpoint.every="20 steps" exchange.transport=tcp exchange.compress=one_bit debug.delay.ms=10 debug.fault=checkpoint.before_rename@step=60:delay=4000
older=$begun
wait_for 60 test -e parts-late/step-00000040 || fail "parts-late: the older run wrote no checkpoint"
mv parts-late.log parts-late.older.log
begin parts-late 2 train.steps=140 checkpoint.every="20 steps" exchange.transport=tcp exchange.compress=one_bit debug.fault=checkpoint.write:delay=1500
newer=$begun
wait $older
[ $? -eq 6 ] || fail "parts-late: the older run: $(tail -n 3 parts-late.older.log)"
wait $newer
[ $? -eq 0 ] && [ "$(cat parts-late/latest)" = step-00000140 ] || fail "parts-late: the newer run: $(tail -n 3 parts-late.log)"

# A run that is refused, or has nothing to do, takes nothing from the one that is there.
begin refused 1 train.steps=20000 checkpoint.every="5 steps"
wait_for 30 test -e refused/latest
expect 6 'checkpoint.resume is never' 1 job.yaml "${keys[@]}" train.steps=20000 checkpoint.dir=refused checkpoint.resume=never
expect 6 'report: /proc/nope: cannot be made' 1 job.yaml "${keys[@]}" train.steps=20000 checkpoint.dir=refused report.dir=/proc/nope
train 1 job.yaml "${keys[@]}" train.steps=1 checkpoint.dir=refused report.dir=done >done.log 2>&1 && grep -q 'this run is done' done.log || fail "a run that is over: $(tail -n 3 done.log)"
steps=$(number refused checkpoint step)
wait_for 30 eval '[ "$(number refused checkpoint step)" -gt $((steps + 10)) ]' || fail "refused: the run stopped: $(tail -n 3 refused.log)"
kill -USR1 "$(rank_of refused)"
wait $begun
[ $? -eq 75 ] || fail "refused: the run there ended otherwise: $(tail -n 3 refused.log)"
finish
