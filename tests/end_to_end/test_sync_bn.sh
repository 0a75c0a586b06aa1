#!/usr/bin/env bash
# train.sync_bn: a run on n ranks learns what one rank learns with the same global batch but for rounding, over shared memory and
# networks, with shares that differ and without any; without it, it does not. The same bits again, and after a stop; a rank that
# hangs or is lost while the others wait for its statistics.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 302 103 # 50 samples a step, and at the end 2: one rank of three has none
same=(model=net-norms.yaml train.global_batch=50 train.accumulate=2 train.threads=1 train.epochs=1 optimizer.lr=0.01)
sync=("${same[@]}" train.sync_bn=true)
run 1 one "${same[@]}"
run 1 one-asked "${sync[@]}"
compare one one-asked 0 0 exact
for n in 2 3; do
    run $n shared-$n "${sync[@]}"
    run $n tcp-$n "${sync[@]}" exchange.transport=tcp
    run $n mpi-$n "${sync[@]}" exchange.two_level=never
    run $n apart-$n "${same[@]}"
    for how in shared tcp mpi; do
        compare one $how-$n 1e-5 1e-4
        holds "($(number one eval loss) - $(number $how-$n eval loss))^2 < 1e-10" "$(event one eval), on $n ranks over $how: $(event $how-$n eval)"
    done
    "$tools/compare.py" "$(model one)" "$(model apart-$n)" 1e-3 1e-3 >/dev/null && fail "without train.sync_bn $n ranks learn the same: this test sees nothing"
done
says tcp-3 '"transport": "tcp"'
says shared-3 '"algorithm": "shared memory"'
run 3 threads "${sync[@]}" train.threads=2
compare one threads 1e-5 1e-4
run 2 reference-2 "${sync[@]}" device.kind=reference
compare one reference-2 1e-5 1e-4

# the same bits: again, and stopped and on again
run 3 again "${sync[@]}"
compare shared-3 again 0 0 exact
run 3 tcp-again "${sync[@]}" exchange.transport=tcp
compare tcp-3 tcp-again 0 0 exact
run 3 long "${sync[@]}" train.epochs=3
stopped 3 parts 5 "${sync[@]}" train.epochs=3 debug.fault=step@step=5:delay=2000
run 3 parts "${sync[@]}" train.epochs=3
compare long parts 0 0 exact
# on another number of ranks it goes on with the same statistics
run 3 moved "${sync[@]/train.epochs=1/train.steps=2}" train.eval_every=never
run 2 moved "${sync[@]/train.epochs=1/train.steps=4}" train.eval_every=never
run 3 stayed "${sync[@]/train.epochs=1/train.steps=4}" train.eval_every=never
resumed moved 2
compare stayed moved 1e-5 1e-4
if ! "$PACELINE" doctor | grep -q '^cpu backend.*no bf16'; then
    run 1 bf16-1 "${same[@]}" train.precision=bf16
    run 3 bf16-3 "${sync[@]}" train.precision=bf16
    compare bf16-1 bf16-3 1e-3 1e-2
fi

# the others wait for statistics of a rank that hangs or is lost, and name it
cat >rank.sh <<'SH'
#!/bin/sh
# One rank, whose own exit code is kept.
trap '' TERM # mpirun ends the others when one is lost; here it is for them to notice
"$@"
echo "$?" >"code.$OMPI_COMM_WORLD_RANK"
SH
chmod +x rank.sh
for how in auto tcp; do
    expect 5 "in step 3; missing: rank 1" 2 job.yaml "${sync[@]}" exchange.transport=$how exchange.timeout="2 s" debug.fault=step@rank=1@step=3:hang \
        checkpoint.dir=hang-$how report.dir=hang-$how
    rm -f code.*
    begin=$(date +%s)
    ranks 3 --enable-recovery ./rank.sh "$PACELINE" train job.yaml "${sync[@]}" train.epochs=100 exchange.transport=$how exchange.timeout="3 s" \
        debug.fault=step@rank=1@step=3:kill checkpoint.dir=kill-$how report.dir=kill-$how >kill-$how.log 2>&1
    took=$(($(date +%s) - begin)) codes="$(cat code.0) $(cat code.2)"
    [[ $codes =~ ^(5|143)\ (5|143)$ && $codes != "143 143" ]] || fail "a killed rank, $how: exit codes $codes: $(tail -n 5 kill-$how.log)" # 143: by mpirun, after the other's 5
    grep -qE "in step 3; missing: rank 1|step 3\] .*lost rank 1" kill-$how.log || fail "a killed rank is not named, $how: $(tail -n 5 kill-$how.log)"
    [ $took -lt 20 ] || fail "a killed rank, $how: the run ended after $took s"
done

run 2 tells model=net-bn.yaml train.steps=2
grep -q "batch normalisation takes the statistics of all ranks' samples" tells.log && fail "$(head -n 5 tells.log)"
run 2 tells-all model=net-bn.yaml train.steps=2 train.sync_bn=true
grep -q "batch normalisation takes the statistics of all ranks' samples" tells-all.log || fail "$(head -n 5 tells-all.log)"
grep -q '"sync_bn": true' tells-all/metrics.jsonl && ! grep -q sync_bn tells/metrics.jsonl || fail "$(head -n 1 tells-all/metrics.jsonl)"

run 2 none model=net.yaml train.epochs=1 train.sync_bn=true
grep -q "note: train.sync_bn is of batch normalisation, which this network has not" none.log || fail "no note: $(head -n 3 none.log)"
finish
