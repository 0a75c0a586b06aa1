#!/usr/bin/env bash
# Over real links, as network namespaces: the same training as over MPI, by two levels; a peer killed, a peer stopped, a
# link cut, a corrupted frame, a wrong secret, a stranger, all in the middle of a transfer: each its message, exit 5
# within exchange.timeout and what set-up and the roll-call take, and nobody hangs.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
. "$PL_SOURCE_DIR/tests/network/hosts.sh"
why=$(hosts_possible) || { echo "skipped: $why"; exit 77; }
trap hosts_down EXIT
small_job
hosts_up 3

# run HOSTS PER DIR KEYS...: instead of lib.sh's, over the hosts
run() {
    local n=$1 per=$2 dir=$3; shift 3
    timeout 120 bash -c '. "$PL_SOURCE_DIR/tests/network/hosts.sh"; HOSTS_NAME='$HOSTS_NAME'; mpirun_on "$@"' sh "$n" "$per" "$PACELINE" train job.yaml checkpoint.dir="$dir" report.dir="$dir" "$@" >"$dir.log" 2>&1 ||
        { fail "training failed: $dir"; grep -v '^--' "$dir.log" | tail -n 8; }
}
run 2 2 auto train.epochs=2
says auto '"transport": "tcp", "algorithm": "shared memory, halving_doubling to 64 KB, ring"'
run 2 2 by-mpi train.epochs=2 exchange.transport=mpi exchange.algorithm=ring
run 2 2 by-tcp train.epochs=2 exchange.transport=tcp exchange.algorithm=ring
says by-mpi '"transport": "mpi", "algorithm": "shared memory, ring"'
compare by-mpi by-tcp 0 0 exact
run 2 2 once-a-host train.epochs=2 exchange.transport=tcp exchange.algorithm=ring split.optimizer=node # memory that the two of a host share
grep -q "parameters and optimizer state, .* are on a node once" once-a-host.log || fail "$(head -n 5 once-a-host.log)"
compare by-tcp once-a-host 0 0 exact
run 3 1 one-level train.epochs=2 exchange.algorithm=ring exchange.interface=10.9.0.0/24
says one-level 'one rank a node'
run 3 1 all-alone train.epochs=2 exchange.algorithm=ring exchange.interface=10.9.0.0/24 split.optimizer=node
grep -q "note: split.optimizer is for several ranks of one node" all-alone.log || fail "$(head -n 5 all-alone.log)"
compare one-level all-alone 0 0 exact
run 3 1 one-level-mpi train.epochs=2 exchange.algorithm=ring exchange.transport=mpi
compare one-level one-level-mpi 0 0 exact
# Local SGD on two levels; with tau 1 and momentum averaged it is the synchronous run.
run 2 2 local-mpi train.epochs=2 sync.kind=local_sgd sync.tau=3 exchange.transport=mpi exchange.algorithm=ring
run 2 2 local-tcp train.epochs=2 sync.kind=local_sgd sync.tau=3 exchange.transport=tcp exchange.algorithm=ring
compare local-mpi local-tcp 0 0 exact
run 2 2 local-one train.epochs=1 sync.kind=local_sgd sync.tau=1 sync.average_momentum=true
run 2 2 sync-one train.epochs=1
compare local-one sync-one 1e-6 1e-5
run 2 2 squeezed train.epochs=8 exchange.compress=one_bit
says squeezed '"algorithm": "shared memory, compressed one_bit"'

# A rank that does not come to its node's update is named, on all nodes, and nobody else.
timeout 100 bash -c '. "$PL_SOURCE_DIR/tests/network/hosts.sh"; HOSTS_NAME='$HOSTS_NAME'; mpirun_on "$@"' sh 2 2 "$PACELINE" train job.yaml exchange.timeout="4 s" \
    split.optimizer=node debug.fault=update.meet@rank=1@step=3:hang checkpoint.dir=none report.dir=none >hangs.log 2>&1
code=$?
[ $code -eq 5 ] && grep -q "missing: rank 1$" hangs.log || fail "a rank that hangs before its update: code $code, $(grep '^.rank' hangs.log)"
grep "missing: rank" hangs.log | grep -v "missing: rank 1$" && fail "an innocent rank is named"

