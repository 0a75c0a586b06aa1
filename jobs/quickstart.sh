#!/usr/bin/env bash
# From a fresh checkout to a trained network: installs what is missing, builds, makes a small data
# set, trains LeNet on 2 ranks, shows its accuracy and where everything is. Run again, it continues.
set -eu
cd "$(dirname "$0")/.."
. jobs/packages.sh
install_packages
echo "Building (log: build/release.log)"
configure_and_build release paceline
if [ ! -f data/digits-train.h5 ] || [ ! -f data/digits-test.h5 ]; then
    echo "Making data/digits-train.h5 and data/digits-test.h5"
    /usr/bin/python3 data/scripts/make_digits.py --out-dir data
fi
if [ "$(id -u)" -eq 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
echo "Training on 2 ranks: mpirun -n 2 build/release/paceline train models/lenet/digits.yaml"
mpirun --oversubscribe -n 2 build/release/paceline train models/lenet/digits.yaml "$@"
/usr/bin/python3 bench/plot_metrics.py runs/digits/metrics.jsonl --out runs/digits/metrics.png
accuracy=$(grep '"event": *"eval"' runs/digits/metrics.jsonl | tail -n 1 | sed -E 's/.*"accuracy": *([0-9.]+).*/\1/')
echo "Test accuracy  $accuracy"
echo "Checkpoint     runs/digits/$(cat runs/digits/latest)"
echo "Picture        runs/digits/metrics.png"
