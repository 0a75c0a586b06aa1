#!/usr/bin/env bash
# The verbs transport for real, in one guest with soft-RoCE: its unit test with a device, training, ranks that are lost;
# then what a device that is missing, down, or without its library is called.
set -u
if [ "${1:-}" != inside ]; then
    . "$PL_SOURCE_DIR/tests/tools/lib.sh"
    small_job 600 103
    exec env LIMIT=1140 "$PL_SOURCE_DIR/tests/rdma/run_in_guest.sh" "$0" inside
fi

failed=0
test_verbs=$PL_BUILD_DIR/tests/unit_verbs
export PL_MPIEXEC OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
check() { # check WHAT COMMAND...
    local what=$1 begin=$SECONDS; shift
    if "$@"; then echo "ok: $what, $((SECONDS - begin)) s"; else echo "FAILED: $what"; failed=1; fi
}
probe_says() { PL_TEST_ONLY=test_probe "$test_verbs" 2>&1 | tee /tmp/probe | grep -qF "$1" || { cat /tmp/probe; return 1; }; }
unit() { "$test_verbs" >/tmp/unit 2>&1; local code=$?; grep -vE '^\[ RUN|debug.fault is on' /tmp/unit; [ $code -eq 0 ] && ! grep -q SKIPPED /tmp/unit; }

check "unit test with a device" unit

# Ranks that meet over MPI, whose own use of the device must not be in the way.
network() { # network EXPECTED
    "$PL_MPIEXEC" --oversubscribe -n 3 "$PL_BUILD_DIR/tests/rdma_network" verbs >/tmp/network 2>&1
    local code=$?
    cat /tmp/network
    [ $code -eq 0 ] && grep -q "$1" /tmp/network
}
check "three ranks of mpirun" network '^transport verbs (rxe0 port 1, RoCE v2, 4096 B MTU): .*, 2 channels; 3 ranks.*, 40 given up'

# The same training over verbs and mpi (and so over tcp: end_to_end_exchange), by the same algorithm: equal bits; then until
# it has learnt.
run() { # run RANKS DIR KEYS...
    local n=$1 dir=$2; shift 2
    "$PL_MPIEXEC" --oversubscribe -n "$n" "$PACELINE" train job.yaml checkpoint.dir="$dir" report.dir="$dir" checkpoint.background=false "$@" >"$dir.log" 2>&1 || { tail -n 5 "$dir.log"; return 1; }
}
training() {
    cd "$PL_TMPDIR" || return 1
    local n t a
    for n in 3 4; do
        a=ring; [ $((n % 2)) -eq 1 ] && a=halving_doubling
        for t in mpi verbs; do
            run $n $t-$n train.steps=4 train.global_batch=190 train.eval_every=never exchange.bucket_mb=0.002 exchange.transport=$t exchange.algorithm=$a || return 1
        done
    done
    run 1 verbs-1 train.steps=4 train.global_batch=190 train.eval_every=never exchange.transport=verbs || return 1
    /usr/bin/python3 - <<'PY' || return 1
import os, runpy, sys
def compare(*args):
    sys.argv = ["compare.py"] + list(args)
    try:
        runpy.run_path(os.environ["PL_SOURCE_DIR"] + "/tests/tools/compare.py")
    except SystemExit as e:
        if e.code:
            sys.exit("%s and %s differ" % args[:2])
for n in 3, 4:
    compare("mpi-%d/step-00000004/model.h5" % n, "verbs-%d/step-00000004/model.h5" % n, "0", "0", "exact")
    compare("verbs-1/step-00000004/model.h5", "verbs-%d/step-00000004/model.h5" % n, "1e-5", "1e-4")
PY
    run 2 learn train.epochs=6 train.eval_every=never exchange.transport=verbs || return 1
    head -n 1 learn/metrics.jsonl | grep -o '"transport".*"parameters"'
    grep '"eval"' learn/metrics.jsonl | grep -qE '"accuracy": (0.9|1)' || { tail -n 3 learn/metrics.jsonl; return 1; }
    grep '"eval"' learn/metrics.jsonl
}
check "training over verbs" training

