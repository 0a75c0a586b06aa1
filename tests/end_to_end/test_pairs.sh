#!/usr/bin/env bash
# Every pair of a kind of sync and another feature either works, and the ranks agree, or is refused with the reason: the
# table "What goes with what" of docs/sync.md.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 600 103

kinds=(allreduce backup local_sgd local_backup downpour sandblaster)
declare -A keys=([allreduce]="" [backup]="sync.backup_workers=1" [local_sgd]="sync.kind=local_sgd sync.tau=3" \
    [local_backup]="sync.kind=local_sgd sync.tau=3 sync.backup_workers=1" [downpour]="sync.kind=downpour optimizer.kind=sgd optimizer.lr=0.01" [sandblaster]="sync.kind=sandblaster optimizer.kind=sgd")
features=(plain accumulate global_batch clip_norm batchnorm lars adam compress tcp)
declare -A with=([plain]="train.batch=32" [accumulate]="train.accumulate=2 train.batch=16" [global_batch]="train.global_batch=95" [clip_norm]="train.batch=32 optimizer.clip_norm=0.1" \
    [batchnorm]="train.batch=32 model=net-bn.yaml" [lars]="train.batch=32 optimizer.kind=lars" [adam]="train.batch=32 optimizer.kind=adam optimizer.lr=0.001" [compress]="train.batch=32 exchange.compress=bf16" [tcp]="train.batch=32 exchange.transport=tcp")
refused() { # refused KIND FEATURE: the reason, if it is
    case $1,$2 in
        backup,compress) echo "exchange.compress with sync.backup_workers" ;;
        local*,compress) echo "exchange.compress is for gradients" ;;
        downpour,compress) echo "exchange.compress with sync.kind downpour" ;;
        downpour,accumulate) echo "train.accumulate with sync.kind downpour" ;;
        downpour,clip_norm) echo "optimizer.clip_norm with sync.kind downpour" ;;
        sandblaster,compress) echo "exchange.compress with sync.kind sandblaster" ;;
        sandblaster,accumulate) echo "train.accumulate with sync.kind sandblaster" ;;
        sandblaster,global_batch) echo "train.global_batch with sync.kind sandblaster" ;;
        sandblaster,clip_norm) echo "optimizer.clip_norm with sync.kind sandblaster" ;;
        sandblaster,batchnorm) echo "batch normalisation's depends on which samples a portion has" ;;
        sandblaster,lars | sandblaster,adam) echo "L-BFGS takes its place" ;;
        downpour,lars) echo "optimizer.kind lars needs the norms of whole tensors" ;;
    esac
}
for kind in "${kinds[@]}"; do
    for feature in "${features[@]}"; do
        dir=$kind-$feature why=$(refused "$kind" "$feature")
        all="train.steps=7 train.eval_every=never ${keys[$kind]} ${with[$feature]}"
        if [ -n "$why" ]; then
            expect 2 "$why" 3 job.yaml checkpoint.dir="$dir" report.dir="$dir" $all
            continue
        fi
        run 3 "$dir" $all
        grep '"event": "eval"' "$dir/metrics.jsonl" | grep -qE '"step": 7, .*"loss": [0-9]' || fail "$dir: $(tail -n 2 "$dir/metrics.jsonl")"
        case $kind in *backup) grep -q '^3 ranks hold the same parameters' "$dir.log" || fail "$dir: $(tail -n 1 "$dir.log")" ;; esac
    done
    # A run of this kind goes on on other ranks, and as another kind.
    cp -r $kind-plain $kind-fewer
    run 2 $kind-fewer train.batch=48 train.steps=9 train.eval_every=never ${keys[$kind]}
    cp -r $kind-plain $kind-other
    run 2 $kind-other train.batch=48 train.steps=9 train.eval_every=never $(case $kind in downpour | sandblaster) echo optimizer.kind=sgd ;; esac)
    for dir in $kind-fewer $kind-other; do resumed $dir 7; done
done
finish
