#!/usr/bin/env bash
# Whole runs on a small set: learning, the same on 1 to 4 ranks, the same bits twice and after a stop, short batches,
# few test samples, accumulation, evaluation and prediction.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job
make_set tiny.h5 2 1 12 4 3

# One step from equal weights, the same global batch (not divisible by 3), 1 to 4 ranks.
for n in 1 2 3 4; do run $n one-$n train.steps=1 train.global_batch=190 train.eval_every=never; done
for n in 2 3 4; do compare one-1 one-$n 1e-6 1e-5; done
# The ranks add up in memory that they share; by MPI's all-reduce if asked, and where a rank cannot have that memory.
run 3 native train.steps=1 train.global_batch=190 train.eval_every=never exchange.two_level=never
run 3 forced train.steps=1 train.global_batch=190 train.eval_every=never exchange.algorithm=native
run 3 without train.steps=1 train.global_batch=190 train.eval_every=never debug.fault=exchange.shared@rank=2:fail
compare one-1 native 1e-6 1e-5
compare native forced 0 0 exact
compare native without 0 0 exact
algorithm() { grep -q "\"algorithm\": \"$2\", \"why\": \".*$3" "$1/metrics.jsonl" || fail "wanted algorithm $2 with $3: $(head -n 1 "$1/metrics.jsonl")"; }
algorithm one-3 'shared memory' 'that they share'
algorithm native native "by the job's choice"
algorithm forced native "by the job's choice"
algorithm without native 'no shared memory: rank 2 cannot have'
grep -q 'no shared memory: rank 2 cannot have' without.log || fail "the want of shared memory was not mentioned"
# The same job twice.
run 2 twice-a train.epochs=6
run 2 twice-b train.epochs=6
compare twice-a twice-b 0 0 exact
accuracy=$(number twice-a eval accuracy)
holds "$accuracy > 0.9" "accuracy"
grep -q '"samples": 203' twice-a/metrics.jsonl || fail "the evaluation did not count 203 samples"

# Stopped by USR1 in mid-run, resumed: the bits of the run without the stop. A rank is slowed so that there is time.
run 2 straight train.epochs=8
stopped 2 stopped 20 train.epochs=8 debug.delay.ms=20
step=$(sed 's/step-0*//' stopped/latest)
echo "stopped after step $step of $(sed 's/step-0*//' straight/latest)"
run 2 stopped train.epochs=8
compare straight stopped 0 0 exact
grep -q 'from here on' stopped.log && fail "a run that goes on as it was says that something changed: $(grep 'from here on' stopped.log)"
[ "$(cat stopped/latest)" = "$(cat straight/latest)" ] || fail "the resumed run ended elsewhere"
run 2 stopped train.epochs=8
grep -q 'this run is done' stopped.log || fail "a finished run did not say so"

# 1000 samples over 3 ranks at 64: five full steps and one of 40 samples, all on rank 0. The last update is that of
# one rank with the same 40 samples, continued from the checkpoint before it. With batchnorm too.
for net in net net-bn; do
    run 3 epoch-$net model=$net.yaml train.epochs=1 train.eval_every=never checkpoint.every="5 steps"
    grep -q '"step": 6,' epoch-$net/metrics.jsonl || fail "an epoch of 1000 samples on 3 ranks at 64 has not 6 steps"
    seen=$(/usr/bin/python3 -c "import h5py,sys; print(h5py.File(sys.argv[1])['run'].attrs['samples_seen'])" "$(model epoch-$net)")
    [ "$seen" = 1000 ] || fail "$seen samples were read in an epoch of 1000"
    mkdir -p last-$net && cp -r epoch-$net/step-00000005 last-$net/
    run 1 last-$net model=$net.yaml train.steps=6 train.eval_every=never train.global_batch=192
    compare epoch-$net last-$net 1e-6 1e-5
