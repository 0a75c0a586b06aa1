#!/usr/bin/env bash
# The verbs transport for real, in one guest with soft-RoCE: first its unit test with a device, then what a device that is
# missing, down, or without its library is called.
set -u
if [ "${1:-}" != inside ]; then
    exec env LIMIT=840 "$PL_SOURCE_DIR/tests/rdma/run_in_guest.sh" "$0" inside
fi

failed=0
test_verbs=$PL_BUILD_DIR/tests/unit_verbs
export PL_MPIEXEC OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
check() { # check WHAT COMMAND...
    local what=$1; shift
    if "$@"; then echo "ok: $what"; else echo "FAILED: $what"; failed=1; fi
}
probe_says() { PL_TEST_ONLY=test_probe "$test_verbs" 2>&1 | tee /tmp/probe | grep -qF "$1" || { cat /tmp/probe; return 1; }; }
unit() { "$test_verbs" >/tmp/unit 2>&1; local code=$?; grep -vE '^\[ RUN|debug.fault is on' /tmp/unit; [ $code -eq 0 ] && ! grep -q SKIPPED /tmp/unit; }

check "unit test with a device" unit

# Ranks that meet over MPI, whose own use of the device must not be in the way.
network() { # network EXPECTED
    "$PL_MPIEXEC" --oversubscribe -n 3 "$PL_BUILD_DIR/tests/rdma_network" verbs >/tmp/network 2>&1
    local code=$?
    cat /tmp/network
    [ $code -eq 0 ] && grep -q "$1" /tmp/network
}
check "three ranks of mpirun" network '^transport verbs (rxe0 port 1, RoCE v2, 4096 B MTU): .*, 2 channels; 3 ranks'

# A run of training by mpirun with exchange.transport=verbs belongs here, once a job file may ask for it.

# Two more devices, each of which reaches itself alone: rail by rail, and the loopback is no longer wanted.
two_devices() {
    for i in 1 2; do
        ip link add pl$i type dummy && ip addr add 10.$i.0.1/24 dev pl$i && ip link set pl$i up && rdma link add rxe$i type rxe netdev pl$i || return 1
    done
    "$PL_SOURCE_DIR/tests/rdma/device_nodes.sh"
    network '^transport verbs (rxe1 port 1, RoCE v2, 1024 B MTU): .* and 1 more, 2 channels; 3 ranks' &&
        PL_TEST_ONLY=test_t* "$test_verbs" 2>&1 | grep -F 'PASSED  ] 2 test(s)' && PL_TEST_ONLY=test_close "$test_verbs" 2>&1 | grep -F 'PASSED  ] 1 test(s)'
}
check "two devices" two_devices
rdma link delete rxe1; rdma link delete rxe2

ip link set lo down
check "the port is down" probe_says "probe: no, rxe0: port 1 is down"
ip link set lo up
rdma link delete rxe0
check "no device" probe_says "probe: no, no RDMA device"
mv "$(ldconfig -p | sed -n 's/.*libibverbs\.so\.1 .*=> //p' | head -n 1)" /tmp/
check "no library, and the program starts" probe_says "probe: no, no RDMA library"
check "paceline itself starts without the library" "$PACELINE" --version
exit $failed
