#!/usr/bin/env bash
# Bad input and failures on 3 ranks: each its message, once, its exit code, and no hang.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 600 100
for what in label nan name truncated huge; do make_set $what.h5 600 1 12 4 1 $what; done
make_set shape.h5 600 1 14 4 1; make_set two.h5 2 1 12 4 1
echo "not HDF5 at all" >text.h5
say() { echo "--- $*"; }
data() { echo "data.train.file=$1"; }

say data
expect 3 "missing.h5: No such file" 3 job.yaml "$(data missing.h5)"
expect 3 "text.h5: not an HDF5 file" 3 job.yaml "$(data text.h5)"
expect 3 "truncated.h5: cannot be opened: truncated file" 3 job.yaml "$(data truncated.h5)"
expect 3 "name.h5:/data: no such dataset" 3 job.yaml "$(data name.h5)"
expect 3 "shape.h5:/data: wanted [N, 1, 12, 12], found [600, 1, 14, 14]" 3 job.yaml "$(data shape.h5)"
expect 3 "sample 300 has label 7, wanted 0..3" 3 job.yaml "$(data label.h5)" data.train.shuffle=false
expect 3 "sample 300 has NaN at element 0" 3 job.yaml "$(data nan.h5)" data.train.shuffle=false
expect 3 "has NaN at element 0" 3 job.yaml "$(data nan.h5)" # every rank may read it, one speaks
mkfifo pipe.h5
expect 3 "pipe.h5: not a regular file" 3 job.yaml "$(data pipe.h5)"
expect 3 "2 samples for 3 ranks" 3 job.yaml "$(data two.h5)"
files() { echo "data.train.files=[$1]"; }
expect 3 "other-*.h5: no file matches" 3 job.yaml "$(files 'train.h5, other-*.h5')"
expect 3 "$PWD/nan.h5:/data: is float32 [N, 1, 12, 12], in $PWD/train.h5 it is uint8 [N, 1, 12, 12]" 3 job.yaml "$(files 'train.h5, nan.h5')"
expect 3 "$PWD/label.h5:/label: sample 300 has label 7, wanted 0..3" 3 job.yaml "$(files 'train.h5, label.h5')" data.train.shuffle=false
expect 3 "train.h5: is twice in files" 3 job.yaml "$(files 'train.h5, ./train.h5')"
expect 2 "data.train.file and data.train.files are both given" 3 job.yaml "$(data train.h5)" "$(files train.h5)"
say "jobs that differ by rank"
cat >by_rank.sh <<S
#!/bin/sh
[ "\${OMPI_COMM_WORLD_RANK:-\$PMI_RANK}" = 1 ] || unset OTHER
exec "$PACELINE" "\$@" \$OTHER
S
chmod +x by_rank.sh
sed 's/filters: 6/filters: 7/' net.yaml >seven.yaml
differ() { # differ KEY=VALUE TEXT: rank 1 alone is given it
    local mine=$PACELINE
    PACELINE=$PWD/by_rank.sh
    export OTHER=$1
    expect 2 "[rank 1/3 $(hostname)] train: this rank was given another job than rank 0: here $2" 3 job.yaml checkpoint.dir=none report.dir=none
    PACELINE=$mine
}
differ optimizer.lr=0.25 "optimizer.lr=0.25, there optimizer.lr=0.05"
differ train.eval_every=never "train.eval_every=never, there train.eval_every=1 epochs"
differ model=seven.yaml "{name: conv1, kind: conv, filters: 7, kernel: 3}, there {name: conv1, kind: conv, filters: 6, kernel: 3}"
differ checkpoint.dir=there "checkpoint.dir=(a path), there checkpoint.dir=none"
ln -s "$PWD" there
OTHER="data.train.file=there/train.h5 train.threads=2" ranks 3 ./by_rank.sh train job.yaml checkpoint.dir=none report.dir=none train.steps=2 >out 2>&1 || fail "what a node may need otherwise: exit $?: $(tail -n 3 out)"