done
# Fewer test samples than ranks; each is counted once.
run 4 few data.test.file=tiny.h5 train.epochs=1
grep -q '"samples": 2}' few/metrics.jsonl || fail "2 test samples on 4 ranks were not counted once each"
# Two micro-batches of half the size make the same step.
run 2 whole train.steps=3 train.global_batch=64 train.eval_every=never
run 2 halves train.steps=3 train.global_batch=64 train.accumulate=2 train.eval_every=never
compare whole halves 1e-6 1e-5
# Every optimizer learns something; the reference backend follows the cpu backend.
for kind in sgd nesterov adagrad adadelta rmsprop adam adamw lars; do
    lr=0.01; [ $kind = sgd ] && lr=0.2; [ $kind = adadelta ] && lr=5; [ $kind = lars ] && lr=10
    run 1 opt-$kind optimizer.kind=$kind optimizer.lr=$lr optimizer.clip_norm=5 train.epochs=3
    first=$(grep '"event": "step"' opt-$kind/metrics.jsonl | head -n 1 | sed -E 's/.*"loss": ([0-9.e+-]+).*/\1/')
    last=$(number opt-$kind step loss)
    echo "$kind: loss $first to $last"
    holds "$last < 0.8 * $first" "the loss by $kind"
done
run 1 cpu device.kind=cpu train.steps=5 train.eval_every=never
run 1 reference device.kind=reference train.steps=5 train.eval_every=never
compare cpu reference 1e-5 1e-4
# On other ranks, at another global batch: the same epochs of the same samples.
run 2 elastic data.train.limit=600 train.batch=30 train.epochs=1
run 4 elastic data.train.limit=600 train.batch=30 train.epochs=3 optimizer.schedule.kind=poly
evals=$(sed -nE 's/.*"event": "eval".*"step": ([0-9]+), "epoch": ([0-9]+).*/\1:\2/p' elastic/metrics.jsonl | tr '\n' ' ')
[ "$evals" = "10:0 15:1 20:2 " ] || fail "continued on 4 ranks it evaluated at \"$evals\""
grep -q 'note: from here on train.epochs 3 (was 1), optimizer.schedule.kind poly (was fixed)' elastic.log || fail "what changed is not said: $(grep note elastic.log)"
grep -q 'the global batch is 120 now and was 60' elastic.log || fail "another global batch was not mentioned"
run 1 elastic data.train.limit=600 train.batch=30 train.epochs=1 optimizer.schedule.kind=poly # by one rank's steps it is further than any
grep -q 'this run is done: step 20 of 20' elastic.log || fail "a run of more epochs than are asked for: $(tail -n 1 elastic.log)"
# In the midst of an epoch, where no global batch of 4 ranks begins: 180 samples, then 4 steps for the other 420, at last 3 ranks.
run 2 midst data.train.limit=600 train.batch=30 train.steps=3
run 4 midst data.train.limit=600 train.batch=30 train.steps=5
"$PACELINE" inspect midst | grep -q 'step 5, epoch 0, position 420, samples_seen 420' || fail "inspect does not show where it is: $("$PACELINE" inspect midst | head -n 2)"
run 3 midst data.train.limit=600 train.batch=30 train.epochs=2
evals=$(sed -nE 's/.*"event": "eval".*"step": ([0-9]+), "epoch": ([0-9]+).*/\1:\2/p' midst/metrics.jsonl | tr '\n' ' ')
[ "$evals" = "3:0 5:0 7:0 14:1 " ] || fail "on 2, 4 and 3 ranks in one epoch it evaluated at \"$evals\""
# Stopped at a step whose evaluation was due: it is made when the run goes on, and its goal counts.
stopped 2 goal 3 train.epochs=4 train.eval_every="4 steps" train.stop.above=0.01 debug.fault=step@step=3:delay=3000
[ "$(cat goal/latest)" = step-00000004 ] || fail "wanted a stop at step 4, got $(cat goal/latest)"
run 2 goal train.epochs=4 train.eval_every="4 steps" train.stop.above=0.01
[ "$(cat goal/latest)" = step-00000004 ] || fail "the goal of an evaluation that a stop held up was missed: $(cat goal/latest)"
# eval and predict agree with the run's own evaluation.
ranks 3 "$PACELINE" eval job.yaml checkpoint.dir=twice-a >eval.out 2>eval.err || fail "eval failed"
grep -q "accuracy $accuracy" <(sed -E 's/accuracy ([0-9.]+),/accuracy \1 /' eval.out) || grep -q "$(printf '%.4f' "$accuracy")" eval.out || fail "eval says $(cat eval.out), the run said $accuracy"
for n in 1 3; do # batches of 51 and of 17: what is left for the last ranks is short, and none
    ranks $n "$PACELINE" predict job.yaml checkpoint.dir=twice-a train.batch=$((51 / n)) --out predicted-$n.h5 >/dev/null || fail "predict on $n failed"
