#!/usr/bin/env bash
# Everything that needs a GPU, for a machine that has one but neither MPI, HDF5 nor a network of its own:
#   bench/gpu_session.sh pack OUT [DATA]   here: builds for the architecture of $ARCH (90) and puts program, module, tests, their
#                                          libraries and made sets, and those of DATA (*.h5), into OUT/paceline-gpu.tar.xz
#   bench/gpu_session.sh run [PART...]     there, in the unpacked folder: the parts, all by default, each with a log in $OUT
#                                          (./out); needs the CUDA toolkit's libraries and cuDNN, of a folder in
#                                          LD_LIBRARY_PATH or of the nvidia packages of python3
# Parts: doctor ops train sanitizer accuracy step torch profile. Where a command may take ten minutes: "doctor ops train", then
# "sanitizer accuracy", "step profile", and torch for PRECISIONS (tf32 bf16 fp32) and MODELS (all) at a time. What is there when
# a part is cut off lies in $OUT.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
die() { echo "gpu_session: $*" >&2; exit 2; }

# ---- here --------------------------------------------------------------------------------------

# What a file of ours is linked with, but for the C library's and CUDA's own.
libraries() { ldd "$@" 2>/dev/null | awk '$3 ~ /^\// {print $3}' | sort -u | grep -vE '/(libc|libm|libdl|libpthread|librt|ld-linux.*|libstdc\+\+|libgcc_s)\.so|libcu|libnv'; }

