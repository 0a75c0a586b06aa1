#!/usr/bin/env bash
# tests/run.sh [release|asan|tsan|debug] [ctest options]: installs what is missing, builds, runs every
# test of that build. tsan runs what is made for it: the loader, queues, pool, the exchange in shared memory, tcp
# (MPI and OpenMP are not instrumented).
set -eu
cd "$(dirname "$0")/.."
. jobs/packages.sh
preset=${1:-release}
[ $# -gt 0 ] && shift
case $preset in release|asan|tsan|debug) ;; *) echo "usage: tests/run.sh [release|asan|tsan|debug] [ctest options]" >&2; exit 2 ;; esac
install_packages util-linux procps python3-pil
echo "Building $preset (log: build/$preset.log)"
configure_and_build "$preset"
[ "$preset" = tsan ] && set -- -R 'unit_(base|data|exchange|exchange_network|collective|mesh|quorum_run|tcp|tcp_forget)$' "$@"
# Two jobs more than cores: most tests wait as much as they compute.
exec ctest --test-dir "build/$preset" --output-on-failure -j $(($(nproc) + 2)) --no-tests=error "$@"