done
/usr/bin/python3 -c '
import h5py
a, b = map(h5py.File, ("predicted-1.h5", "predicted-3.h5"))
assert abs(a["output"][()] - b["output"][()]).max() < 1e-6 and (a["class"][()] == b["class"][()]).all()' || fail "predictions of three ranks are not those of one"
mv predicted-1.h5 predicted.h5
/usr/bin/python3 - "$accuracy" <<'PY' || fail "predictions do not give the accuracy of the evaluation"
import h5py, sys
p, t = h5py.File("predicted.h5"), h5py.File("test.h5")
right = (p["class"][()] == t["label"][()]).mean()
print("predicted %.6f, evaluated %s" % (right, sys.argv[1]))
sys.exit(int(abs(right - float(sys.argv[1])) > 1e-6 or abs(p["output"][()].sum(1) - 1).max() > 1e-4))
PY
# With batchnorm each evaluation of a run sees the parameters of its step: the last one is what eval says, and predict.
run 2 folded model=net-bn.yaml train.epochs=3
ranks 2 "$PACELINE" eval job.yaml model=net-bn.yaml checkpoint.dir=folded >eval-folded.out 2>&1 || { fail "eval with batchnorm failed"; cat eval-folded.out; }
ranks 1 "$PACELINE" predict job.yaml model=net-bn.yaml checkpoint.dir=folded --out folded.h5 >/dev/null || fail "predict with batchnorm failed"
/usr/bin/python3 - <<'PY' || fail "evaluations with batchnorm"
import h5py, json, re, sys
evals = [e for e in map(json.loads, open("folded/metrics.jsonl")) if e["event"] == "eval"]
said = float(re.search(r"loss (\S+),", open("eval-folded.out").read())[1])
right = (h5py.File("folded.h5")["class"][()] == h5py.File("test.h5")["label"][()]).mean()
print("losses", [e["loss"] for e in evals], "eval", said, "accuracy", evals[-1]["accuracy"], "predicted", right)
sys.exit(not (abs(evals[-1]["loss"] - said) < 2e-6 < abs(evals[0]["loss"] - said) and abs(right - evals[-1]["accuracy"]) < 1e-6))
PY
# An auxiliary head: it is trained and kept, the sum is reported beside the main loss, and evaluation does without it.
awk '/name: ip1/{print "  - {name: aux, kind: dense, units: 4, init: gaussian}"; print "  - {name: aux_loss, kind: softmax_loss, weight: 0.3}"; sub(/}$/, ", from: pool1}")} {print}' net.yaml >net-aux.yaml
run 1 heads-1 model=net-aux.yaml train.steps=3 train.global_batch=96 train.eval_every=never
run 2 heads-2 model=net-aux.yaml train.steps=3 train.global_batch=96
compare heads-1 heads-2 1e-6 1e-5
/usr/bin/python3 - <<'PY' || fail "the losses of a network with two heads"
import h5py, json, math, sys
steps, evals = ([e for e in map(json.loads, open("heads-2/metrics.jsonl")) if e["event"] == kind] for kind in ("step", "eval"))
extra = steps[0]["total_loss"] - steps[0]["loss"]
print("step 1: loss %(loss)g, total %(total_loss)g" % steps[0], "evaluation:", evals)
weight = h5py.File("heads-2/step-00000003/model.h5")["params/aux/weight"]
sys.exit(not (abs(extra - 0.3 * math.log(4)) < 0.05 and "total_loss" not in evals[0] and weight.shape == (4, 150)))
PY
sed '/aux/d; s/, from: pool1//' net-aux.yaml >net-without.yaml
diff net.yaml net-without.yaml || fail "the network without its head is not net.yaml"
for net in net-aux net; do # the same numbers from the file without the head
    ranks 2 "$PACELINE" eval job.yaml model=$net.yaml checkpoint.dir=heads-2 >eval-$net.out 2>&1 || { fail "eval of $net failed"; cat eval-$net.out; }
    ranks 1 "$PACELINE" predict job.yaml model=$net.yaml checkpoint.dir=heads-2 --out predicted-$net.h5 >/dev/null || fail "predict of $net failed"
