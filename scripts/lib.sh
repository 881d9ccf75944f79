# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
# Sourced by the scripts beside it: where things are, what they say, and installing what is missing.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# nbdkit embeds Debian's Python and looks for its modules by the python3 that is first on PATH.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH

# What a bridge needs; what the demonstration shows it with; what the tests need besides.
RUN_PACKAGES=(
    kmod nbdkit nbdkit-plugin-python python3 python3-construct python3-libnbd python3-numpy python3-prometheus-client
    python3-pyroute2 python3-rich nbd-client
)
DEMO_PACKAGES=(e2fsprogs file fio iproute2 libnbd-bin openssl procps)
TEST_PACKAGES=(
    python3-hypothesis python3-pip python3-pytest python3-pytest-timeout python3-pytest-xdist python3-setuptools python3-venv python3-wheel
    aoetools ethtool gcc libc6-dev qemu-utils strace tcpdump udev vblade
)
COMPILE_PACKAGES=(gcc libc6-dev python3-dev python3-numpy python3-pip python3-setuptools python3-venv)
BENCH_PACKAGES=(linux-perf python3-matplotlib qemu-block-extra tgt)
# What the VM lab is built and run with; what is in every machine of it; what is in one that can do all, besides.
VM_PACKAGES=(
    busybox-static cpio e2fsprogs iproute2 kmod mmdebstrap qemu-system-x86 vblade
    bison flex gcc libc6-dev make xz-utils
)
PLAIN_PACKAGES=(dbus e2fsprogs fdisk fio iproute2 kmod procps python3 systemd-sysv udev)
GUEST_PACKAGES=(
    aoetools libnbd-bin lvm2 mdadm nbd-client python3-libnbd strace vblade
    bridge-utils socat xen-utils-4.17 xen-utils-common xenstore-utils
)
# The checkers' versions are fixed, so that a new release of one of them never fails an unchanged tree.
LINTERS=(mypy==2.4.1 ruff==0.17.6)

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "needs root, for raw sockets and network namespaces: run it as \`sudo $0${*:+ $*}\`"
}

# Install those of the named packages that are missing; says nothing and takes no time when none is.
install_packages() {
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
        die "installs its tools with apt-get, which this system does not have: use Debian 12 or later"
    local name missing=()
    for name in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    need_root
    echo "Installing ${missing[*]}"
    local log
    log=$(mktemp)
    _apt "${missing[@]}" >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get could not install ${missing[*]}: its last words are above"
    }
    rm -f "$log"
}

# apt-get, asking nothing and starting no service: vblade and nbd-client would start their daemons at once.
_apt() (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f $policy' EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt() { apt-get -y -o DPkg::Lock::Timeout=600 "$@" </dev/null; }
    # The lists may be absent (a fresh machine) or older than the archive, so that a file has gone: update, then again.
    apt install --no-install-recommends "$@" || { apt update && apt install --no-install-recommends "$@"; }
)

# ruff and mypy, in a virtual environment of the system's Python that sees the system's modules too.
install_linters() {
    local venv=$ROOT/.venv
    if ! "$venv/bin/python" -c '' 2>/dev/null || [ "$(cat "$venv/linters" 2>/dev/null)" != "${LINTERS[*]}" ]; then
        echo "Installing ${LINTERS[*]} into .venv"
        /usr/bin/python3 -m venv --clear --system-site-packages "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${LINTERS[@]}"
        echo "${LINTERS[*]}" >"$venv/linters"
    fi
}