say staging
touch blocked
expect 3 "blocked/stage: cannot be made" 3 job.yaml data.stage=blocked/stage
expect 3 "missing.h5: cannot be read: No such file" 3 job.yaml data.stage=stage "$(data missing.h5)"
expect 3 "text.h5: not an HDF5 file" 3 job.yaml data.stage=stage "$(data text.h5)"
# One rank fails, another copies at that time: all end, nothing half-copied is left.
expect 3 "$PWD/test.h5: debug.fault at stage.copy" 3 job.yaml data.stage=stage/new debug.fault=stage.copy@rank=1:fail
[ "$(ls -A stage/new | sed 's/^[0-9a-f]*-//')" = train.h5 ] || fail "the staging directory holds $(ls -A stage/new)"
say job file
printf 'model: net.yaml\ntrain: {epohcs: 3}\n' >unknown.yaml
expect 2 "unknown.yaml:2:9: unknown key train.epohcs" 3 unknown.yaml
grep -q 'did you mean train.epochs?' out || fail "no suggestion for train.epohcs"
printf 'model: net.yaml\ntrain: {epochs: many}\n' >type.yaml
expect 2 'type.yaml:2:17: train.epochs: wanted a number, at least 1e-09, found "many"' 3 type.yaml
expect 2 "missing.yaml: No such file" 3 missing.yaml
expect 2 "sync.backup_workers 3 of 3 ranks leaves none to train" 3 job.yaml sync.backup_workers=3
expect 2 "exchange.transport nccl adds up what lies on GPUs: it needs device.kind cuda" 3 job.yaml exchange.transport=nccl
say sync_bn
sync() { expect 2 "$1" 2 job.yaml train.sync_bn=true "${@:2}"; }
sync "train.sync_bn is of sync.kind allreduce" sync.kind=local_sgd
sync "train.sync_bn with sync.backup_workers" sync.backup_workers=1
sync "train.sync_bn with split.pipeline is not in this version yet" split.pipeline=2
sync "train.sync_bn with train.reproducible" train.reproducible=true train.global_batch=64
sync "train.sync_bn with device.kind cuda is not in this version yet" device.kind=cuda
printf 'name: c\ninput: {data: [1, 12, 12], label: int}\nlayers:\n  - {name: a, kind: relu, from: b}\n  - {name: b, kind: relu, from: a}\n  - {name: d, kind: dense, units: 4}\n  - {name: loss, kind: softmax_loss}\n' >cycle.yaml
expect 2 "cycle" 3 job.yaml model=cycle.yaml
sed 's/kernel: 3/kernel: 13/' net.yaml >fit.yaml
expect 2 "conv1" 3 job.yaml model=fit.yaml
sed 's/kind: maxpool/kind: maxpol/' net.yaml >kind.yaml
expect 2 "maxpool" 3 job.yaml model=kind.yaml
expect 2 "too long a run" 3 job.yaml train.epochs=1e18
say run
expect 4 "the loss is not finite" 3 job.yaml "$(data huge.h5)"
awk '/name: ip1/{print "  - {name: aux, kind: dense, units: 4, init: gaussian, init_value: 1e38, from: pool1}"; print "  - {name: aux_loss, kind: softmax_loss, weight: 0.3}"; sub(/}$/, ", from: pool1}")} {print}' net.yaml >aux.yaml
expect 4 "the loss is not finite in step 0" 3 job.yaml model=aux.yaml # that of the main head is
OMPI_COMM_WORLD_SIZE=3 OMPI_COMM_WORLD_RANK=0 "$PACELINE" train job.yaml >out 2>&1
[ $? -eq 2 ] && grep -q "mpirun started 3 ranks, but each sees a world of its own" out || { fail "ranks that do not see each other were not refused"; cat out; }
touch file
expect 6 "file/run: cannot be made" 3 job.yaml checkpoint.dir=file/run
expect 6 "file/run: cannot be made" 3 job.yaml checkpoint.dir=none report.dir=file/run
train 2 job.yaml train.epochs=1 >/dev/null 2>&1 || fail "a plain run failed"
expect 6 "was trained on 600 samples" 3 job.yaml data.train.limit=300
expect 6 "was trained with optimizer.kind momentum, the job says adam" 3 job.yaml optimizer.kind=adam
cp test.h5 elsewhere.h5
expect 6 "was trained on $PWD/train.h5, the job says" 3 job.yaml "$(data elsewhere.h5)"
expect 6 "was trained on $PWD/train.h5, the job says $PWD/two.h5 and 1 more file [" 3 job.yaml "$(files 'two.h5, train.h5')"
"$PACELINE" eval job.yaml >/dev/full 2>out
[ $? -eq 6 ] && grep -q "standard output cannot be written" out || { fail "eval into a full disk was taken for well"; cat out; }
"$PACELINE" predict job.yaml data.test.file=nan.h5 --out predicted.h5 >out 2>&1
[ $? -eq 3 ] && [ ! -e predicted.h5 ] || { fail "predict left half a file"; cat out; }
ranks 3 "$PACELINE" predict job.yaml data.test.file=nan.h5 --out predicted.h5 >out 2>&1 # one rank alone finds it
[ $? -eq 3 ] && [ ! -e predicted.h5 ] && [ "$(grep -c '/data: sample' out)" = 1 ] || { fail "predict on several ranks left half a file"; cat out; }
echo mine >there.h5
ranks 2 "$PACELINE" predict job.yaml --out there.h5 >out 2>&1
[ $? -eq 6 ] && [ "$(cat there.h5)" = mine ] && [ "$(grep -c 'there.h5: is there already' out)" = 1 ] || { fail "predict wrote over a file"; cat out; }
expect 2 "train.stop needs data.test" 2 job.yaml train.stop.above=0.5 data.test.file=none checkpoint.dir=none
expect 6 "checkpoint.resume is never" 3 job.yaml checkpoint.resume=never
sed 's/units: 24/units: 25/' net.yaml >other.yaml
expect 6 "another model" 2 job.yaml model=other.yaml
expect 7 ": device.memory_limit gives a rank 1.5 MB" 2 job.yaml checkpoint.dir=none train.batch=500 device.memory_limit="1.5 MB"
expect 7 " MB, on each of 2 ranks: this node has" 2 job.yaml checkpoint.dir=none train.batch=50000000
expect 2 "did you mean optimizer?" 2 job.yaml optimzer.lr=0.1
say faults
expect 3 "debug.fault at loader.read" 3 job.yaml checkpoint.dir=f1 report.dir=f1 debug.fault=loader.read@rank=1@step=2:fail
expect 7 "debug.fault at step" 3 job.yaml checkpoint.dir=f2 report.dir=f2 debug.fault=step@rank=2@step=1:fail
expect 5 "missing: rank 1" 2 job.yaml checkpoint.dir=f3 report.dir=f3 debug.fault=step@rank=1@step=1:hang exchange.timeout="2 s"
expect 5 "missing: rank 1" 2 job.yaml checkpoint.dir=f3n report.dir=f3n debug.fault=step@rank=1@step=1:hang exchange.timeout="2 s" exchange.two_level=never
expect 5 "in step 2; missing: rank 0, 2" 4 job.yaml checkpoint.dir=f3m report.dir=f3m debug.fault=step@rank=0@step=2:hang,step@rank=2@step=2:hang exchange.timeout="2 s"
for way in auto never; do
    expect 5 "debug.fault at exchange.start" 2 job.yaml checkpoint.dir=f3s$way report.dir=f3s$way debug.fault=exchange.start@rank=1@step=1:fail exchange.two_level=$way
    train 3 job.yaml checkpoint.dir=f3k$way report.dir=f3k$way debug.fault=step@rank=1@step=1:kill exchange.two_level=$way >out 2>&1
    code=$?
    [ $code -ne 0 ] && [ $code -ne 124 ] || { fail "with a rank killed, exchange.two_level=$way, exit $code"; cat out; }