done
diff eval-net-aux.out eval-net.out || fail "evaluation needs the auxiliary head"
/usr/bin/python3 -c 'import h5py, sys; a, b = (h5py.File(f)["output"][()] for f in ("predicted-net-aux.h5", "predicted-net.h5")); sys.exit(int((a != b).any()))' || fail "prediction needs the auxiliary head"
run 2 heads-2 model=net-aux.yaml train.steps=6 train.global_batch=96
grep -q "continuing at step 3" heads-2.log || fail "a run with two heads does not continue"
"$PACELINE" bench layers job.yaml model=net-aux.yaml --rounds 1 --steps 2 | grep -q aux_loss || fail "bench layers does not show the auxiliary loss"
# Predictions need no labels.
/usr/bin/python3 -c 'import h5py; h5py.File("bare.h5", "w")["data"] = h5py.File("test.h5")["data"][()]'
ranks 1 "$PACELINE" predict job.yaml checkpoint.dir=twice-a data.test.file=bare.h5 --out bare-predicted.h5 >/dev/null || fail "predict without labels failed"
/usr/bin/python3 -c 'import h5py, sys; a, b = (h5py.File(f)["output"][()] for f in ("predicted.h5", "bare-predicted.h5")); sys.exit(int((a != b).any()))' || fail "predictions with and without labels differ"
ranks 1 "$PACELINE" predict job.yaml checkpoint.dir=twice-a --set best --out x.h5 >out 2>&1
[ $? -eq 2 ] && grep -q -- '--set best: train or test' out || { fail "an unknown set was taken"; cat out; }
"$PACELINE" inspect "twice-a" | grep -q '/params/conv1/weight' || fail "inspect does not show a checkpoint's tensors"
"$PACELINE" inspect job.yaml | grep -q 'conv1' || fail "inspect does not show a job's layers"
key() { [ "$("$PACELINE" inspect job.yaml --key "$@" 2>&1)" = "$wanted" ] || fail "inspect --key $*: wanted $wanted, got $("$PACELINE" inspect job.yaml --key "$@" 2>&1)"; }
wanted=run key report.dir
wanted=other/run key report.dir report.dir=other/run
wanted=none key report.dir report.dir=none
wanted="1 epochs" key train.eval_every
wanted="[USR1, TERM, INT]" key checkpoint.signals
wanted="[0.5, 1]" key data.train.mean data.train.mean='[0.5, 1]'
wanted="60000 ms" key exchange.timeout
wanted=momentum key optimizer.kind
wanted=false key data.test.shuffle
"$PACELINE" inspect job.yaml --key report.di 2>&1 | grep -q 'did you mean report.dir' || fail "inspect --key takes an unknown key"
# One set in three files, of which a pattern names two: the same step on 1 to 3 ranks, every sample once an epoch;
# a run goes on with the same files only.
mkdir -p parts
/usr/bin/python3 - <<'PY'
import h5py
f = h5py.File("train.h5")
for i, (a, b) in enumerate(((0, 400), (400, 450), (450, 1000))):
    with h5py.File("parts/%d.h5" % i, "w") as p:
        p.create_dataset("data", data=f["data"][a:b], chunks=(16, 1, 12, 12), compression="gzip")
        p["label"] = f["label"][a:b]
