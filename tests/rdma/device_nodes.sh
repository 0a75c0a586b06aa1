#!/usr/bin/env bash
# In the guest, where nothing else does it: the device nodes of RDMA devices that have none yet.
mkdir -p /dev/infiniband
for c in /sys/class/infiniband_verbs/uverbs*; do
    [ -e "/dev/infiniband/${c##*/}" ] || mknod "/dev/infiniband/${c##*/}" c $(tr : ' ' <"$c/dev")
done
