#!/usr/bin/env bash
# A disk that fills up while a checkpoint is written, at several places of the file: one message and exit 6, or with
# checkpoint.on_error: continue a run to its end; what was whole stays whole. On a small tmpfs in a mount namespace.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
if [ -z "${PL_UNSHARED:-}" ]; then
    how=(unshare -m)
    [ "$(id -u)" -eq 0 ] || how=(unshare -rm)
    "${how[@]}" true 2>/dev/null || { echo "skipped: no mount namespaces here"; exit 77; }
    PL_UNSHARED=1 exec "${how[@]}" "$0"
fi
small_job 500 103
mkdir small
run() { train 2 job.yaml checkpoint.dir=small/c report.dir=small/r checkpoint.every="2 steps" optimizer.kind=adam train.epochs=3 "$@" >out 2>&1; }
for size in 120k 156k 204k 252k; do
    mount -t tmpfs -o size=$size none small 2>/dev/null || { echo "skipped: tmpfs cannot be mounted here"; exit 77; }
    run
    code=$?
    [ $code -eq 6 ] && [ "$(grep -c 'No space left on device' out)" -eq 1 ] || { fail "$size: exit $code, wanted 6 and one message"; grep -v '^epoch' out; }
    if [ -e small/c/latest ]; then
        before=$(cat small/c/latest)
        [ "$("$PACELINE" inspect small/c | grep -c '/params/conv1/weight')" -eq 1 ] || fail "$size: $before cannot be read"
    fi
    run checkpoint.on_error=continue || { fail "$size: on_error continue ended with $?"; grep -v '^epoch' out; }
    grep -q 'training goes on without this checkpoint' out || fail "$size: no word of the checkpoint that was lost"
    grep -q '^done at step' out || fail "$size: the run did not come to its end"
    echo "ok: $size, checkpoints $(ls small/c | tr '\n' ' ')"
    [ -z "$(ls -A small/c | grep writing)" ] || fail "$size: a half-written checkpoint is left"
    umount small
done
# A limit on the size of files is met with the same message, not with a signal.
ranks 1 bash -c 'ulimit -f 60; exec "$@"' limited "$PACELINE" train job.yaml checkpoint.dir=limited report.dir=none checkpoint.every="2 steps" optimizer.kind=adam >out 2>&1
code=$?
[ $code -eq 6 ] && [ "$(grep -c 'File too large' out)" -eq 1 ] || { fail "limited files: exit $code, wanted 6 and one message"; grep -v '^epoch' out; }
# Too little room to stage is known before anything is copied.
mount -t tmpfs -o size=16k none small || fail "tmpfs cannot be mounted again"
train 2 job.yaml checkpoint.dir=none report.dir=none data.stage=small >out 2>&1
[ $? -eq 3 ] && [ "$(grep -c 'small: 0.[0-9]* MB are to be staged, 0.016 MB are free: 0.[0-9]* MB are missing' out)" -eq 1 ] || { fail "staged into 16 kB"; cat out; }
[ -z "$(ls -A small)" ] || fail "something was staged into 16 kB: $(ls -A small)"
umount small
finish
