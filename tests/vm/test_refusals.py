# SPDX-License-Identifier: BSD-3-Clause
"""What cannot be done is refused with one sentence that says what to do, and nothing stays half done."""

from __future__ import annotations

import pytest

from fixtures import Storage
from machine import Machine
from steps import attach, kernel_is_content, listed, refused, until, verify
from test_attach import nothing_stays  # noqa: F401
from test_nbd_client import BRIDGE, END

ATTACH = "aoe-nbd attach e1.0 --interface eth0"


@pytest.fixture(autouse=True)
def disk(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())


def test_no_nbd_module(vm: Machine) -> None:
    vm.sh("rmmod nbd 2>/dev/null || true; echo 'install nbd /bin/false' >/etc/modprobe.d/lab.conf")
    refused(vm, ATTACH, "nbd module", "modprobe nbd")
    vm.sh("rm /etc/modprobe.d/lab.conf")
    attach(vm)  # which loads it


def test_no_such_target(vm: Machine) -> None:
    refused(vm, "aoe-nbd attach e1.7 --interface eth0 --connect-timeout 1", "e1.7", "no answer")
    assert listed(vm) == {}


def test_attached_by_the_kernel_aoe_module(vm: Machine) -> None:
    vm.sh("modprobe aoe aoe_iflist=eth0")
    until(vm, "[ -b /dev/etherd/e1.0 ] || { aoe-discover; false; }")
    refused(vm, ATTACH, "e1.0", "aoe")
    vm.sh("rmmod aoe; udevadm settle")


def test_written_to_by_another_bridge_of_this_host(vm: Machine) -> None:
    vm.sh(f"modprobe nbd; {BRIDGE}")
    refused(vm, ATTACH, "e1.0", "another bridge", "nbdkit")
    vm.sh(END)
    attach(vm)


def test_a_bad_line_in_the_table_harms_no_other(vm: Machine) -> None:
    vm.sh("printf '# disks\\ne1.0 interface=eth0\\ne1.x interface=eth0\\n' >/etc/aoe-nbd/aoetab")
    refused(vm, "aoe-nbd attach --all", "/etc/aoe-nbd/aoetab", "line 3", "e1.x")
    assert listed(vm)["e1.0"]["holders"] == {"aoetab": 1}
    vm.sh("aoe-nbd detach --holder aoetab e1.0; echo >/etc/aoe-nbd/aoetab")


def test_in_use_at_detach(vm: Machine) -> None:
    device = attach(vm)
    vm.sh(f"mkfs.ext4 -q {device}; mount {device} /mnt")
    refused(vm, "aoe-nbd detach e1.0", "in use", "mounted on /mnt")
    vm.sh(f"{verify()}; umount /mnt; aoe-nbd detach e1.0")
    refused(vm, "aoe-nbd detach e1.0", "not attached")


def test_what_a_dead_supervisor_has_left_is_taken_up_again(vm: Machine) -> None:
    device = attach(vm)
    vm.sh(f"mkfs.ext4 -q {device}; mount {device} /mnt; kill -KILL {listed(vm)['e1.0']['supervisor']}")
    work = vm.start(f"set -e\n{verify()}")
    assert listed(vm)["e1.0"]["state"] == "stale"
    assert attach(vm) == device
    work.check()
    vm.sh(f"umount /mnt; fsck.ext4 -f -n {device}")
    kernel_is_content(vm)


def test_force_for_a_dead_target(vm: Machine, storage: Storage) -> None:
    target = storage.vblade(storage.disk("other"), slot=1)
    device = attach(vm, "e1.1")
    target.kill()
    work = vm.start(f"dd if=/dev/zero of={device} bs=1M count=4 oflag=direct")
    until(vm, f"[ \"$(awk '{{print $1 + $2}}' /sys/block/{device[5:]}/inflight)\" -gt 0 ]")
    vm.sh("aoe-nbd detach --force e1.1")
    assert work.wait().status == 1
    assert listed(vm) == {}
