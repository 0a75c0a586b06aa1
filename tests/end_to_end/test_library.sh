#!/usr/bin/env bash
# libpaceline, installed, in a program of somebody else's (library.c): trained from memory it is, bit for bit, what `paceline train`
# makes of the same samples in a file, and what it then gives is what `paceline predict` writes; what is wrong is refused.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
small_job 600 203
/usr/bin/python3 - <<'PY' || exit 1
import h5py, numpy
for name in ("train", "test"):
    with h5py.File(name + ".h5") as f:
        data, label = f["data"][:], f["label"][:].astype(numpy.int32)
    assert data.dtype == numpy.uint8, data.dtype
    data.tofile(name + ".data")
    label.tofile(name + ".label")
    with h5py.File(name + ".h5", "w") as f: # in one piece, as in memory: the order of samples is by chunks
        f["data"], f["label"] = data, label
PY
cmake --install "$PL_BUILD_DIR" --prefix inst >install.log 2>&1 || { fail "install: $(tail -n 3 install.log)"; finish; }
export PKG_CONFIG_PATH=$(dirname "$(find "$PWD/inst" -name paceline.pc)")
build() { # build NAME COMPILER FLAGS...
    local name=$1 compiler=$2; shift 2
    $compiler -std=c99 -Wall -Wextra -pedantic -Werror ${PL_SANITIZE:+-fsanitize=$PL_SANITIZE} "$@" "$PL_SOURCE_DIR/tests/end_to_end/library.c" \
        ${PL_SANITIZE:+"$PL_SOURCE_DIR/tests/keep_plugins.c"} $(pkg-config --cflags --libs paceline) -o "$name" >build.log 2>&1 || fail "$name: $(head -n 5 build.log)"
}
build alone "${CC:-cc}"
build within "${PL_MPICC:-mpicc}" -DWITH_MPI
echo '#include <paceline/paceline.h>' >header.cc
! command -v c++ >/dev/null || c++ -Wall -Werror -Iinst/include -fsyntax-only header.cc || fail "the header in C++"

keys() { echo "checkpoint.dir=$1 report.dir=$1 data.train.file=none data.test.file=none"; }
same=(train.global_batch=64 train.threads=1)
outputs() { # outputs FILE... : what `paceline predict` gives, of run-1
    /usr/bin/python3 - "$@" <<'PY' || fail "outputs: $*"
import h5py, numpy, sys
want = h5py.File("predicted.h5")["output"][:]
for name in sys.argv[1:]:
    got = numpy.fromfile(name, numpy.float32).reshape(want.shape)
    assert (got == want).all(), (name, abs(got - want).max())
PY
}
called() { # called RANKS PROGRAM CASE DIR KEYS...: it must end well, with the model of run-RANKS
    local n=$1 program=$2 case=$3 dir=$4; shift 4
    ranks "$n" "./$program" "$case" $(keys "$dir") "${same[@]}" "$@" >"$dir.log" 2>&1 || { fail "$dir: $(tail -n 5 "$dir.log")"; return; }
    compare run-"$n" "$dir" 0 0 exact
    grep -q "^code 0, 2[02] reports, 2 evaluations, step 20, loss $(printf %.6f "$(number run-"$n" eval loss)")" "$dir.log" || fail "$dir: $(tail -n 2 "$dir.log"), $(event run-"$n" eval)"
}
for n in 1 2; do
    run $n run-$n "${same[@]}"
    called $n alone plain alone-$n
    "$PACELINE" predict job.yaml --checkpoint run-$n --out predicted.h5 >/dev/null 2>&1
    outputs 0.out $([ $n -eq 1 ] || echo 1.out)
    called $n within plain within-$n
    rm predicted.h5
