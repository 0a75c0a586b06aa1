#!/usr/bin/env bash
# Backup workers, started by jobs/launch.sh: ranks are killed, stopped, cut off or fail, and the rest goes on, or ends
# with a checkpoint and the right exit code. Ranks sleep in place of computing.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
. "$PL_SOURCE_DIR/tests/network/hosts.sh"
mpirun --version 2>&1 | grep -q 'Open MPI' || { echo "skipped: mpirun is not Open MPI's"; exit 77; }
small_job 2000
export PACELINE_LINGER=3

end_all() {
    local p
    for p in $(pgrep -x 'paceline|mpirun'); do
        grep -qzx "PL_TMPDIR=$PL_TMPDIR" "/proc/$p/environ" 2>/dev/null && kill -KILL "$p"
    done
    hosts_down
}
trap end_all EXIT

keys=(exchange.transport=tcp sync.backup_workers=1 sync.suspect_after="500 ms" sync.lost_after="1500 ms" debug.compute_ms=20
    train.batch=8 train.eval_every=never)
length=train.steps=100
# launch DIR N KEYS...: a run in the background, its output in DIR.log
launch() {
    local dir=$1 n=$2; shift 2
    rm -rf "$dir"
    timeout --kill-after=5 120 "$PL_SOURCE_DIR/jobs/launch.sh" --oversubscribe --bind-to none -n "$n" job.yaml "${keys[@]}" "$length" checkpoint.dir="$dir" report.dir="$dir" "$@" >"$dir.log" 2>&1 &
    launched=$!
}
# until_step DIR STEP: until the run has reported one that is later, or has ended
until_step() { wait_for 20 come_to "$@"; }
come_to() { [ "$(number "$1" step step)" -ge "$2" ] || ! kill -0 $launched; }
said() { grep -q "\"event\": \"$2\"" "$1/metrics.jsonl" || ! kill -0 $launched; } # said DIR EVENT: or it has ended
# ends DIR CODE MESSAGES PATTERN: the run ends with that code and so many (a pattern) messages of errors, its output having PATTERN
ends() {
    local code count
    wait $launched
    code=$?
    count=$(grep -c '^\[rank [0-9]*/[0-9]* [^]]*\] [a-z]*: ' "$1.log")
    if [ $code -ne "$2" ] || ! [[ $count =~ ^($3)$ ]] || ! grep -qE -- "$4" "$1.log"; then
        fail "$1: wanted exit $2, $3 errors and \"$4\", got exit $code and $count"
        grep -v '^epoch' "$1.log"
    else
        echo "ok: $1: exit $code, $(grep -E -- "$4" "$1.log" | head -n 1)"
    fi
    [ $code -eq 0 ] && [ -n "$(rank_of "$1")" ] && fail "$1: a rank is left"
}
kept() { [ -e "$1/latest" ] && [ -e "$1/$(cat "$1/latest")/model.h5" ] || fail "$1: no checkpoint"; }
untouched() { [ ! -e "$1/latest" ] || fail "$1: a checkpoint was written"; }

# Lost ranks.
length=train.epochs=2 launch killed 4; until_step killed 20
kill -KILL "$(rank_of killed 2)"
ends killed 0 0 '^lost rank 2 at step'
says killed '"event": "lost_rank"'; kept killed
shown=$(grep '^epoch' killed.log | tail -n 1) # with fewer ranks an epoch has more steps
[[ $shown =~ step\ ([0-9]+)/([0-9]+) && ${BASH_REMATCH[1]} -eq ${BASH_REMATCH[2]} && ${BASH_REMATCH[1]} -gt 125 ]] || fail "killed: its last line is $shown"
launch first 4; until_step first 20
kill -KILL "$(rank_of first 0)"
ends first 0 0 '^lost rank 0 at step'
[ "$(grep -c '"event": "end"' first/metrics.jsonl)" -eq 1 ] || fail "first: the rank that took over wrote no end"
kept first
grep -q 'PMIX ERROR' killed.log first.log && fail "words of Open MPI's own came through"
launch few 5; until_step few 20
kill -KILL "$(rank_of few 1)" "$(rank_of few 3)"
ends few 5 1 'lost rank 1, 3: 3 members are left, sync.backup_workers needs 4'
kept few
launch half 4; until_step half 20
kill -KILL "$(rank_of half 1)" "$(rank_of half 2)"
ends half 5 1 'cut off from most of the 4 members'
untouched half
launch nobody 2; until_step nobody 10
kill -KILL "$(rank_of nobody 0)" "$(rank_of nobody 1)"
ends nobody 5 0 'no nobody/exit.json: no rank lived'

# A rank that stops for a while comes back with the others' state.
for r in 0 2; do
    launch back$r 4 train.steps=250; until_step back$r 20
    stopped=$(rank_of back$r $r)
    kill -STOP "$stopped"; wait_for 20 said back$r lost_rank; kill -CONT "$stopped"
    ends back$r 0 0 "^rank $r is back at step"
    says back$r '"event": "lost_rank"'; says back$r '"event": "back_rank"'
