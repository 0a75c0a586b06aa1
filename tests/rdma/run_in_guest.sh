#!/usr/bin/env bash
# run_in_guest.sh COMMAND...: boots Debian's kernel in QEMU, by emulation, brings up soft-RoCE (rxe0) on the loopback
# and runs COMMAND as root. The guest sees this machine's files below an overlay in its memory: it runs what is built and
# installed here, and what it writes is gone afterwards. Prints the command's output and returns its status; 77 with a
# reason where QEMU or the kernel cannot be had, 125 where the guest fails.
# MEM, CPUS, LIMIT (seconds): of the guest. RXE: the interface under rxe0. GUEST_CONSOLE=1 shows the kernel's console.
set -u
[ $# -gt 0 ] || { echo "usage: $0 COMMAND..." >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../jobs/packages.sh"
work=
mem=${MEM:-1500M} cpus=${CPUS:-2} limit=${LIMIT:-600} rxe=${RXE:-lo}
modules="virtio_pci 9pnet_virtio 9p overlay virtio_net virtio_console crc32_generic crc32c_generic rdma_rxe rdma_ucm dummy"
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/paceline/guest-$(cksum <<<"$modules" | cut -d ' ' -f 1)
cannot() { echo "skipped: $*" >&2; exit 77; }
trap 'rm -rf "$work"' EXIT

# Only what QEMU needs: the packages to build are somebody else's concern.
PL_PACKAGES="qemu-system-x86 busybox-static kmod cpio xz-utils iproute2 ibverbs-providers"
[ "$(uname -m)" = x86_64 ] || cannot "the guest is for x86_64"
command -v apt-get >/dev/null || cannot "no apt-get to fetch the kernel with"
install_packages >&2 || cannot "QEMU is not installed"

# The kernel, and its modules in the order in which they are loaded; kept for the next time.
fetch_kernel() {
    local package version k=$work/kernel offset n=100
    package=$(apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9.]*-.*-amd64\|linux-image-[0-9].*\)/\1/p' | head -n 1)
    [ -n "$package" ] || { echo "apt-get knows no linux-image-amd64"; return 1; }
    mkdir -p "$k" "$work/cache/modules"
    chmod 755 "$work"
    (cd "$k" && apt-get download -qq "$package" 2>/dev/null && dpkg -x ./*.deb . && rm ./*.deb) || { echo "$package cannot be fetched"; return 1; }
    version=$(basename "$k"/lib/modules/*)
    /sbin/depmod -b "$k" "$version" || { echo "depmod fails"; return 1; }
    for m in $modules; do
        /sbin/modprobe -d "$k" -S "$version" --show-depends "$m" | awk '$1 == "insmod" {print $2}'
    done | awk '!seen[$0]++' | while read -r file; do
        n=$((n + 1))
        cp "$file" "$work/cache/modules/$n-$(basename "$file")"
    done
    # The bare kernel, out of the compressed one: it starts seconds sooner, as nothing is unpacked by emulation.
    offset=$(LC_ALL=C grep -aboP '\xFD7zXZ\x00' "$k/boot/vmlinuz-$version" | head -n 1 | cut -d: -f1)
    tail -c "+$((offset + 1))" "$k/boot/vmlinuz-$version" | xz -dc >"$work/cache/kernel" 2>/dev/null # what follows the stream is no xz
    [ -s "$work/cache/kernel" ] || cp "$k/boot/vmlinuz-$version" "$work/cache/kernel"
    rm -rf "$k"
    mkdir -p "$(dirname "$cache")"
    rm -rf "$cache"
    mv -T "$work/cache" "$cache" 2>/dev/null || [ -s "$cache/kernel" ] # another may have been faster
}

work=$(mktemp -d "${TMPDIR:-/tmp}/paceline-guest.XXXXXX") || exit 125
if ! [ -s "$cache/kernel" ]; then
    reason=$(fetch_kernel) || { [ "$(id -u)" -eq 0 ] && apt-get update -qq && reason=$(fetch_kernel); } || cannot "$reason"
fi

# The first process: loads modules, mounts this machine's files, hands over to the script below.
mkdir -p "$work/first/bin" "$work/first/modules" "$work/control"
cp /bin/busybox "$work/first/bin/" && cp "$cache"/modules/* "$work/first/modules/" || exit 125
cat >"$work/first/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /below /above /root
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for m in /modules/*.ko; do insmod "$m" || echo "insmod $m fails"; done
p9=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "ro,cache=loose,$p9" files /below && mount -t tmpfs -o size=60% none /above && mkdir /above/upper /above/work &&
    mount -t overlay -o lowerdir=/below,upperdir=/above/upper,workdir=/above/work none /root || poweroff -f
cd /root && mkdir -p proc sys dev run control
for d in proc sys dev; do mount --move "/$d" "$d"; done
ln -s root/proc /proc
ln -s /proc/self/fd dev/fd; ln -s /proc/self/fd/0 dev/stdin; ln -s /proc/self/fd/1 dev/stdout; ln -s /proc/self/fd/2 dev/stderr
mkdir -p dev/pts dev/shm
mount -t devpts none dev/pts; mount -t tmpfs none dev/shm; mount -t tmpfs none run
mount -t 9p -o "cache=none,$p9" control control
chroot /root /bin/bash /control/main <dev/null
sync
echo o >proc/sysrq-trigger
sleep 9
INIT
chmod +x "$work/first/init"
(cd "$work/first" && find . | cpio -o -H newc --quiet) >"$work/initrd"

# Its second half, among this machine's files. Nothing makes device nodes there, so it does.
cat >"$work/control/main" <<MAIN
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C
ulimit -l unlimited
ip link set lo up; ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
hostname guest; echo 127.0.0.1 localhost guest >/etc/hosts
rdma link add rxe0 type rxe netdev $rxe || echo "no soft-RoCE on $rxe"
$(printf %q "$here")/device_nodes.sh
cd $(printf %q "$PWD")
stty -F /dev/hvc0 raw -echo
($(for name in PACELINE PL_SOURCE_DIR PL_BUILD_DIR PL_MPIEXEC PL_TMPDIR; do [ -n "${!name:-}" ] && printf 'export %s=%q; ' "$name" "${!name}"; done)
$(printf '%q ' "$@")) >/dev/hvc0 2>&1
echo \$? >/control/status
MAIN

guest=(-accel tcg,thread=multi -cpu max -smp "$cpus" -m "$mem" -nodefaults -display none -no-reboot
    -kernel "$cache/kernel" -initrd "$work/initrd"
    -append "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable net.ifnames=0"
    -virtfs local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap
    -virtfs "local,path=$work/control,mount_tag=control,security_model=none"
    -netdev user,id=net,restrict=on,ipv6=off -device virtio-net-pci,netdev=net,romfile=
    -device virtio-serial-pci -chardev stdio,id=out,signal=off -device virtconsole,chardev=out
    -serial "file:$work/console")
timeout -k 5 "$limit" qemu-system-x86_64 "${guest[@]}" </dev/null
code=$?
[ -n "${GUEST_CONSOLE:-}" ] && cat "$work/console" >&2
[ -s "$work/control/status" ] && exit "$(cat "$work/control/status")"
echo "no status from the guest (qemu: $code); the end of its console:" >&2
tail -n 30 "$work/console" >&2
exit 125
