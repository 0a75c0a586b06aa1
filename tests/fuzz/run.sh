#!/usr/bin/env bash
# tests/fuzz/run.sh [seconds]: feeds what reads bytes from the network with made-up ones, under AddressSanitizer,
# for so many seconds in total (20). Needs clang with libFuzzer; without it the run is skipped (77).
# What makes a harness fail is kept and named.
set -u
seconds=${1:-20}
cd "$(dirname "$0")/../.." || exit 1
. jobs/packages.sh
PL_PACKAGES="clang libclang-rt-14-dev libssl-dev zlib1g-dev"
dir=${PL_BUILD_DIR:-build}/fuzz
mkdir -p "$dir"
works() { echo 'int LLVMFuzzerTestOneInput(const void *p, long n); int LLVMFuzzerTestOneInput(const void *p, long n) { return p && n < 0; }' >"$dir/empty.c" &&
    clang -fsanitize=fuzzer,address "$dir/empty.c" -o "$dir/empty" 2>"$dir/empty.log"; }
works || { install_packages >"$dir/install.log" 2>&1 && works; } ||
    { echo "skipped: clang makes no fuzzers here (Debian: clang, libclang-rt-14-dev)"; exit 77; }

base=$(printf 'src/base/%s.c ' hash fault log memory clock status text)
build() { # build NAME SOURCE...
    local name=$1; shift
    # shellcheck disable=SC2086
    clang -std=c17 -g -O1 -D_GNU_SOURCE -Isrc -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
        "tests/fuzz/$name.c" "$@" $base -lcrypto -lz -lpthread -o "$dir/$name" || { echo "tests/fuzz/$name.c does not build"; exit 1; }
}
build reader src/transport/tcp/frame.c
build handshake src/transport/tcp/handshake.c src/transport/secret.c

# Seeds: a stream of two right frames in small pieces, on a data and on a control connection, a damaged one, garbage;
# a stranger, and hand-shakes that nobody disturbs.
rm -rf "$dir/seeds"; mkdir -p "$dir/seeds/reader" "$dir/seeds/handshake"
printf '\0\0\1\0\5\1\0\3\1\2\3abc\1\0\4\1\2\4defg' >"$dir/seeds/reader/two"
printf '\1\0\1\0\377\1\0\3\1\3abc\1\0\0\1\4' >"$dir/seeds/reader/control"
printf '\0\0\1\0\7\1\0\3\1\2\3abc\3\0\3\1\2\4def' >"$dir/seeds/reader/damaged"
printf '\0\0\1\377\377\2\0\3\1\2\3\0\20\0\0abc\0\0\4none' >"$dir/seeds/reader/long"
printf '\1PLtcp\0\0\1and so on' >"$dir/seeds/handshake/stranger"
printf '\0' >"$dir/seeds/handshake/true"
printf '\0%0200d' 0 | tr 0 '\0' >"$dir/seeds/handshake/changed"

bad=0
for name in reader handshake; do
    mkdir -p "$dir/found-$name"
    UBSAN_OPTIONS=print_stacktrace=1 "$dir/$name" -max_total_time=$(((seconds + 1) / 2)) -max_len=60000 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        -artifact_prefix="$dir/$name-" "$dir/found-$name" "$dir/seeds/$name" >"$dir/$name.log" 2>&1
    code=$?
    grep -E 'number_of_executed_units|SUMMARY|cov:' "$dir/$name.log" | tail -n 2 | sed "s/^/$name: /"
    [ $code -eq 0 ] || { echo "$name: failed; $(grep -o 'Test unit written to .*' "$dir/$name.log"); log $dir/$name.log"; bad=1; }
done
exit $bad
