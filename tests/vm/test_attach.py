# SPDX-License-Identifier: BSD-3-Clause
"""`aoe-nbd attach`: a LUN is a disk of the host, by the kernel's netlink interface."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fixtures import Storage
from machine import Machine
from steps import attach, file_system, kernel_is_content, listed, partition, refused, until, verify


@pytest.fixture(autouse=True)
def nothing_stays(vm: Machine) -> Iterator[None]:
    """A test that has passed has left nothing attached, and nothing of it behind."""
    yield
    vm.sh("for disk in e1.0 e1.1; do [ ! -e /run/aoe-nbd/$disk ] || aoe-nbd detach --force $disk; done")
    assert vm.sh("ls /run/aoe-nbd 2>/dev/null || true; ls /dev/etherd 2>/dev/null || true").split() in ([], ["sysfs"])


def test_attach_and_detach(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())
    device = attach(vm)
    assert vm.sh(f"blockdev --getsize64 {device}; readlink -f /dev/etherd/e1.0").split() == [str(64 << 20), device]
    file_system(vm, "/dev/etherd/e1.0")
    assert attach(vm) == device
    assert listed(vm)["e1.0"]["holders"] == {"operator": 2}
    vm.sh("aoe-nbd detach e1.0")
    assert vm.sh(f"blockdev --getsize64 {device}").strip() == str(64 << 20)
    vm.sh("aoe-nbd detach e1.0")
    assert listed(vm) == {}
    assert vm.sh(f"cat /sys/block/{device[5:]}/size").strip() == "0"
    assert vm.run("pgrep -fa 'nbdkit|aoe_nbd'").output == ""
    kernel_is_content(vm)


def test_read_only(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())
    device = attach(vm, "e1.0", "--read-only")
    assert vm.sh(f"blockdev --getro {device}").strip() == "1"
    assert vm.run(f"dd if=/dev/zero of={device} count=1 oflag=direct").status != 0
    refused(vm, "aoe-nbd attach e1.0 --interface eth0", "read-only", device)


def test_partitions(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())
    attach(vm)
    partition(vm, "size=24M", "type=linux")
    until(vm, "[ -b /dev/etherd/e1.0p2 ]")
    file_system(vm, "/dev/etherd/e1.0p1")
    vm.sh("sfdisk -q --delete /dev/etherd/e1.0 2")
    until(vm, "[ ! -L /dev/etherd/e1.0p2 ]")
    vm.sh("aoe-nbd detach e1.0")
    assert vm.run("ls /dev/etherd/e1.0p1").status != 0
    attach(vm)
    vm.sh("mount /dev/etherd/e1.0p1 /mnt; umount /mnt")


def test_lvm_over_two_luns(vm: Machine, storage: Storage) -> None:
    for slot in (0, 1):
        storage.vblade(storage.disk(f"disk{slot}"), slot=slot)
        attach(vm, f"e1.{slot}")
    vm.sh("pvcreate -q /dev/etherd/e1.0 /dev/etherd/e1.1; vgcreate -q lab /dev/etherd/e1.0 /dev/etherd/e1.1")
    vm.sh("lvcreate -q -y -n striped -i 2 -L 64M lab")
    file_system(vm, "/dev/lab/striped")
    refused(vm, "aoe-nbd detach e1.1", "in use", "lab-striped")
    vm.sh("vgchange -q -an lab")


def test_a_mirror_survives_the_death_of_a_target(vm: Machine, storage: Storage) -> None:
    targets = [storage.vblade(storage.disk(f"disk{slot}"), slot=slot) for slot in (0, 1)]
    for slot in (0, 1):
        attach(vm, f"e1.{slot}", "--on-dead", "fail-after=3")
    vm.sh(
        "mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --bitmap=internal --assume-clean"
        " /dev/etherd/e1.0 /dev/etherd/e1.1; mkfs.ext4 -q /dev/md0; mount /dev/md0 /mnt"
    )
    work = vm.start(f"set -e\nfor i in 1 2; do {verify()}; done")
    targets[1].kill()
    work.check()
    until(vm, "grep -q '[(]F[)]' /proc/mdstat || { echo x >/mnt/x; sync; false; }")
    vm.sh(verify())
    targets[1].start_again()
    vm.sh("mdadm /dev/md0 --remove failed")
    until(vm, "mdadm /dev/md0 --re-add /dev/etherd/e1.1")  # once the bridge has the target again
    until(vm, "grep -q '[[]UU[]]' /proc/mdstat")
    vm.sh("umount /mnt; fsck.ext4 -f -n /dev/md0; mdadm --stop /dev/md0")
    for slot in (0, 1):
        vm.sh(f"aoe-nbd detach e1.{slot}")
    a, b = (storage.folder / f"disk{slot}" for slot in (0, 1))
    data = 2 << 20  # behind md's own superblock, which differs
    assert a.read_bytes()[data:] == b.read_bytes()[data:]


def test_a_mounted_disk_grows(vm: Machine, storage: Storage) -> None:
    disk = storage.disk(mib=20)
    storage.target(disk)
    device = attach(vm)
    vm.sh(f"mkfs.ext4 -q {device}; mount {device} /mnt; {verify()}")
    with disk.open("r+b") as file:
        file.truncate(48 << 20)
    until(vm, f"[ $(blockdev --getsz {device}) = {48 << 11} ]")
    vm.sh(f"resize2fs {device}")
    vm.sh(verify("/mnt", 24))
    vm.sh(f"umount /mnt; fsck.ext4 -f -n {device}")
    kernel_is_content(vm)


def test_the_terminal_is_closed(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())
    vm.sh(
        "(script -qc 'aoe-nbd attach e1.0 --interface eth0; touch /tmp/attached; sleep 1000' /dev/null >/dev/null 2>&1 &"
        " echo $! >/tmp/terminal)"
    )
    until(vm, "[ -e /tmp/attached ]")
    found = listed(vm)["e1.0"]
    vm.sh("kill -KILL $(cat /tmp/terminal); rm /tmp/attached")  # the far end of it, so that its programs get SIGHUP
    vm.sh(f"kill -HUP {found['supervisor']} {found['bridge']}")  # as if it were theirs
    file_system(vm, "/dev/etherd/e1.0")
    now = listed(vm)["e1.0"]
    assert (now["supervisor"], now["bridge"]) == (found["supervisor"], found["bridge"])


def test_aoe_stat_as_it_is(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())
    attach(vm)
    until(vm, "[ -e '/run/aoe-nbd/sysfs/block/etherd!e1.0/state' ]")
    theirs = vm.sh("sysfs_dir=/run/aoe-nbd/sysfs aoe-stat")
    assert theirs.split() == ["e1.0", "0.067GB", "eth0", "8192", "up"]
    assert vm.sh("aoe-nbd stat") == theirs
