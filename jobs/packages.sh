# Sourced by jobs/quickstart.sh and tests/run.sh: installs what is missing from Debian, if anything
# is. install_packages [PACKAGE ...]: the packages needed to build, and those named.
PL_PACKAGES="gcc cmake ninja-build make pkg-config openmpi-bin libopenmpi-dev libopenblas-openmp-dev libdnnl-dev libhdf5-dev
    zlib1g-dev libdeflate-dev libturbojpeg0-dev libyaml-dev libssl-dev libibverbs-dev libcmocka-dev python3 python3-h5py python3-numpy python3-matplotlib"

install_packages() {
    local missing=() p
    for p in $PL_PACKAGES "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "These packages are missing; as root:  apt-get install ${missing[*]}" >&2
        return 2
    fi
    echo "Installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >/tmp/paceline-apt.log 2>&1 ||
        { apt-get update -qq && apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}"; } >/tmp/paceline-apt.log 2>&1 ||
        { tail -n 20 /tmp/paceline-apt.log >&2; return 2; }
}

# configure_and_build PRESET [TARGET ...]
configure_and_build() {
    local preset=$1; shift
    command -v ninja >/dev/null && export CMAKE_GENERATOR=Ninja
    mkdir -p build
    if ! { cmake --preset "$preset" && cmake --build --preset "$preset" ${1:+--target "$@"} -- -j "$(nproc)"; } >"build/$preset.log" 2>&1; then
        grep -nE 'error|warning|Error' "build/$preset.log" | head -n 30 >&2
        tail -n 5 "build/$preset.log" >&2
        echo "The build failed; the whole log is build/$preset.log" >&2
        return 1
    fi
}