done
# One that never comes back does not hold up the end.
launch stuck 4; until_step stuck 20
kill -STOP "$(rank_of stuck 3)"
ends stuck 0 '0|1' 'the run ended 3 s ago, a rank or mpirun did not'

# The same where parameters are averaged every few steps: a lost rank, one that comes back, too few.
averaged=(sync.kind=local_sgd sync.tau=4)
launch averaged 4 "${averaged[@]}"; until_step averaged 20
kill -KILL "$(rank_of averaged 2)"
ends averaged 0 0 '^lost rank 2 at step'
kept averaged
launch averaged-back 4 "${averaged[@]}" train.steps=300; until_step averaged-back 20
stopped=$(rank_of averaged-back 0)
kill -STOP "$stopped"; wait_for 20 said averaged-back lost_rank; kill -CONT "$stopped"
ends averaged-back 0 0 '^rank 0 is back at step'
grep -q '^4 ranks hold the same parameters' averaged-back.log || fail "averaged-back: $(tail -n 1 averaged-back.log)"
launch averaged-few 5 "${averaged[@]}"; until_step averaged-few 20
kill -KILL "$(rank_of averaged-few 1)" "$(rank_of averaged-few 3)"
ends averaged-few 5 1 'lost rank 1, 3: 3 members are left, sync.backup_workers needs 4'
kept averaged-few
launch averaged-slow 3 "${averaged[@]}" debug.delay.rank=2 debug.delay.ms=60
ends averaged-slow 0 0 '^replicas that came late, by rank: .*2: [0-9]'
step=$(cat averaged-few/latest) && [ $((10#${step#step-} % 4)) -eq 0 ] || fail "averaged-few: the checkpoint is of $step, no averaging"
launch averaged-signal 4 "${averaged[@]}" train.steps=5000; until_step averaged-signal 20
kill -USR1 "$(rank_of averaged-signal 2)"
ends averaged-signal 75 0 'stopped on a signal after step'
kept averaged-signal

# Signals. The evaluation that was due at the step of the stop is made as the run goes on, before its first step.
launch signal 4 train.steps=5000 train.eval_every="1 steps"; until_step signal 20
kill -USR1 "$(rank_of signal 2)"
ends signal 75 0 'stopped on a signal after step'
kept signal
timeout --kill-after=5 120 "$PL_SOURCE_DIR/jobs/launch.sh" --oversubscribe --bind-to none -n 4 job.yaml "${keys[@]}" train.steps=60 train.eval_every="1 steps" checkpoint.dir=signal report.dir=signal >resumed.log 2>&1 ||
    { fail "no resume after a signal"; cat resumed.log; }
at=$(sed -nE 's/^continuing at step ([0-9]+) .*/\1/p' resumed.log)
[ "$(grep -c "\"event\": \"eval\", \"step\": ${at:-none}," signal/metrics.jsonl)" = 1 ] || fail "it did not continue, or not with the evaluation that was due: $(head -n 8 resumed.log)"
launch term 4 train.steps=5000; until_step term 20
kill -TERM "$(pgrep -f 'launch.sh.*report.dir=term' -n)"
ends term 75 0 'stopped on a signal after step'
kept term
launch both 4 train.steps=5000; until_step both 20
kill -USR1 "$(rank_of both 3)"; kill -KILL "$(rank_of both 1)"
ends both 75 0 'stopped on a signal after step'
kept both

# Errors of one rank.
launch data 4 debug.fault=loader.read@rank=2@step=40:fail
ends data 3 1 'rank 2/4.*debug.fault at loader.read'
launch setup 4 data.train.file=missing.h5
ends setup 3 1 'missing.h5: No such file'
launch usage 4 train.epohcs=3
ends usage 2 1 'unknown key train.epohcs'
# One that is refused beside a run, in the same directories, does not end it.
launch beside 4 train.steps=400 checkpoint.every="10 steps"; until_step beside 20; wait_for 10 test -e beside/latest
"$PACELINE" train job.yaml "${keys[@]}" "$length" sync.backup_workers=0 checkpoint.dir=beside report.dir=beside checkpoint.resume=never >beside-refused.log 2>&1
[ $? -eq 6 ] && grep -q '"code": 6' beside/exit.json || fail "beside: it was not refused: $(cat beside-refused.log)"
ends beside 0 0 'hold the same parameters'
# refused OPTIONS TEXT: mpirun does not take them and says why
refused() {
    env -u OMPI_MCA_rmaps_base_oversubscribe "$PL_SOURCE_DIR/jobs/launch.sh" $1 job.yaml report.dir=refused >refused.log 2>&1 </dev/null
    local code=$?
    [ $code -eq 2 ] && grep -q -- "$2" refused.log && grep -q 'mpirun did not start the run' refused.log || fail "mpirun $1: exit $code: $(cat refused.log)"
}
refused "-n 2 --no-such-option" 'unknown option "--no-such-option"'
refused "-n 999" 'not enough slots'
refused "-H no-such-host.invalid:2 -n 2" 'unable to reliably start'

# A rank that is lost before the run begins: the others wait for it inside of MPI.
cat >late.sh <<'SH'
#!/bin/sh
# The last rank, or all, end before they have said anything to the others.
[ "$OMPI_COMM_WORLD_RANK" -lt "${PL_UP_TO:-2}" ] || eval "$PL_INSTEAD"
exec "$@"
SH
chmod +x late.sh
# lost_early NAME INSTEAD PATTERN COMMAND...: which starts launch.sh. With PL_UP_TO 0 all ranks are; and who cannot reach his launcher
# because of a lost one ends by himself (seen once, between hosts).
lost_early() {
    local name=$1 pattern=$3
    export PL_INSTEAD=$2; shift 3
    rm -rf "$name"
    PACELINE_LINGER=1 timeout --kill-after=5 60 "$@" ./late.sh "$PACELINE" train job.yaml "${keys[@]}" train.steps=30 checkpoint.dir="$name" report.dir="$name" >"$name.log" 2>&1 &
    launched=$!
    ends "$name" 5 0 "lost before the run began(, for which the others wait)?: (.*, )?rank 2 \\($pattern\\).*; (all are ended now|no other rank is left)"
    [ ! -e "$name/metrics.jsonl" ] || fail "$name: it began"
    ! grep -q ACTIVATE "$name.log" || fail "$name: it shows what mpirun says of its ranks: $(grep -m 1 ACTIVATE "$name.log")"
}
here=("$PL_SOURCE_DIR/jobs/launch.sh" --oversubscribe --bind-to none -n 3)
lost_early never-came 'exit 127' 'exited with non-zero status' "${here[@]}"
lost_early killed-early 'kill -KILL $$' 'aborted by signal' "${here[@]}"
grep -q "for which the others wait: rank 2 (aborted by signal); all are ended now" killed-early.log || fail "killed-early: $(tail -n 2 killed-early.log)"
PL_UP_TO=0 lost_early all-killed 'kill -KILL $$' 'aborted by signal' "${here[@]}"
grep -q "lost before the run began: rank .*; no other rank is left" all-killed.log || fail "all-killed: $(tail -n 2 all-killed.log)"
# mpirun itself is killed then, as by a node that is out of memory: it has not refused the run, which may be started again.
rm -rf no-mpirun
PL_UP_TO=0 PL_INSTEAD='[ "$OMPI_COMM_WORLD_RANK" -ne 0 ] || kill -KILL $PPID; exit' timeout --kill-after=5 60 "${here[@]}" ./late.sh "$PACELINE" train job.yaml "${keys[@]}" checkpoint.dir=no-mpirun report.dir=no-mpirun >no-mpirun.log 2>&1 &
launched=$!
ends no-mpirun 5 0 'no rank lived to write it.*mpirun ended with 137'

# Over MPI a lost rank ends the run, a stopped one as well.
for how in KILL STOP; do
    launch mpi-$how 3 exchange.transport=mpi sync.lost_after="3 s" exchange.timeout="3 s" debug.compute_ms=60 checkpoint.every="5 steps" train.steps=1000
    until_step mpi-$how 12
    kill -$how "$(rank_of mpi-$how 2)"; begin=$SECONDS
    ends mpi-$how 5 1 'sync: lost rank .*2'
    [ $((SECONDS - begin)) -le 13 ] || fail "mpi-$how: took $((SECONDS - begin)) s" # lost_after, and PACELINE_LINGER for a stopped one
    kept mpi-$how
done

# A host that is cut off ends with 5 and writes nothing; the others go on to the end.
why=$(hosts_possible) || { echo "the cut between hosts is skipped: $why"; finish; }
hosts_up 3
export HOSTS_NAME
cat >on_hosts.sh <<'SH'
#!/usr/bin/env bash
# The command on the three hosts, a rank each.
name=$HOSTS_NAME
. "$PL_SOURCE_DIR/tests/network/hosts.sh"
HOSTS_NAME=$name PL_LAUNCH=$PL_SOURCE_DIR/jobs/launch.sh
mpirun_on 3 1 "$@"
SH
cat >rank.sh <<'SH'
#!/bin/sh
# One rank, whose own exit code is kept.
trap '' TERM
"$@"
echo $? >"code.$OMPI_COMM_WORLD_RANK"
SH
chmod +x rank.sh on_hosts.sh
timeout --kill-after=5 120 ./on_hosts.sh ./rank.sh "$PACELINE" train job.yaml "${keys[@]}" checkpoint.dir=cut report.dir=cut train.steps=150 >cut.log 2>&1 &
launched=$!
until_step cut 20
link 3 down
for ((i = 0; i < 600; i++)); do [ -e code.0 ] && [ -e code.1 ] && [ -e code.2 ] && break; sleep 0.05; done
link 3 up # mpirun waits for its daemon there
ends cut 0 1 '^lost rank 2 at step'
[ "$(cat code.[012] | tr '\n' ' ')" = "0 0 5 " ] || fail "cut: the ranks ended with $(cat code.[012] | tr '\n' ' ')"
kept cut

# And one on another host that is lost before the run begins.
lost_early elsewhere 'kill -KILL $$' 'aborted by signal' ./on_hosts.sh
finish
