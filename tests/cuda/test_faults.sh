#!/usr/bin/env bash
# The cuda backend where calls of NVIDIA's libraries fail, over the stand-ins for these: a call of each function, whose number is drawn,
# ends a run with 7 and a message, or is one that it does without; nothing crashes or hangs. PL_TEST_FAULTS draws others,
# PL_TEST_ALL takes many of each.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
cd "$PL_TMPDIR" || exit 1
cp "$tools"/*.yaml .
"$tools/make_set.py" train.h5 200 1 12 4 1 && "$tools/make_set.py" test.h5 50 1 12 4 2 || exit 1
export OMPI_MCA_ess_singleton_isolated=1
train() { timeout --kill-after=5 60 "$PACELINE" train job.yaml device.kind=cuda checkpoint.dir=none report.dir=none train.steps=4 train.eval_every="3 steps" "$@" >out 2>&1; }
mapfile -t functions < <(grep -ohE '(FAKE|ENDED)\((cuda[A-Za-z]+)\)|fails\("[A-Za-z_0-9]+"\)|(run|workspace)\("cudnn[A-Za-z0-9_]+"|>\("cudnn[A-Za-z0-9_]+"' "$PL_SOURCE_DIR"/tests/cuda/libraries/*.cc |
    grep -oE '(cuda|cublas|cudnn|kernel)[A-Za-z0-9_]*' | sort -u)
[ ${#functions[@]} -gt 40 ] || fail "only ${#functions[@]} functions were found"
RANDOM=${PL_TEST_FAULTS:-7}
ended=0
one() { # one FUNCTION N
    PL_FAKE_FAIL=$1:$2 train model=net-bn.yaml; local code=$?
    case $code in
        0) ;;
        2) grep -q 'cuDNN has no deterministic algorithm for it' out || fail "$1, call $2: $(tail -n 3 out)" ;; # those that fail are left out
        7) ended=$((ended + 1)); grep -qE '^\[rank 0/1 .*\] (device|backend|memory): ' out || fail "$1, call $2: no message: $(tail -n 3 out)" ;;
        *) fail "$1, call $2: exit $code: $(tail -n 3 out)" ;;
    esac
}
for f in "${functions[@]}"; do
    calls=$((RANDOM % 2 ? 1 + RANDOM % 3 : 4 + RANDOM % 40))
    [ -z "${PL_TEST_ALL:-}" ] || calls="1 2 3 5 8 20 40 100"
    for n in $calls; do one "$f" "$n"; done
done
[ $ended -gt 10 ] || fail "only $ended runs ended by what failed"
# What cannot be recorded goes layer by layer, to the same bits.
train model=net-bn.yaml || fail "exit $?: $(tail -n 3 out)"
loss=$(grep -o 'test loss .*' out)
for f in cudaStreamBeginCapture cudaStreamEndCapture cudaGraphInstantiate; do
    PL_FAKE_FAIL=$f:1 train model=net-bn.yaml && [ -n "$loss" ] && [ "$(grep -o 'test loss .*' out)" = "$loss" ] || fail "$f: $(tail -n 3 out), wanted $loss"
done
# So do sums that NCCL makes, of one rank or of all.
if "$PACELINE" doctor | grep -q 'NCCL [0-9]'; then
    while read -r f who; do
        # shellcheck disable=SC2016
        ranks 2 bash -c '[ "$1" != "all" ] && [ "$1" != "$OMPI_COMM_WORLD_RANK" ] || export PL_FAKE_FAIL=$2; exec "${@:3}"' - "$who" "$f" \
            "$PACELINE" train job.yaml device.kind=cuda checkpoint.dir=none report.dir=none train.steps=4 exchange.transport=nccl exchange.timeout="5 s" >out 2>&1 </dev/null
        code=$?
        [ $code = 5 ] && grep -qE '^\[rank ./2 .*\] transport nccl: nccl' out || fail "$f on $who: exit $code: $(tail -n 3 out)"
    done <<L
ncclGetUniqueId:1 0
ncclCommInitRankConfig:1 1
ncclAllReduce:$((1 + RANDOM % 4)) 1
ncclCommGetAsyncError:$((1 + RANDOM % 10)) all
L
fi
# A device with little memory.
for mb in 1 30 33 40; do
    PL_FAKE_MEMORY_MB=$mb train; code=$?
    [ $code = 0 ] || { [ $code = 7 ] && grep -qE "out of memory: [0-9.]+ MB asked for .*, [0-9.]+ MB of [0-9.]+ MB are free" out; } || fail "$mb MB of device memory: exit $code: $(tail -n 3 out)"
    [ "$mb" != 30 ] || [ $code = 7 ] || fail "30 MB of device memory were enough"
done
finish
