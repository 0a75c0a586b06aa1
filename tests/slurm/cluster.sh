# Sourced by the Slurm test: a real Slurm on one machine, each node a slurmd in namespaces of its own (host name, processes,
# /dev/shm). cluster_possible: or says why not. cluster_up N: nodes n1 .. nN. crash K: all of node K is gone at once. boot K.
# cluster_down. Everything is under $CLUSTER; only what it started there is ended.
CLUSTER=$(mktemp -d /tmp/pl-slurm-XXXXXX) # short: there are sockets in it
CLUSTER_PORT=$((20000 + $$ % 20000))
PATH=$PATH:/usr/sbin:/sbin
export SLURM_CONF=$CLUSTER/slurm.conf

cluster_possible() {
    local c
    [ "$(id -u)" -eq 0 ] || { echo "nodes in namespaces need root"; return 1; }
    (. "$PL_SOURCE_DIR/jobs/packages.sh"; PL_PACKAGES="slurmctld slurmd slurm-client munge" && install_packages >/dev/null 2>&1) || { echo "Slurm is not installed"; return 1; }
    for c in munged slurmctld slurmd sbatch mpirun unshare; do
        command -v $c >/dev/null || { echo "$c is not installed"; return 1; }
    done
    mpirun --version 2>&1 | grep -q 'Open MPI' || { echo "mpirun is not Open MPI's"; return 1; }
    unshare --uts --pid --fork --mount --mount-proc mount -t tmpfs tmpfs /dev/shm 2>/dev/null || { echo "no namespaces here"; return 1; }
}

daemon() { # daemon NAME COMMAND...
    local name=$1; shift
    setsid "$@" </dev/null >>"$CLUSTER/log/daemons" 2>&1 &
    echo $! >"$CLUSTER/run/$name.pid"
    disown
}

boot() {
    mkdir -p "$CLUSTER/spool/n$1" "$CLUSTER/tmp/n$1"
    # The node's first process reaps, so that slurmd is not it.
    daemon "n$1" unshare --uts --pid --fork --kill-child --mount --mount-proc bash -c '
        hostname "$1"; mount -t tmpfs tmpfs /dev/shm
        slurmd -D -N "$1" & sleep infinity & while :; do wait; done' node "n$1"
}

crash() { kill -KILL "$(cat "$CLUSTER/run/n$1.pid")"; }
idle() { [ "$(sinfo -hN -o %T 2>/dev/null | grep -cx idle)" -eq "$1" ]; }
answers() { scontrol ping 2>/dev/null | grep -q UP; }

cluster_up() {
    local n=$1 host i
    host=$(hostname -s)
    mkdir -p "$CLUSTER"/{run,log,state,spool,tmp} && mkdir -m 700 "$CLUSTER/munge" && chmod 755 "$CLUSTER" || return 1
    (umask 077; head -c 128 /dev/urandom >"$CLUSTER/munge/key")
    # cred_expire: a job that is queued again starts after it, by default in two minutes.
    cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$CLUSTER_PORT
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$CLUSTER/run/munge.sock,cred_expire=5
MpiDefault=pmix
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobRequeue=1
ReturnToService=2
StateSaveLocation=$CLUSTER/state
SlurmdSpoolDir=$CLUSTER/spool/%n
TmpFS=$CLUSTER/tmp/%n
SlurmctldPidFile=$CLUSTER/state/slurmctld.pid
SlurmdPidFile=$CLUSTER/spool/%n/slurmd.pid
SlurmctldLogFile=$CLUSTER/log/slurmctld
SlurmdLogFile=$CLUSTER/log/%n
SlurmdParameters=config_overrides
KillWait=5
SlurmdTimeout=30
MessageTimeout=10
MinJobAge=600
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
NodeName=n[1-$n] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$((CLUSTER_PORT + 1))-$((CLUSTER_PORT + n))] CPUs=2 RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    daemon munged munged -F --force --key-file="$CLUSTER/munge/key" --socket="$CLUSTER/run/munge.sock" --num-threads=2 \
        --pid-file="$CLUSTER/munge/pid" --log-file="$CLUSTER/munge/log" --seed-file="$CLUSTER/munge/seed"
    wait_for 10 test -S "$CLUSTER/run/munge.sock" || return 1
    daemon slurmctld slurmctld -D
    wait_for 20 answers || return 1
    for ((i = 1; i <= n; i++)); do boot $i; done
    wait_for 30 idle "$n" || { tail -n 5 "$CLUSTER"/log/*; return 1; }
}

ours() { tr '\0' '\n' <"/proc/$1/environ" 2>/dev/null | grep -qx "SLURM_CONF=$SLURM_CONF"; } # whether a process is of this cluster

cluster_down() {
    local f p
    timeout 5 scancel --full --signal=KILL --user="$(id -un)" 2>/dev/null
    for f in "$CLUSTER"/run/n*.pid "$CLUSTER"/run/slurmctld.pid "$CLUSTER"/run/munged.pid; do
        [ -e "$f" ] && p=$(cat "$f") && ours "$p" && kill -KILL "$p" 2>/dev/null
    done
    wait_for 5 eval '! pgrep -f "slurmd -D -N n[0-9]+$" >/dev/null'
    rm -rf "$CLUSTER"
}