done
expect 6 "debug.fault at checkpoint.write" 2 job.yaml checkpoint.dir=f4 report.dir=f4 train.epochs=1 debug.fault=checkpoint.write:fail
# Killed while a checkpoint is written: the one before stays usable.
train 2 job.yaml checkpoint.dir=f5 report.dir=f5 checkpoint.every="2 steps" debug.fault=checkpoint.before_rename@step=4:kill >out 2>&1 && fail "a killed run ended with 0"
[ "$(cat f5/latest)" = step-00000002 ] || fail "latest is $(cat f5/latest), wanted step-00000002"
train 2 job.yaml checkpoint.dir=f5 report.dir=f5 >out 2>&1 || { fail "no resume after a kill"; cat out; }
grep -q 'continuing at step 2' out || fail "it did not continue at step 2"
# A damaged checkpoint is named and passed over.
newest=$(cat f5/latest)
printf 'x' | dd of="f5/$newest/model.h5" bs=1 seek=3000 conv=notrunc 2>/dev/null
train 2 job.yaml checkpoint.dir=f5 report.dir=f5 >out 2>&1 || fail "no resume past a damaged checkpoint"
grep -q "$newest is damaged" out || { fail "the damaged checkpoint was not named"; cat out; }
# Under on_error continue a stop does not speak of a checkpoint that it could not write.
stopped 2 f6 5 checkpoint.on_error=continue train.epochs=20 debug.delay.ms=20 debug.fault=checkpoint.write:fail
grep -q 'stopped on a signal after step [0-9]*, without a checkpoint of it' f6.log && ! grep -q '"event": "checkpoint"' f6/metrics.jsonl || { fail "a stop without a checkpoint"; cat f6.log; }
finish
