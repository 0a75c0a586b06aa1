#!/usr/bin/env bash
# device.kind cuda where it cannot be: no module, one that is not of this build, no device. Each its message, once, and exit
# code 7; doctor says the same and ends well.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
cd "$PL_TMPDIR" || exit 1
cp "$tools"/*.yaml .
"$tools/make_set.py" train.h5 60 1 12 4 1 && "$tools/make_set.py" test.h5 40 1 12 4 2 || exit 1
mkdir -p none text stale
refused() { # refused FOLDER TEXT
    export PACELINE_MODULE_PATH=$1
    expect 7 "$2" 3 job.yaml device.kind=cuda
    "$PACELINE" doctor >out 2>&1 || fail "doctor ends with $?"
    grep '^cuda ' out | grep -qF -- "$2" || fail "doctor does not say \"$2\": $(grep '^cuda ' out)"
    grep -q '^backends .*cuda' out && fail "doctor has a backend cuda: $(grep '^backends' out)"
    unset PACELINE_MODULE_PATH
}
refused none "no module none/paceline_cuda.so"
echo "not a library" >text/paceline_cuda.so
refused text "cannot open text/paceline_cuda.so"
stale='#include <stdint.h>
struct { uint32_t number; char version[28]; } paceline_cuda_module = {77, "0.0.1"};'
${CC:-cc} -shared -fPIC -x c -o stale/paceline_cuda.so - <<<"$stale" || fail "no stale module"
refused stale "is of another build (0.0.1, contract 77)"
run 1 cpu device.kind=cpu train.steps=2 train.eval_every=never
expect 2 "train.precision tf32 is of device.kind cuda, this is cpu" 3 job.yaml train.precision=tf32

say=$("$PACELINE" doctor 2>/dev/null | grep '^cuda ')
case $say in
    *"code for "*) ;;
    *"not built"*) echo "built without CUDA: $say"; finish ;;
    *) fail "the module of this build cannot be opened: $say"; finish ;;
esac
export CUDA_VISIBLE_DEVICES=
expect 7 "device: cuda cannot be used: no NVIDIA d" 3 job.yaml device.kind=cuda # driver, or device
finish