pack() {
    local out=$1 data=${2:-} build=$here/build/gpu lib plugins
    mkdir -p "$out"
    stage=$(mktemp -d)
    trap 'rm -rf "$stage"' EXIT # stage outlives this function
    cmake -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release -DPACELINE_WITH_CUDA=ON -DPACELINE_WITH_VERBS=OFF -DPACELINE_WITH_DNNL=OFF -DCMAKE_CUDA_ARCHITECTURES="${ARCH:-90}" >/dev/null
    cmake --build "$build" -j "$(nproc)" --target paceline paceline_cuda gpu_ops
    mkdir -p "$stage"/{bin,lib,plugins,tests,data}
    cp "$build/paceline" "$build/paceline_cuda.so" "$build/tests/gpu_ops" "$stage/bin/"
    for lib in $(libraries "$stage"/bin/*); do cp -L "$lib" "$stage/lib/"; done
    plugins=$(ompi_info --path libdir --parsable 2>/dev/null | sed 's/.*libdir://')
    if [ -d "$plugins/openmpi3" ] || [ -d "$plugins/openmpi" ]; then
        cp -rL "$plugins"/openmpi*/ "$stage/plugins/"
        for lib in $(libraries "$stage"/plugins/*/*.so); do cp -nL "$lib" "$stage/lib/"; done
    fi
    for lib in paceline gpu_ops; do # our libraries for these alone: Python there has its own
        mv "$stage/bin/$lib" "$stage/bin/$lib.bin"
        printf '#!/bin/sh\nLD_LIBRARY_PATH=$PACELINE_LIBRARIES exec "${0%%/*}/%s.bin" "$@"\n' $lib >"$stage/bin/$lib"
        chmod +x "$stage/bin/$lib"
    done
    cp -r "$here"/{models,bench,jobs} "$stage/"
    cp -r "$here/tests/gpu" "$here/tests/tools" "$here/tests/environment.sh" "$here/tests/lsan.supp" "$stage/tests/"
    sed -i 's|/usr/bin/python3|/usr/bin/env python3|' "$stage"/tests/tools/* "$stage"/tests/gpu/* # whichever has h5py there
    [ -z "$data" ] || cp "$data"/*.h5 "$stage/data/"
    tar -C "$stage" -cf - . | xz -T0 -3 >"$out/paceline-gpu.tar.xz"
    ls -l "$out/paceline-gpu.tar.xz"
}

# ---- there -------------------------------------------------------------------------------------

part_doctor() { nvidia-smi || true; "$PACELINE" doctor; }
part_ops() { "$here/bin/gpu_ops"; }
part_train() {
    mkdir -p "$PL_TMPDIR"
    PL_SOURCE_DIR=$here PL_MPIEXEC=none bash "$here/tests/gpu/test_train.sh"
}
part_sanitizer() {
    local tool sanitizer
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
    [ -n "$sanitizer" ] || { echo "no compute-sanitizer here"; return 0; }
    local bad=0
    for tool in memcheck racecheck; do
        echo "== $tool"
        PL_TEST_ROUNDS=8 timeout 200 "$sanitizer" --tool $tool --target-processes all --error-exitcode 9 "$here/bin/gpu_ops" || bad=1
    done
    return $bad
}
part_accuracy() { # the networks' own jobs, where their sets were packed
    local job bad=0
    for job in lenet/mnist cifar10/quick; do
        local set=${job#*/}
        [ "$set" = quick ] && set=cifar10
        [ -f "$here/data/$set-train.h5" ] || { echo "$job: no data/$set-train.h5"; continue; }
        "$PACELINE" train "$here/models/$job.yaml" device.kind=cuda data.train.file="$here/data/$set-train.h5" \
            data.test.file="$here/data/$set-test.h5" checkpoint.dir=none report.dir="$OUT/$set" || bad=1
    done
    return $bad
}
part_step() {
    local model batch
    while read -r model batch; do
        for precision in fp32 tf32 bf16; do
            "$PACELINE" bench step "$here/models/$model.yaml" device.kind=cuda train.batch="$batch" train.precision=$precision || true
        done
    done <<'L'
imagenet/alexnet 128
imagenet/overfeat 128
imagenet/vgg_a 64
imagenet/googlenet 128
imagenet/resnet50 64
imagenet/inception_v3 64
lenet/mnist 64
mlp/mnist 64
mlp/higgs 64
mlp/molecular 64
text/shakespeare 32
text/shakespeare-gpt 32
L
}
part_torch() {
    local precision model bad=0
    mkdir -p "$here/json"
    for precision in ${PRECISIONS:-tf32 bf16 fp32}; do
        for model in ${MODELS:-lenet mlp-mnist mlp-higgs mlp-molecular char-lstm char-gpt alexnet overfeat vgg-a googlenet resnet50 inception-v3}; do
            timeout 240 python3 "$here/bench/vs_pytorch.py" --device cuda --precision "$precision" --models "$model" --rounds 3 --seconds 1 \
                --build "$here/bin" --json "$here/json/$precision-$model.json" --venv none || bad=1
            tar -C "$here/json" -cf "$OUT/vs_pytorch.tar" .
        done
    done
    return $bad
}
part_profile() {
    local model
    for model in imagenet/resnet50 imagenet/alexnet lenet/mnist; do
        "$PACELINE" bench layers "$here/models/$model.yaml" device.kind=cuda train.batch=64 || true
    done
}

run() {
    local part failed=0 nvidia
    export PACELINE=$here/bin/paceline OUT=${OUT:-$here/out} PL_TMPDIR=$here/tmp PACELINE_MODULE_PATH=$here/bin
    nvidia=$(python3 -c 'import nvidia, os; print(*[os.path.join(d, "lib") for p in nvidia.__path__ for d, s, f in os.walk(p) if "lib" in s], sep=":")' 2>/dev/null || true)
    export PACELINE_LIBRARIES=$here/lib:${LD_LIBRARY_PATH:-}:/usr/local/cuda/lib64:$nvidia
    export OPAL_PREFIX=$here OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_mca_base_component_path=$here/plugins/openmpi3:$here/plugins/openmpi
    mkdir -p "$OUT"
    for part in "${@:-doctor}"; do
        echo "==== $part"
        ( "part_$part" ) 2>&1 | tee "$OUT/$part.log" || failed=1
    done
    return $failed
}

case ${1:-} in
pack) [ $# -ge 2 ] || die "usage: bench/gpu_session.sh pack OUT [DATA]"; pack "${@:2}" ;;
run) shift; set -o pipefail; [ $# -gt 0 ] || set -- doctor ops train sanitizer accuracy step torch profile; run "$@" ;;
*) sed -n '2,11s/^# //p' "$0"; exit 2 ;;
esac
