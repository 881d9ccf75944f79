# SPDX-License-Identifier: BSD-3-Clause
"""udev's rule, applied by udev itself to devices of a /sys that is made up, in a mount namespace of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("udevadm") or not shutil.which("unshare"), reason="needs root and udev"
)

# $1 the rule, $2 disk or partition, then name=text: attributes of the disk
SCRIPT = r"""
set -e
mount --make-rprivate /
mkdir -p /run/udev
mount -t tmpfs tmpfs /run/udev
mount -t tmpfs tmpfs /sys
mount -t tmpfs tmpfs /dev
mknod -m 666 /dev/null c 1 3
mkdir /run/udev/rules.d
cp "$1" /run/udev/rules.d
disk=/sys/devices/virtual/block/nbd7 part=/sys/devices/virtual/block/nbd7/nbd7p12
mkdir -p $part /sys/class/block /sys/bus
for device in $disk $part; do
    ln -s /sys/class/block $device/subsystem
    ln -s $device /sys/class/block
    echo 2048 >$device/size
done
printf 'MAJOR=43\nMINOR=224\nDEVNAME=nbd7\nDEVTYPE=disk\n' >$disk/uevent
printf 'MAJOR=43\nMINOR=236\nDEVNAME=nbd7p12\nDEVTYPE=partition\nPARTN=12\n' >$part/uevent
echo 12 >$part/partition
which=${!2} action=$3
shift 3
for attribute; do echo "${attribute#*=}" >"$disk/${attribute%%=*}"; done
SYSTEMD_DEVICE_VERIFY_SYSFS=0 exec udevadm test --action="$action" "$which" 2>&1
"""


def links(which: str, *attributes: str, action: str = "change") -> tuple[list[str], bool]:
    """The names in /dev/etherd that udev gives the device, and whether systemd is to know it."""
    rule = ROOT / "plugin/udev/60-aoe-nbd.rules"
    words = ["unshare", "--mount", "bash", "-c", SCRIPT, "udev", rule, which, action, *attributes]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Reading rules file: /run/udev/rules.d/60-aoe-nbd.rules" in done.stdout
    assert not re.search(r"60-aoe-nbd\.rules:\d+ (Invalid|Unknown|.*ignor)", done.stdout), done.stdout
    found = re.search(r"^DEVLINKS=(.*)$", done.stdout, re.MULTILINE)
    names = [name for name in (found[1].split() if found else []) if name.startswith("/dev/etherd/")]
    return names, bool(re.search(r"^CURRENT_TAGS=.*:systemd:", done.stdout, re.MULTILINE))


def test_the_disk_and_its_partitions() -> None:
    assert links("disk", "backend=e1.0", "pid=7") == (["/dev/etherd/e1.0"], True)
    assert links("part", "backend=e65534.254", "pid=7") == (["/dev/etherd/e65534.254p12"], True)


@pytest.mark.parametrize("attributes", [(), ("backend=",), ("backend=vm-disk",), ("backend=e1.0", "size=0")])
def test_what_is_no_disk_of_ours_or_no_disk_any_more(attributes: tuple[str, ...]) -> None:
    assert links("disk", *attributes)[0] == []


def test_a_partition_of_another_disk_and_one_that_goes() -> None:
    assert links("part", "backend=other")[0] == []
    assert links("part", "backend=e1.0", action="remove")[0] == []
