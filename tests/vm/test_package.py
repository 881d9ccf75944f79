# SPDX-License-Identifier: BSD-3-Clause
"""The Debian package in a Debian under systemd that has nothing of ours: installed by apt, there after boot, upgraded in use.

The tests are steps of one story, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures import Rack, Storage, build_package, inside
from machine import Machine
from steps import attach, kernel_is_content, listed, partition, refused, until, verify

NETWORK = "[Match]\\nName=eth0\\n[Link]\\nMTUBytes=9000\\n[Network]\\nAddress=10.99.0.2/24\\n"


@pytest.fixture(scope="module")
def clean(rack: Rack) -> Iterator[Machine]:
    """A machine with a network."""
    machine = rack.get("plain", systemd=True)
    machine.sh(
        f"printf '{NETWORK}' >/etc/systemd/network/eth0.network; systemctl enable --now systemd-networkd\n"
        "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*"  # what there is already must do
    )
    yield machine
    rack.clear()


@pytest.fixture(scope="module")
def disks(clean: Machine, rack: Rack) -> Iterator[Storage]:
    storage = Storage(rack)
    storage.vblade(storage.disk())
    yield storage
    storage.close()


def test_apt_installs_it(clean: Machine, disks: Storage, package: Path) -> None:
    clean.sh(f"cp {inside(package)} /tmp; DEBIAN_FRONTEND=noninteractive apt-get -q -y install /tmp/{package.name}", 1200)


def test_attach_makes_a_service(clean: Machine, disks: Storage) -> None:
    attach(clean)
    assert clean.sh("systemctl is-active aoe-nbd@e1.0.service").strip() == "active"
    partition(clean, "size=48M")
    until(clean, "[ -b /dev/etherd/e1.0p1 ]")
    clean.sh(f"mkfs.ext4 -q /dev/etherd/e1.0p1; mount /dev/etherd/e1.0p1 /mnt; {verify()}; umount /mnt; aoe-nbd detach e1.0")
    assert clean.run("systemctl is-active aoe-nbd@e1.0.service").output.strip() == "inactive"


def test_there_after_boot(clean: Machine, disks: Storage) -> None:
    clean.sh(
        "echo 'e1.0 interface=eth0' >>/etc/aoe-nbd/aoetab; systemctl enable aoe-nbd.service\n"
        "echo '/dev/etherd/e1.0p1 /srv ext4 _netdev 0 2' >>/etc/fstab; systemctl daemon-reload\n"
        "systemctl start aoe-nbd.service; mount /srv; echo before >/srv/when"
    )
    clean.reboot()
    until(clean, "mountpoint -q /srv")
    assert clean.sh("cat /srv/when").strip() == "before"
    assert listed(clean)["e1.0"]["holders"] == {"aoetab": 1}
    kernel_is_content(clean)


def test_systemd_starts_again_what_is_killed(clean: Machine, disks: Storage) -> None:
    work = clean.start(f"set -e\nfor i in 1 2 3; do {verify('/srv')}; done", 1200)
    before = listed(clean)["e1.0"]
    clean.sh(f"kill -KILL {before['supervisor']}")
    until(clean, f"systemctl is-active -q aoe-nbd@e1.0.service && [ $(cat /run/aoe-nbd/e1.0/lock) != {before['supervisor']} ]")
    work.check()
    after = listed(clean)["e1.0"]
    assert after["device"] == before["device"] and after["state"] == "up"
    kernel_is_content(clean)


def test_an_upgrade_under_a_mounted_disk(clean: Machine, disks: Storage) -> None:
    newer = build_package("--version", "0.1.0+1")
    before = listed(clean)["e1.0"]
    work = clean.start(f"set -e\nfor i in 1 2 3; do {verify('/srv')}; done", 1200)
    clean.sh(f"dpkg -i {inside(newer)}", 1200)
    work.check()
    after = listed(clean)["e1.0"]
    assert after["device"] == before["device"] and after["bridge"] != before["bridge"]
    assert after["starts"] > before["starts"]
    kernel_is_content(clean)


def test_removal(clean: Machine, disks: Storage) -> None:
    refused(clean, "apt-get -q -y remove aoe-nbd", "disks are attached", "e1.0")
    clean.sh(verify("/srv"))
    clean.sh("umount /srv; aoe-nbd detach --all-holders e1.0; DEBIAN_FRONTEND=noninteractive apt-get -q -y purge aoe-nbd", 1200)
    assert clean.run("ls -d /etc/aoe-nbd /usr/lib/python3/dist-packages/aoe_nbd /run/aoe-nbd 2>/dev/null").output == ""
