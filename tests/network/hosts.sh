# Sourced by the tests of what crosses a network: several hosts on one machine, as network namespaces joined by veth
# pairs and a bridge. hosts_up N [RATE]: hosts 10.9.0.1 .. 10.9.0.N, each link shaped to RATE ("1gbit"); hosts_down.
# mpirun_on N PER_HOST COMMAND...: ranks on the first N of them, started by $PL_LAUNCH if it is set. link I up|down. Needs root and iproute2.
HOSTS=0
HOSTS_NAME=pl$$ # of this test's own

hosts_possible() { # or says why not
    [ "$(id -u)" -eq 0 ] || { echo "network namespaces need root"; return 1; }
    command -v ip >/dev/null && command -v tc >/dev/null || { echo "iproute2 is missing"; return 1; }
    ip netns add $HOSTS_NAME-try 2>/dev/null || { echo "no network namespaces here"; return 1; }
    ip netns del $HOSTS_NAME-try
}

hosts_up() {
    HOSTS=$1
    local rate=${2:-} i
    ip netns add $HOSTS_NAME-switch
    ip -n $HOSTS_NAME-switch link add name switch0 type bridge
    ip -n $HOSTS_NAME-switch link set dev switch0 up
    for ((i = 1; i <= HOSTS; i++)); do
        ip netns add $HOSTS_NAME-$i
        ip link add name eth0 netns $HOSTS_NAME-$i type veth peer name port$i netns $HOSTS_NAME-switch
        ip -n $HOSTS_NAME-switch link set dev port$i master switch0 up
        ip -n $HOSTS_NAME-$i addr add 10.9.0.$i/24 dev eth0
        ip -n $HOSTS_NAME-$i link set lo up
        ip -n $HOSTS_NAME-$i link set eth0 up
        [ -z "$rate" ] || shape $i "$rate"
    done
    cat >"$PL_TMPDIR/agent.sh" <<AGENT
#!/bin/sh
# plm_rsh_agent: HOST COMMAND... runs in the namespace of HOST
host=\$1; shift
exec ip netns exec $HOSTS_NAME-\${host##*.} unshare --uts sh -c "hostname host\${host##*.}; \$*"
AGENT
    chmod +x "$PL_TMPDIR/agent.sh"
}

shape() { # shape I RATE: what leaves host I, and what comes to it
    local burst=256k
    tc -n $HOSTS_NAME-$1 qdisc replace dev eth0 root tbf rate $2 burst $burst latency 50ms
    tc -n $HOSTS_NAME-switch qdisc replace dev port$1 root tbf rate $2 burst $burst latency 50ms
}

link() { ip -n $HOSTS_NAME-$1 link set eth0 $2; }

mpirun_on() { # mpirun_on N PER_HOST COMMAND...
    local hosts='' i n=$1 per=$2
    shift 2
    for ((i = 1; i <= n; i++)); do hosts+=${hosts:+,}10.9.0.$i:$per; done
    # The hosts share /dev/shm and a name: without the choice of btl MPI would take its shared memory between them.
    ip netns exec $HOSTS_NAME-1 unshare --uts sh -c 'hostname host1; exec "$@"' sh "${PL_LAUNCH:-mpirun}" --mca plm_rsh_agent "$PL_TMPDIR/agent.sh" --mca oob_tcp_if_include 10.9.0.0/24 \
        --mca btl_tcp_if_include 10.9.0.0/24 --mca btl tcp,self --oversubscribe --bind-to none -H "$hosts" -n $((n * per)) "$@"
}

hosts_pids() { # of what runs on them
    local i
    for ((i = 1; i <= HOSTS; i++)); do ip netns pids $HOSTS_NAME-$i 2>/dev/null; done
}

hosts_down() { # mpirun needs the network to end: a namespace that is deleted leaves it running for ever
    local i
    for ((i = 0; i < 100; i++)); do [ -n "$(hosts_pids)" ] || break; sleep 0.1; done
    [ -z "$(hosts_pids)" ] || kill -KILL $(hosts_pids) 2>/dev/null
    for ((i = 1; i <= HOSTS; i++)); do ip netns del $HOSTS_NAME-$i 2>/dev/null; done
    ip netns del $HOSTS_NAME-switch 2>/dev/null
    HOSTS=0
}