# A transfer of 4 MB takes most of a step over 200 Mbit/s.
sed 's/units: 24/units: 8000/' net.yaml >wide.yaml
for i in 1 2 3; do shape $i 200mbit; done
cat >rank.sh <<'SH'
#!/bin/sh
# One rank, whose own exit code and end are kept.
trap '' TERM # mpirun ends the others when one is lost; here it is for them to notice
"$@" 2>"err.$OMPI_COMM_WORLD_RANK" &
echo $! >"pid.$OMPI_COMM_WORLD_RANK"
wait $!
echo "$?" >"code.$OMPI_COMM_WORLD_RANK"
date +%s.%N >"end.$OMPI_COMM_WORLD_RANK"
SH
chmod +x rank.sh
# strike WHAT TEXT WITHIN EVENT KEYS...: EVENT happens to three ranks in mid-run; rank 0 or 2 must say TEXT, exit 5 in time
strike() {
    local what=$1 text=$2 within=$3 event=$4 i begin codes took; shift 4
    rm -rf run err.* pid.* code.* end.*
    timeout 100 bash -c '. "$PL_SOURCE_DIR/tests/network/hosts.sh"; HOSTS_NAME='$HOSTS_NAME'; mpirun_on "$@"' sh 3 1 --enable-recovery ./rank.sh \
        "$PACELINE" train job.yaml model=wide.yaml train.epochs=1000 train.eval_every=never checkpoint.every=never exchange.timeout="4 s" exchange.transport=tcp "$@" >out 2>&1 &
    local launcher=$!
    for ((i = 0; i < 600; i++)); do grep -q '"step": 3,' run/metrics.jsonl 2>/dev/null && break; sleep 0.05; [ -e code.0 ] && break; done
    begin=$(date +%s.%N)
    $event
    for ((i = 0; i < 800; i++)); do [ -e end.0 ] && [ -e end.2 ] && break; sleep 0.05; done
    codes="$(cat code.0 2>/dev/null) $(cat code.2 2>/dev/null)"
    took=$(sort -n end.0 end.2 2>/dev/null | tail -n 1 | awk -v b="$begin" '{printf "%.1f", $1 - b}')
    for i in 1 2 3; do link $i up; done # mpirun waits for its daemons there
    for i in 0 1 2; do kill -CONT "$(cat pid.$i)" 2>/dev/null; kill -KILL "$(cat pid.$i)" 2>/dev/null; done
    wait $launcher
    if ! grep -qhE "$text" err.0 err.2; then fail "$what: wanted \"$text\""; grep -H "^\[" err.*;
    elif ! [[ $codes =~ ^(5|143)\ (5|143)$ && $codes != "143 143" ]]; then fail "$what: exit codes $codes"; head -n 3 err.*; # 143: by mpirun, after the other's 5
    elif awk "BEGIN{exit !($took > $within)}"; then fail "$what: took $took s, wanted at most $within"
    else echo "ok: $what: $(grep -hE "$text" err.0 err.2 | head -n 1), after $took s"; fi
}
kill_peer() { kill -KILL "$(cat pid.1)"; }
stop_peer() { kill -STOP "$(cat pid.1)"; }
cut_link() { link 2 down; }
nothing() { :; }
strike "a peer killed" "lost rank 1" 10 kill_peer
strike "a peer stopped" "missing: rank 1|lost rank 1" 14 stop_peer
strike "a link cut" "missing: rank 1|lost rank 1" 14 cut_link
strike "a corrupted frame" "rank 1.*checksum" 14 nothing debug.fault=tcp.corrupt@rank=1@step=5:fail
# Where ranks go their own way a cut ends both sides, and only that of most, or of two halves that with rank 0, writes.
# cut KIND HOSTS PER_HOST HOST WRITER CUT_OFF KEYS...: HOST is cut off; ranks WRITER and CUT_OFF say so
cut() {
    local kind=$1 hosts=$2 per=$3 host=$4 writer=$5 cut_off=$6 what="$1 on $2 hosts, host $4 cut off" i r; shift 6
    rm -rf run err.* pid.* code.* end.*
    timeout 100 bash -c '. "$PL_SOURCE_DIR/tests/network/hosts.sh"; HOSTS_NAME='$HOSTS_NAME'; mpirun_on "$@"' sh "$hosts" "$per" --enable-recovery ./rank.sh \
        "$PACELINE" train job.yaml sync.kind="$kind" optimizer.kind=sgd train.eval_every=never exchange.timeout="2 s" exchange.transport=tcp debug.delay.ms=5 "$@" >out 2>&1 &
    local launcher=$!
    for ((i = 0; i < 600; i++)); do grep -qE '"step": ([5-9]|1[0-9]),' run/metrics.jsonl 2>/dev/null && break; sleep 0.05; [ -e code.0 ] && break; done
    link "$host" down
    for ((i = 0; i < 600; i++)); do [ "$(ls end.* 2>/dev/null | wc -l)" -eq $((hosts * per)) ] && break; sleep 0.05; done
    link "$host" up
    kill -TERM $launcher # mpirun waits long for its daemon there
    wait $launcher
    for ((r = 0; r < hosts * per; r++)); do [ "$(cat code.$r)" = 5 ] || fail "$what: rank $r ended with $(cat code.$r)"; done
    [ "$(grep -l '^\[rank .* sync: ' err.*)" = "$(printf 'err.%s\n' "$writer" "$cut_off" | sort)" ] || fail "$what: who spoke: $(grep '^\[rank' err.*)"
    grep -q "which writes nothing" err.$cut_off && ! grep -q "cut off" err.$writer || fail "$what: $(tail -n 2 err.$cut_off err.$writer)"
    grep -q '"code": 5' run/exit.json && [ "$(ls -d run/step-* | wc -l)" -eq 1 ] || fail "$what: wanted one checkpoint: $(ls run)"
}
cut downpour 3 1 1 1 0 train.epochs=1000
cut downpour 2 2 2 0 2 train.epochs=1000
cut sandblaster 3 1 3 0 2 train.epochs=1000
finish