PY
files="data.train.files=[parts/0.h5, 'parts/[12].h5']"
for n in 1 2 3; do run $n files-$n "$files" train.steps=1 train.global_batch=190 train.eval_every=never; done
for n in 2 3; do compare files-1 files-$n 1e-6 1e-5; done
run 3 files-epoch "$files" train.epochs=1 train.eval_every=never
seen=$(/usr/bin/python3 -c "import h5py,sys; print(h5py.File(sys.argv[1])['run'].attrs['samples_seen'])" "$(model files-epoch)")
[ "$seen" = 1000 ] || fail "$seen samples of 1000 in three files were read in an epoch"
run 2 files-straight "$files" train.steps=12 train.eval_every=never
run 2 files-resumed "$files" train.steps=5 train.eval_every=never
train 2 job.yaml checkpoint.dir=files-resumed report.dir=files-resumed "data.train.files=[parts/1.h5, 'parts/[02].h5']" train.steps=12 >out 2>&1
[ $? -eq 6 ] && grep -q "was trained on $PWD/parts/0.h5 and 2 more files" out || { fail "another order of files was taken"; cat out; }
run 2 files-resumed "$files" train.steps=12 train.eval_every=never
compare files-straight files-resumed 0 0 exact
# Staged: the same bits, copies that the next run uses, a changed file copied again; two jobs at the same time; what a
# killed job left goes, what a living one writes stays.
run 2 unstaged "$files" train.steps=6 train.eval_every=never
mkdir stage && echo left >stage/.staging-1-there-aaaaaa
( flock 9; sleep 20 ) 9>stage/.staging-2-there-bbbbbb & holder=$!
( run 2 staged-b "$files" train.steps=6 train.eval_every=never data.stage=stage ) &
run 2 staged-a "$files" train.steps=6 train.eval_every=never data.stage=stage
wait $!
compare unstaged staged-a 0 0 exact
compare unstaged staged-b 0 0 exact
grep -q 'staged to stage: [0-4] files* copied' staged-a.log && grep -q 'staged to stage: [0-4] files* copied' staged-b.log || fail "no word of what was staged"
[ "$(ls -A stage | sed 's/^[0-9a-f]\{8\}-//' | sort | tr '\n' ' ')" = ".staging-2-there-bbbbbb 0.h5 1.h5 2.h5 test.h5 " ] || fail "the staging directory holds $(ls -A stage)"
kill $holder
touch -d '2020-01-01' parts/1.h5
run 3 staged-c "$files" train.steps=1 train.eval_every=never data.stage=stage
grep -q 'staged to stage: 1 file copied, .*; 3 there already' staged-c.log || { fail "a changed file was not staged again, or more"; grep staged staged-c.log; }
run 2 staged-a "$files" train.steps=9 train.eval_every=never data.stage=stage
ranks 2 "$PACELINE" eval job.yaml checkpoint.dir=staged-a data.stage=stage 2>&1 | grep -q 'staged to stage: 0 files copied, .*; 1 there already' || fail "eval does not read staged files"
# Others that tidy up the directory without a pause take files that were made just now for leftovers: new ones are made.
cat >tidy.py <<'PY'
import fcntl, os
while not os.path.exists("tidied"):
    for name in os.listdir("tidy"):
        if name.startswith(".staging-"):
            try:
                with open("tidy/" + name) as f:
                    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink("tidy/" + name)
            except OSError:
                pass
PY
mkdir tidy
/usr/bin/python3 tidy.py & tidier=$!
run 2 tidy-a "$files" train.steps=1 train.eval_every=never data.stage=tidy debug.fault=stage.lock@count=3:delay=100
touch tidied
wait $tidier
grep -q 'staged to tidy: 4 files copied' tidy-a.log || { fail "4 files were not staged beside another job"; grep staged tidy-a.log; }
[ "$(ls -A tidy | grep -c staging)" -eq 0 ] || fail "left in the staging directory: $(ls -A tidy)"
# The loader by itself: 1000 samples in blocks, each read once in an epoch of 8 batches.
ranks 1 "$PACELINE" bench data job.yaml train.batch=125 --steps 8 --rounds 1 >bench.json || fail "bench data failed"
/usr/bin/python3 - <<'PY' || { fail "bench data does not say what it read"; cat bench.json; }
import json, sys
b = json.load(open("bench.json"))
read = b["read_mb_per_s"] / b["samples_per_s"] * 1e6  # bytes of a sample
print("%.1f bytes read a sample" % read)
sys.exit(int(b["batches"] != 8 or abs(read - 144) > 1 or not b["samples_per_s"] > 0))
PY
finish
