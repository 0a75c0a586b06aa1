#!/usr/bin/env bash
# What a slow link costs and what compression buys: step times of LeNet and the 14.3 M MLP on two hosts, a rank each,
# over tcp, with the link shaped to 100 Mbit/s, 1 Gbit/s and not at all. The hosts are network namespaces on this
# machine (root, iproute2). bench/links.sh [key=value ...]
# Takes three minutes and more.
set -u
for k in "$@"; do
    case $k in
        --help|-h) sed -n '2,5p' "$0" | cut -c3-; exit 0 ;;
        *=*) ;;
        *) echo "bench/links.sh: $k is no key=value; see --help" >&2; exit 2 ;;
    esac
done
cd "$(dirname "$0")/.."
paceline=$PWD/${PACELINE:-build/release/paceline}
[ -x "$paceline" ] || { echo "bench/links.sh: $paceline is not built; run jobs/quickstart.sh or set PACELINE" >&2; exit 2; }
. tests/network/hosts.sh
why=$(hosts_possible) || { echo "bench/links.sh: $why" >&2; exit 2; }
PL_TMPDIR=$(mktemp -d)
export PL_TMPDIR OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
run=
# What runs has a process group of its own. mpirun needs the network to end what it started, so that is waited for.
end() {
    local i
    [ -z "$run" ] || kill -TERM -- "-$run" 2>/dev/null
    for ((i = 0; i < 100; i++)); do [ -n "$run" ] && kill -0 -- "-$run" 2>/dev/null && sleep 0.1; done
    [ -z "$run" ] || kill -KILL -- "-$run" 2>/dev/null
    hosts_down
    rm -rf "$PL_TMPDIR"
}
trap end EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
set -m
printf '%-10s %-14s %-10s %10s %12s %12s %10s\n' link model compress step_ms exchange_ms samples/s sent_MB
for rate in 100mbit 1gbit none; do
    hosts_up 2 "${rate/none/}"
    for job in lenet/mnist mlp/molecular; do
        for compress in none bf16 one_bit top_k; do
            mpirun_on 2 1 "$paceline" bench step "models/$job.yaml" --rounds 3 --steps 3 train.threads=1 exchange.transport=tcp exchange.compress=$compress "$@" \
                </dev/null >"$PL_TMPDIR/line" 2>"$PL_TMPDIR/log" &
            run=$!
            wait $run || { tail -n 5 "$PL_TMPDIR/log" >&2; exit 1; }
            run=
            printf '%-10s %-14s %-10s %10.1f %12.1f %12.1f %10.3f\n' $rate $job $compress $(sed -E 's/.*"step_ms": ([0-9.]+).*"samples_per_s": ([0-9.]+).*"exchange_ms": ([0-9.]+).*"sent_mb": ([0-9.]+).*/\1 \3 \2 \4/' "$PL_TMPDIR/line")
        done
    done
    hosts_down
done