done
run 3 run-3 "${same[@]}"
called 3 within plain within-3
# Another job afterwards leaves the first as it is; a job whose text is in the program.
run 2 threads-2 train.global_batch=64 train.threads=2
"$PACELINE" predict job.yaml train.threads=2 --checkpoint threads-2 --out predicted.h5 >/dev/null 2>&1
ranks 2 ./alone again $(keys again) train.global_batch=64 train.threads=2 data.test.limit=50 >again.log 2>&1 || fail "again: $(tail -n 3 again.log)"
compare threads-2 again 0 0 exact
outputs 0.out 1.out
"$tools/compare.py" "$(model threads-2)" "$(model other)" 0 0 exact >/dev/null 2>&1 && fail "the second job is the first"
{ echo "model:"; sed 's/^/  /' net.yaml; sed -n '/^data:/,$p' job.yaml | sed 's/file: [a-z.0-9]*, //; s/{dir: run/{dir: text/; s/batch: 64/global_batch: 64, threads: 1/'; } >whole.yaml
ranks 2 ./alone text >text.log 2>&1 || fail "text: $(tail -n 3 text.log)"
compare run-2 text 0 0 exact
# Stopped, and called again: it goes on; the signal is the program's own again afterwards.
ranks 2 ./alone plain $(keys stopped) "${same[@]}" debug.delay.ms=100 >stopped.log 2>&1 &
pid=$!
wait_for 60 reported stopped '[3-9]' && kill -USR1 "$(pgrep -x alone | while read -r p; do grep -qzx "PL_TMPDIR=$PL_TMPDIR" "/proc/$p/environ" && echo "$p"; done | tail -n 1)"
wait $pid
[ $? -eq 75 ] || fail "stopped: $(tail -n 3 stopped.log)"
ranks 2 ./alone plain $(keys stopped) "${same[@]}" >stopped.log 2>&1 || fail "stopped, and on: $(tail -n 3 stopped.log)"
compare run-2 stopped 0 0 exact
called 2 alone late late # a signal after the last step
# A run goes on without a rank that it loses; MPI cannot be used any more then.
timeout --kill-after=5 120 "${PL_MPIRUN[@]}" --enable-recovery -n 3 ./alone plain $(keys without) "${same[@]}" sync.backup_workers=1 \
    exchange.transport=tcp debug.fault=step@rank=2@step=5:kill >without.log 2>&1
[ "$(grep -c "^rank [01] of 3, code 5: .*a run has lost ranks" without.log)" -eq 2 ] && grep -q "^done at step" without.log || fail "without a rank: $(tail -n 5 without.log)"

wrong() { # wrong CODE TEXT RANKS PROGRAM CASE KEYS...: refused; one rank says why
    local wanted=$1 text=$2 n=$3 program=$4 case=$5 code; shift 5
    rm -rf wrong
    ranks "$n" "./$program" "$case" $(keys wrong) "${same[@]}" "$@" >wrong.log 2>&1
    code=$?
    [ $code -eq "$wanted" ] && grep -qE "^rank [0-9] of $n, code $wanted: .*$text" wrong.log || fail "$case: wanted $wanted and \"$text\", got $code: $(tail -n 4 wrong.log)"
}
wrong 2 "unknown key train.epohcs" 2 alone plain train.epohcs=3
wrong 2 "valid: wanted train or test" 1 alone name
wrong 2 "no labels" 1 alone unlabelled
wrong 2 "train.stop needs data.test" 2 alone untested train.stop.above=0.5
wrong 3 "memory:train \[[0-9a-f]*\]: this rank was given other samples than rank 0" 2 alone differ
wrong 3 "memory:train \[[0-9a-f]*\]: this rank was given other samples than rank 0" 2 alone types
ranks 1 ./alone one $(keys alone-1) "${same[@]}" train.steps=30 >wrong.log 2>&1
[ $? -eq 6 ] && grep -q "^rank 0 of 1, code 6: .*was trained on memory:train" wrong.log || fail "a run went on with other samples: $(tail -n 3 wrong.log)"
wrong 3 "memory:train:/label: .*599.*600|has 600 samples, /label has 599" 2 alone short
wrong 3 "wanted \[N, 1, 12, 12\], found \[600, 1, 6, 24\]" 2 alone shape
wrong 6 "nowhere" 2 alone lost
ranks 1 ./within single >wrong.log 2>&1
[ $? -eq 2 ] && grep -q "ask MPI_Init_thread for it" wrong.log || fail "MPI_THREAD_SINGLE: $(tail -n 3 wrong.log)"
ranks 2 ./alone label $(keys wrong-label) "${same[@]}" >wrong.log 2>&1
[ $? -eq 3 ] && grep -q "memory:train:/label: sample 599 has label 4" wrong.log || fail "a wrong label: $(grep -v epoch wrong.log | head -n 5)"
finish
