# SPDX-License-Identifier: BSD-3-Clause
"""The bridge under nbd-client: a disk of the host, by hand and by nbdtab(5)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fixtures import Storage
from machine import Machine
from steps import file_system

BRIDGE = "nbdkit -U /run/lab-e1.0.sock -P /run/lab-e1.0.pid aoe interface=eth0 target=e1.0"
END = "kill $(cat /run/lab-e1.0.pid); while [ -d /proc/$(cat /run/lab-e1.0.pid) ]; do sleep 0.1; done; rm /run/lab-e1.0.*"


@pytest.fixture
def bridge(vm: Machine, storage: Storage) -> Iterator[None]:
    """A bridge to e1.0, a new disk, on /run/lab-e1.0.sock."""
    storage.vblade(storage.disk())
    vm.sh(f"modprobe nbd\n{BRIDGE}")
    yield
    vm.sh(END)


def test_a_file_system_by_nbd_client(vm: Machine, bridge: None) -> None:
    vm.sh("nbd-client -unix /run/lab-e1.0.sock /dev/nbd0 -b 512")
    file_system(vm, "/dev/nbd0")
    vm.sh("nbd-client -d /dev/nbd0")
    assert vm.sh("cat /sys/block/nbd0/size").strip() == "0"


def test_a_file_system_by_nbdtab(vm: Machine, bridge: None) -> None:
    vm.sh("echo 'nbd1 /run/lab-e1.0.sock e1.0 unix,bs=512' >/etc/nbdtab; nbd-client nbd1")
    file_system(vm, "/dev/nbd1")
    vm.sh("nbd-client -d /dev/nbd1; rm /etc/nbdtab")
    assert vm.sh("cat /sys/block/nbd1/size").strip() == "0"
