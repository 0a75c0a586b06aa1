#!/usr/bin/env bash
# Training with device.kind cuda against the cpu backend: a step, many steps, every optimizer, accumulation, clipping,
# evaluation and prediction, the same bits twice and after a resume, several ranks, and every kind of sync. On a GPU, or over
# stand-ins for NVIDIA's libraries that compute on the host (tests/cuda/libraries).
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
cd "$PL_TMPDIR" || exit 1
why=$("$PACELINE" doctor 2>/dev/null | sed -n 's/^cuda *//p')
grep -q 'device 0' <<<"$why" || { echo "skipped: no GPU (${why:-doctor says nothing})"; exit 77; }
several=1
command -v "${PL_MPIRUN[0]}" >/dev/null || { several=0; ranks() { shift; timeout --kill-after=5 120 "$@"; }; }
cp "$tools"/*.yaml .
"$tools/make_set.py" train.h5 1000 1 12 4 1 && "$tools/make_set.py" test.h5 203 1 12 4 2 || exit 1
on() { local device=$1; shift; job=(job.yaml device.kind="$device"); run "$@"; } # on DEVICE N DIR KEYS...
# both N NAME WHOLE TENSOR KEYS...: the same run on both devices, within these limits (of compare.py)
both() {
    local n=$1 name=$2 whole=$3 tensor=$4; shift 4
    on cpu "$n" "$name-cpu" "$@"
    on cuda "$n" "$name-cuda" "$@"
    compare "$name-cpu" "$name-cuda" "$whole" "$tensor"
}
short=(train.eval_every=never train.steps=12)

# The gradient of a bias before a normalisation is rounding alone.
both 1 one-net-bn 1e-6 10 model=net-bn.yaml train.steps=1 train.eval_every=never
both 1 bn 1e-3 10 model=net-bn.yaml "${short[@]}"
for net in net net-dense; do both 1 one-$net 1e-6 1e-5 model=$net.yaml train.steps=1 train.eval_every=never; done
kinds="sgd momentum nesterov adagrad adadelta rmsprop adam adamw lars"
sanitized && kinds="momentum adam lars"
for kind in $kinds; do
    both 1 "$kind" 1e-3 1e-2 optimizer.kind=$kind optimizer.lr=0.01 "${short[@]}"
done
both 1 accumulate 1e-4 1e-3 train.accumulate=3 train.steps=4 train.eval_every=never
both 1 crops 1e-3 1e-2 "data.train.augment={crop: 12, pad: 2, flip: true}" "${short[@]}"
both 1 clip 1e-3 1e-2 optimizer.clip_norm=0.5 "${short[@]}"
grep -q '"grad_norm"' clip-cuda/metrics.jsonl || fail "no gradient norm in the metrics"

# The same job twice; half of it and the rest.
on cuda 1 twice-a train.steps=20
on cuda 1 twice-b train.steps=20
compare twice-a twice-b 0 0 exact
on cuda 1 resumed train.steps=10
on cuda 1 resumed train.steps=20
compare twice-a resumed 0 0 exact
# Within a limit, or not: what it takes is not known before.
on cuda 1 limited train.steps=20 device.memory_limit="4 GB"
compare twice-a limited 0 0 exact
expect 7 " MB on the device: device.memory_limit gives a rank 1.0 MB" 1 job.yaml device.kind=cuda checkpoint.dir=none report.dir=none train.batch=500 device.memory_limit="1 MB"
# Batches go there ahead, from memory that is pinned; nothing is left behind.
if grep -q "device of the host's" <<<"$why"; then
    PL_FAKE_TELL=1 on cuda 1 ahead train.steps=20
    grep -q 'stand-ins: [1-9][0-9]* copies within a device, 0 of pageable memory; left: 0 in device memory, 0 pinned' ahead.log || fail "nothing came ahead, or something is left: $(tail -n 2 ahead.log)"
    compare twice-a ahead 0 0 exact
fi
accuracy() { grep '"eval"' "$1/metrics.jsonl" | tail -n 1 | sed -E 's/.*"accuracy": ([0-9.]+).*/\1/'; }
on cuda 1 learns train.epochs=6
awk "BEGIN{exit !($(accuracy learns) > 0.9)}" || fail "accuracy $(accuracy learns), wanted more than 0.9"
# What was trained there is read here, and the other way.
for device in cpu cuda; do
    ranks 1 "$PACELINE" eval job.yaml --checkpoint learns device.kind=$device >$device.eval 2>&1 || fail "eval on $device: $(tail -n 1 $device.eval)"
    ranks 1 "$PACELINE" predict job.yaml --checkpoint learns --out $device.h5 device.kind=$device >$device.predict 2>&1 || fail "predict on $device: $(tail -n 1 $device.predict)"
done
cmp <(grep -oE 'accuracy [0-9.]+' cpu.eval) <(grep -oE 'accuracy [0-9.]+' cuda.eval) || fail "eval differs: $(cat cpu.eval cuda.eval)"
/usr/bin/python3 - <<'P' || fail "predictions differ"
import h5py, numpy as np
a, b = (h5py.File(d + ".h5")["output"][()] for d in ("cpu", "cuda"))
worst = float(np.abs(a - b).max())
print("predictions differ by %.1e at most" % worst)
raise SystemExit(worst > 1e-4)
P

