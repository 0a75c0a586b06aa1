#!/usr/bin/env bash
# The same run over mpi and tcp gives the same bits where the algorithm is the same, on 2 to 5 ranks; compressed
# gradients train; a measured table is used; every transport that is not there says why.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job
accuracy() { holds "$(number "$1" eval accuracy) > $2" "accuracy of $1"; }

# Many small buckets: several collectives are under way.
small="train.epochs=1 train.global_batch=190 exchange.bucket_mb=0.001 checkpoint.every=never"
run 1 alone $small exchange.transport=tcp
for n in 2 3 4 5; do
    for algorithm in ring halving_doubling tree; do
        run $n mpi-$algorithm-$n $small exchange.transport=mpi exchange.algorithm=$algorithm
        run $n tcp-$algorithm-$n $small exchange.transport=tcp exchange.algorithm=$algorithm exchange.channels=$(((n - 1) % 3 + 1))
        compare mpi-$algorithm-$n tcp-$algorithm-$n 0 0 exact
        compare alone tcp-$algorithm-$n 1e-4 1e-3
    done
done
says tcp-ring-3 '"transport": "tcp", "algorithm": "ring"'
says mpi-tree-5 '"transport": "mpi", "algorithm": "tree"'
says alone '"transport": "none", "algorithm": "none"'
run 2 by-size $small exchange.transport=tcp
says by-size '"transport": "tcp", "algorithm": "halving_doubling to 64 KB, ring"'

# Compressed: it learns, all transports alike, and the same twice.
for c in bf16 one_bit top_k; do
    run 3 tcp-$c train.epochs=8 exchange.transport=tcp exchange.compress=$c exchange.compress_ratio=0.1
    run 3 mpi-$c train.epochs=8 exchange.transport=mpi exchange.compress=$c exchange.compress_ratio=0.1
    compare mpi-$c tcp-$c 0 0 exact
    accuracy tcp-$c 0.85
    says tcp-$c "\"algorithm\": \"compressed $c\""
    says tcp-$c '"saved_mb": '
done
# What compression lost is part of a checkpoint: cut in two, the same bits; on other ranks it is shared out.
lossy="train.global_batch=190 exchange.transport=tcp exchange.compress=top_k exchange.compress_ratio=0.05 train.eval_every=never"
run 3 whole $lossy train.steps=20
run 3 halves $lossy train.steps=9
cp -r halves damaged && cp -r halves shared
run 3 halves $lossy train.steps=20
compare whole halves 0 0 exact
run 3 shared $lossy train.steps=9 checkpoint.resume=auto && run 2 shared $lossy train.steps=20
echo -n "on other ranks: "; "$tools/compare.py" "$(model whole)" "$(model shared)" 0.5 1 || fail "another trajectory on other ranks"
run 3 bits $lossy exchange.compress=one_bit train.steps=12
run 3 bits-halves $lossy exchange.compress=one_bit train.steps=5
run 3 bits-halves $lossy exchange.compress=one_bit train.steps=12
compare bits bits-halves 0 0 exact
expect 6 "conv1/weight: cannot be written" 3 job.yaml $lossy checkpoint.dir=unwritten report.dir=unwritten train.steps=9 checkpoint.every="3 steps" debug.fault=h5.write@rank=2@count=1:fail
run 3 lossy-disk $lossy train.steps=9 checkpoint.every="3 steps" checkpoint.on_error=continue debug.fault=h5.write@rank=2@count=1:fail
grep -q 'rank 2 could not write its part' lossy-disk.log || fail "nobody says whose part is missing"
run 3 shared $lossy exchange.compress=none train.steps=22
grep -q 'what compression had lost until then is left out' shared.log || fail "what was lost is dropped without a word"
printf x >>damaged/step-00000009/parts/part-00001.h5
expect 6 "damaged holds checkpoints, but none that is whole" 3 job.yaml checkpoint.dir=damaged report.dir=damaged $lossy train.steps=10
grep -q 'damaged/step-00000009 is damaged and passed over: parts/part-00001.h5 has not the size' out || fail "a damaged part was taken"
run 2 clock $lossy train.steps=30 checkpoint.every="1 ms" checkpoint.keep=2
[ "$(ls -d clock/step-*/parts/part-00001.h5 | wc -l)" -eq 2 ] || { fail "checkpoints by the clock: $(ls -a clock clock/*)"; }
[ -z "$(find . -name '.parts-*')" ] || fail "parts were left: $(find . -name '.parts-*')"
# Running statistics are not compressed: with most of them left out the evaluation would know nothing.
run 3 normalised model=net-bn.yaml train.epochs=8 train.eval_every=never exchange.transport=tcp exchange.compress=top_k exchange.compress_ratio=0.1
accuracy normalised 0.85
run 2 one-node train.steps=2 exchange.compress=bf16
says one-node 'nothing leaves this node, nothing is compressed'
expect 2 "exchange.algorithm ring cannot add up compressed gradients" 2 job.yaml checkpoint.dir=no report.dir=no exchange.transport=tcp exchange.algorithm=ring exchange.compress=bf16

# A table of choices, measured and made up.
ranks 2 "$PACELINE" bench allreduce --from 1024 --to 65536 --rounds 1 --transport tcp --tune=table >bench.log 2>&1 || { fail "bench allreduce --tune"; tail -n 5 bench.log; }
grep -qE '^tcp 2 - (ring|halving_doubling|tree)$' table || { fail "a table without an end"; cat table; }
run 2 by-table train.steps=2 exchange.transport=tcp exchange.table=table
printf '# made up\n\ntcp 2 1024 tree\ntcp 2 - ring\nmpi 2 - native\n' >made-up
run 2 by-made-up train.steps=2 exchange.transport=tcp exchange.table=made-up
says by-made-up '"algorithm": "tree to 1 KB, ring"'
printf 'tcp 2 1024 star\n' >bad
expect 2 "bad:1: wanted TRANSPORT MEMBERS BYTES" 2 job.yaml checkpoint.dir=no report.dir=no exchange.transport=tcp exchange.table=bad
printf '\n\ntcp 2 - native\n' >bad
expect 2 "bad:3: tcp has no all-reduce of its own" 2 job.yaml checkpoint.dir=no report.dir=no exchange.transport=tcp exchange.table=bad
expect 2 "native is MPI's own; transport tcp has none" 2 job.yaml checkpoint.dir=no report.dir=no exchange.transport=tcp exchange.algorithm=native
[ -n "$(ls /sys/class/infiniband 2>/dev/null)" ] || expect 5 "verbs cannot be had" 2 job.yaml checkpoint.dir=no report.dir=no exchange.transport=verbs
expect 5 "exchange.interface" 2 job.yaml checkpoint.dir=no report.dir=no exchange.transport=tcp exchange.interface=none0
finish
