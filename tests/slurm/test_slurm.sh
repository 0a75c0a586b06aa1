#!/usr/bin/env bash
# jobs/slurm/train.sbatch on a real Slurm of three nodes: a run that is told to stop, or loses a node or a rank, comes back by
# itself and ends with the bits of one that was left alone; one that fails, or is cancelled, does not come back.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
. "$PL_SOURCE_DIR/tests/slurm/cluster.sh"
why=$(cluster_possible) || { echo "skipped: $why"; rm -rf "$CLUSTER"; exit 77; }
trap cluster_down EXIT
small_job 2000
cluster_up 3 || { echo "FAIL: no cluster"; exit 1; }
export PACELINE PACELINE_MPIRUN=${PL_MPIRUN[*]:1} PACELINE_LINGER=3

keys=(train.batch=8 train.steps=120 train.eval_every=never checkpoint.every="10 steps")
# submit DIR OPTIONS... -- KEYS...: a job of two nodes with a rank each; $id is its number
submit() {
    local dir=$1 options=(); shift
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    id=$(sbatch --parsable --nodes=2 --ntasks-per-node=1 --output="$dir.log" "${options[@]}" "$PL_SOURCE_DIR/jobs/slurm/train.sbatch" job.yaml \
        checkpoint.dir="$dir" report.dir="$dir" "${keys[@]}" "$@") || fail "$dir: sbatch refused the job"
}
field() { scontrol show job "$id" -o | grep -oE "(^| )$1=[^ ]*" | cut -d= -f2-; } # of the job
over() { case $(field JobState) in COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL) ;; *) false ;; esac }
# ends DIR STATE CODE LIVES: the job comes to its end so
ends() {
    wait_for 120 over || fail "$1: the job does not end: $(field JobState)"
    local state code lives
    state=$(field JobState) code=$(field ExitCode) lives=$(grep -c '^train.sbatch: job .*, life ' "$1.log")
    if [ "$state" != "$2" ] || ! [[ $code =~ ^$3$ ]] || ! [[ $lives =~ ^($4)$ ]]; then
        fail "$1: wanted $2, $3 and $4 lives, got $state, $code and $lives"
        grep -v '^epoch' "$1.log"; tail -n 20 "$CLUSTER/log/slurmctld"
    else
        echo "ok: $1: $state, exit $code, $lives lives: $(grep -m 1 'train.sbatch: .*again' "$1.log")"
    fi
}
comes_to() { wait_for 60 come_to "$@" || fail "$1: it does not come to step $2: $(tail -n 5 "$1.log")"; } # comes_to DIR STEP
come_to() { [ "$(number "$1" step step)" -ge "$2" ]; }
slow=debug.delay.ms=40

submit alone --
ends alone COMPLETED 0:0 1
says alone '"ranks": 2'

submit told -- $slow
comes_to told 20
scancel --batch --signal=USR1 "$id"
ends told COMPLETED 0:0 2
grep -q 'stopped on a signal; queued again' told.log || fail "told: it does not say why it comes back"
compare alone told 0 0 exact

# Every life after the first goes on from what the one before it left, whatever checkpoint.resume says.
mkdir "begun with"
cp -r alone/step-00000110 "begun with/"
submit again -- $slow train.steps=240 checkpoint.resume="begun with"
comes_to again 130
scancel --batch --signal=USR1 "$id"
ends again COMPLETED 0:0 2
grep -q 'continuing at step 110 from begun with' again.log && [ "$(grep -c 'continuing at step 1[2-9][0-9] from again/' again.log)" -eq 1 ] || fail "again: $(grep continuing again.log)"

submit crashed -- $slow
comes_to crashed 30
batch=$(field BatchHost)
for k in 1 2 3; do [[ "$(scontrol show hostnames "$(field NodeList)")" == *n$k* ]] && [ n$k != "$batch" ] && lost=$k; done
crash "$lost"
sleep 1; boot "$lost"
ends crashed COMPLETED 0:0 '[23]' # another where Slurm starts it on the node that is just coming back
compare alone crashed 0 0 exact
resumed crashed '[1-9]0'

submit killed -- $slow
comes_to killed 30
kill -KILL "$(rank_of killed | tail -n 1)"
ends killed COMPLETED 0:0 2
compare alone killed 0 0 exact

# With backup workers it goes on without that rank.
submit backup --nodes=3 -- $slow exchange.transport=tcp sync.backup_workers=1 sync.suspect_after="500 ms" sync.lost_after="1500 ms" train.steps=150
comes_to backup 30
kill -KILL "$(rank_of backup 1)"
ends backup COMPLETED 0:0 1
says backup '"event": "lost_rank"'

submit wrong -- train.epohcs=3
ends wrong FAILED 2:0 0
grep -q 'unknown key train.epohcs' wrong.log || fail "wrong: $(cat wrong.log)"
submit fails -- debug.fault=loader.read@rank=1@step=20:fail
ends fails FAILED 3:0 1
PACELINE_RESTARTS=0 submit hopeless -- exchange.timeout="2 s" debug.fault=exchange.start@rank=1@step=5:fail
ends hopeless FAILED 5:0 1
grep -q 'no checkpoint newer than the beginning: not queued again' hopeless.log || fail "hopeless: $(tail -n 5 hopeless.log)"
submit cancelled -- $slow
comes_to cancelled 20
scancel "$id"
ends cancelled CANCELLED '[0-9]*:[0-9]*' 1
finish