# Embeddings and recurrent cells, with a loss at every position.
"$tools/make_sequences.py" steps.h5 200 1 || exit 1
sequence=(model=net-sequence.yaml data.train.file=steps.h5 data.test.file=steps.h5 data.train.scale=1 data.test.scale=1 optimizer.kind=adam optimizer.lr=0.01 optimizer.clip_norm=5 train.batch=20 train.steps=15)
both 1 sequence 1e-4 1e-3 "${sequence[@]}"
holds "($(number sequence-cpu eval loss) - $(number sequence-cuda eval loss))^2 < 1e-8" "$(event sequence-cpu eval) on the cpu, $(event sequence-cuda eval)"
on cuda 1 sequence-again "${sequence[@]}"
compare sequence-cuda sequence-again 0 0 exact
on cuda 1 sequence-bf16 "${sequence[@]}" train.precision=bf16
compare sequence-cuda sequence-bf16 5e-2 1
# A transformer's block. The bias of the keys changes nothing: Adam would make steps of the rounding of its gradient.
sequence+=(model=net-attention.yaml optimizer.kind=momentum optimizer.lr=0.05 train.steps=10)
both 1 attention 1e-4 1e-3 "${sequence[@]}"
holds "($(number attention-cpu eval loss) - $(number attention-cuda eval loss))^2 < 1e-8" "$(event attention-cpu eval) on the cpu, $(event attention-cuda eval)"
on cuda 1 attention-again "${sequence[@]}"
compare attention-cuda attention-again 0 0 exact
on cuda 1 attention-bf16 "${sequence[@]}" train.precision=bf16
compare attention-cuda attention-bf16 5e-2 1e6

# bf16: learns as well, near to the losses in fp32, its own bits, twice and after a resume.
for net in net $(sanitized || echo net-bn net-dense); do
    on cuda 1 fp32-$net model=$net.yaml "${short[@]}"
    on cuda 1 bf16-$net model=$net.yaml train.precision=bf16 "${short[@]}"
    compare fp32-$net bf16-$net 5e-2 1e6 # a bias before a normalisation: rounding alone
    "$tools/compare.py" "$(model fp32-$net)" "$(model bf16-$net)" 0 0 exact | grep -q "tensors, [1-9][0-9]* differ" || fail "$net in bf16 has the bits of fp32"
done
on cuda 1 bf16 train.precision=bf16 train.steps=20
on cuda 1 bf16-again train.precision=bf16 train.steps=20
compare bf16 bf16-again 0 0 exact
on cuda 1 bf16-resumed train.precision=bf16 train.steps=10
on cuda 1 bf16-resumed train.precision=bf16 train.steps=20
compare bf16 bf16-resumed 0 0 exact
on cuda 1 bf16-learns train.precision=bf16 train.epochs=6
awk "BEGIN{exit !($(accuracy bf16-learns) > 0.9)}" || fail "accuracy $(accuracy bf16-learns) in bf16, wanted more than 0.9"

if [ $several -eq 1 ]; then
    for n in 2 3; do both $n ranks-$n 1e-5 1e-4 train.steps=3 train.global_batch=190 train.eval_every=never; done
    compare ranks-2-cuda ranks-3-cuda 1e-5 1e-4
    for n in 1 2; do on cuda $n bf16-ranks-$n train.precision=bf16 train.steps=3 train.global_batch=190 train.eval_every=never; done
    compare bf16-ranks-1 bf16-ranks-2 1e-2 1
    # Added up by NCCL: one GPU a rank.
    devices=$(grep -oE 'device [0-9]+:' <<<"$why" | wc -l)
    if [ "$devices" -gt 2 ] && grep -q ' NCCL [0-9]' <<<"$why"; then
        nccl=(exchange.transport=nccl exchange.bucket_mb=0.01)
        for n in 2 3; do
            on cuda $n nccl-$n "${nccl[@]}" train.steps=3 train.global_batch=190 train.eval_every=never
            compare ranks-$n-cpu nccl-$n 1e-5 1e-4
        done
        on cpu 2 micro-cpu train.accumulate=3 train.steps=4 train.eval_every=never
        on cuda 2 micro-nccl "${nccl[@]}" train.accumulate=3 train.steps=4 train.eval_every=never
        compare micro-cpu micro-nccl 1e-4 1e-3
        for run in a b; do on cuda 2 nccl-$run "${nccl[@]}" train.steps=20; done
        on cuda 2 nccl-resumed "${nccl[@]}" train.steps=10
        on cuda 2 nccl-resumed "${nccl[@]}" train.steps=20
        compare nccl-a nccl-b 0 0 exact
        compare nccl-a nccl-resumed 0 0 exact
        expect 5 "missing: rank 1" 2 job.yaml device.kind=cuda "${nccl[@]}" checkpoint.dir=no report.dir=no exchange.timeout="2 s" debug.fault=step@rank=1@step=3:hang
        grep -qE 'gradients are added up by NCCL [0-9.]+; where they lie; counts by transport mpi' nccl-a.log || fail "nccl: $(head -n 5 nccl-a.log)"
    fi
    both 2 local 1e-3 1e-2 sync.kind=local_sgd sync.tau=4 "${short[@]}"
    on cuda 3 late exchange.transport=tcp sync.backup_workers=1 train.steps=20 train.eval_every="10 steps" debug.delay.rank=1 debug.delay.ms=30
    grep -q 'hold the same parameters' late.log || fail "backup workers: $(tail -n 2 late.log)"
    on cuda 2 downpour sync.kind=downpour optimizer.kind=sgd train.steps=20
    on cuda 2 sandblaster sync.kind=sandblaster optimizer.kind=sgd train.steps=3
fi
finish