# Backup workers over verbs: a rank is killed, rank 0 is stopped until it is struck off and comes back; averaging; and
# gradients as they come.
rank_of() { # rank_of DIR R: its pid. Without programs of its own: those take long here, and the run goes on
    local p words
    for p in $(pgrep -x paceline); do
        mapfile -d '' -t words <"/proc/$p/cmdline" && [[ " ${words[*]} " = *" report.dir=$1 "* ]] || continue
        mapfile -d '' -t words <"/proc/$p/environ" && [[ " ${words[*]} " = *" OMPI_COMM_WORLD_RANK=$2 "* ]] && echo "$p"
    done
}
until_seen() { local i; for ((i = 0; i < 600; i++)); do grep -qE "$2" "$1/metrics.jsonl" 2>/dev/null && return; sleep 0.1; done; return 1; }
launch() { # launch DIR STEPS KEYS...
    local dir=$1 steps=$2; shift 2
    "$PL_SOURCE_DIR/jobs/launch.sh" --oversubscribe -n 3 job.yaml checkpoint.dir="$dir" report.dir="$dir" exchange.transport=verbs train.batch=8 train.steps="$steps" \
        train.eval_every=never sync.suspect_after="1 s" sync.lost_after="4 s" debug.compute_ms=100 report.every="1 steps" "$@" >"$dir.log" 2>&1 &
    launched=$!
}
ended() { # ended DIR CODE PATTERN...
    local dir=$1 code=$2 got; shift 2
    wait $launched
    got=$?
    for p in "$@"; do grep -qE -- "$p" "$dir.log" || { echo "$dir: no \"$p\""; got=$got-; }; done
    [ "$got" = "$code" ] || { echo "$dir: exit $got, wanted $code"; grep -v '^epoch' "$dir.log"; return 1; }
    echo "$dir: $(grep -E -- "$1" "$dir.log" | tail -n 1)"
}
lost_ranks() {
    cd "$PL_TMPDIR" || return 1
    launch killed 60 sync.backup_workers=1; until_seen killed '"step": 10,'
    kill -KILL "$(rank_of killed 2)"
    ended killed 0 '^lost rank 2 at step' '^2 ranks hold the same parameters' || return 1
    launch stopped 140 sync.backup_workers=1; until_seen stopped '"step": 10,'
    local p; p=$(rank_of stopped 0)
    kill -STOP "$p"; until_seen stopped '"lost_rank"'; kill -CONT "$p"
    ended stopped 0 '^rank 0 is back at step' '^3 ranks hold the same parameters' || return 1
    launch averaged 80 sync.backup_workers=1 sync.kind=local_sgd sync.tau=4; until_seen averaged '"step": 12,'
    kill -KILL "$(rank_of averaged 1)"
    ended averaged 0 '^lost rank 1 at step' '^2 ranks hold the same parameters' || return 1
    launch downpour 400 sync.kind=downpour optimizer.kind=sgd; until_seen downpour '"step": 10,'
    kill -KILL "$(rank_of downpour 2)"
    ended downpour 5 'lost rank 2|rank 2 .*' && [ -e downpour/latest ] || return 1
    run 3 learnt train.epochs=4 train.eval_every=never exchange.transport=verbs sync.kind=downpour optimizer.kind=sgd optimizer.lr=0.05 train.batch=8 || return 1
    grep '"eval"' learnt/metrics.jsonl
    run 3 whole train.steps=4 train.eval_every=never exchange.transport=verbs sync.kind=sandblaster optimizer.kind=sgd || return 1
    grep '"eval"' whole/metrics.jsonl
}
check "lost and stopped ranks over verbs" lost_ranks

# Too little may be locked, by who has not root's right to more: training says what to set, and ends with 5.
memlock() {
    (ulimit -l 64; setpriv --bounding-set=-ipc_lock "$PL_MPIEXEC" --oversubscribe -n 2 "$PACELINE" train job.yaml checkpoint.dir=no report.dir=no train.steps=1 exchange.transport=verbs) >/tmp/memlock 2>&1
    local code=$?
    grep -F "ulimit -l" /tmp/memlock || cat /tmp/memlock
    [ $code -eq 5 ] && grep -q 'ulimit -l unlimited' /tmp/memlock
}
check "64 KB of locked memory" memlock

# Two more devices, each of which reaches itself alone: rail by rail, and the loopback is no longer wanted.
two_devices() {
    for i in 1 2; do
        ip link add pl$i type dummy && ip addr add 10.$i.0.1/24 dev pl$i && ip link set pl$i up && rdma link add rxe$i type rxe netdev pl$i || return 1
    done
    "$PL_SOURCE_DIR/tests/rdma/device_nodes.sh"
    network '^transport verbs (rxe1 port 1, RoCE v2, 1024 B MTU): .* and 1 more, 2 channels; 3 ranks' &&
        PL_TEST_ONLY=test_t* "$test_verbs" 2>&1 | grep -F 'PASSED  ] 2 test(s)' && PL_TEST_ONLY=test_close "$test_verbs" 2>&1 | grep -F 'PASSED  ] 1 test(s)'
}
check "two devices" two_devices
rdma link delete rxe1; rdma link delete rxe2

ip link set lo down
check "the port is down" probe_says "probe: no, rxe0: port 1 is down"
ip link set lo up
rdma link delete rxe0
check "no device" probe_says "probe: no, no RDMA device"
mv "$(ldconfig -p | sed -n 's/.*libibverbs\.so\.1 .*=> //p' | head -n 1)" /tmp/
check "no library, and the program starts" probe_says "probe: no, no RDMA library"
check "paceline itself starts without the library" "$PACELINE" --version
exit $failed
