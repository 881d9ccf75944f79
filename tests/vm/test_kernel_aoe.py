# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's aoe module: beside our bridge on the same target, and as a client of our target."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from fixtures import Storage
from lab import run
from machine import Machine
from steps import file_system, kernel_is_content, until
from test_nbd_client import BRIDGE, END

DEVICE = "/dev/etherd/e1.0"
PATTERNS = [("read", "128k", 1), ("read", "128k", 8), ("randread", "4k", 1), ("randread", "4k", 16), ("randwrite", "4k", 16)]


@pytest.fixture
def aoe(vm: Machine) -> Iterator[Callable[[], None]]:
    """aoe(): load the module and wait for e1.0. It is unloaded after the test."""

    def load() -> None:
        vm.sh("modprobe aoe aoe_iflist=eth0; udevadm settle")
        until(vm, f"[ -b {DEVICE} ] || {{ aoe-discover; false; }}")

    yield load
    vm.sh("rmmod aoe; udevadm settle")


def test_the_kernel_is_a_client_of_our_target(vm: Machine, storage: Storage, aoe: Callable[[], None]) -> None:
    disk = storage.disk()
    storage.target(disk)
    aoe()
    file_system(vm, DEVICE)
    vm.sh(f"mount {DEVICE} /mnt; echo {'0123456789' * 100} >/mnt/text; umount /mnt")
    assert " up " in vm.sh("aoe-stat")
    kernel_is_content(vm)
    run("fsck.ext4", "-f", "-n", disk)
    assert run("debugfs", "-R", "cat /text", disk).endswith("0123456789" * 100 + "\n")


def test_the_kernel_follows_when_our_target_grows(vm: Machine, storage: Storage, aoe: Callable[[], None]) -> None:
    disk = storage.disk(mib=32)
    storage.target(disk)
    aoe()
    with disk.open("r+b") as file:
        file.truncate(64 << 20)
    until(vm, f"aoe-revalidate e1.0; [ $(blockdev --getsz {DEVICE}) = {64 << 11} ]")


def test_kernel_aoe_and_ours_side_by_side(
    vm: Machine, storage: Storage, aoe: Callable[[], None], show: Callable[[str], None]
) -> None:
    storage.vblade(storage.disk())
    aoe()
    vm.sh(f"modprobe nbd; {BRIDGE}; nbd-client -unix /run/lab-e1.0.sock /dev/nbd0 -b 512")
    # What one writes is what the other reads, both ways.
    for here, there in ((DEVICE, "/dev/nbd0"), ("/dev/nbd0", DEVICE)):
        vm.sh(
            "head -c 2M /dev/urandom >/tmp/noise\n"
            f"dd if=/tmp/noise of={here} bs=128k oflag=direct status=none\n"
            f"dd if={there} bs=128k count=16 iflag=direct status=none | cmp - /tmp/noise"
        )
    show(f"{'in a machine, one vblade':26}{'kernel aoe':>12}{'aoe-nbd':>12}")
    for rw, size, depth in PATTERNS:
        rates = [iops(vm, device, rw, size, depth) for device in (DEVICE, "/dev/nbd0")]
        show(f"{f'{rw} {size} depth {depth}':26}" + "".join(f"{rate:>7.0f} IOPS" for rate in rates))
    kernel_is_content(vm)
    vm.sh(f"nbd-client -d /dev/nbd0; {END}")


def iops(vm: Machine, device: str, rw: str, size: str, depth: int) -> float:
    """Requests a second, of two seconds of them."""
    output = vm.sh(
        f"fio --name=x --filename={device} --direct=1 --ioengine=libaio --rw={rw} --bs={size} --iodepth={depth}"
        " --runtime=2 --time_based --output-format=json"
    )
    job = json.loads(output[output.index("{") :])["jobs"][0]
    assert job["error"] == 0
    return float(job["write" if "write" in rw else "read"]["iops"])
