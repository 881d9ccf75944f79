# SPDX-License-Identifier: BSD-3-Clause
"""A guarded disk in the kernel: what it is while attached, and that nothing waits when it is given back."""

from __future__ import annotations

import pytest

from fixtures import Storage
from machine import Machine
from steps import attach, listed, refused, until
from test_attach import nothing_stays  # noqa: F401

HERE = ("--fence", "enforce", "--owner", "here", "--owner-tag", "guest")
CONFIG = "aoe-nbd config e1.0 -i eth0"
SET = "aoe-nbd config fset e1.0 -i eth0"


@pytest.fixture(autouse=True)
def disk(vm: Machine, storage: Storage) -> None:
    storage.target(storage.disk())
    vm.sh(f"{SET} 'aoe-nbd epoch=7 owner=nobody tag=- state=free'")


def test_quiesced_and_detached(vm: Machine) -> None:
    attach(vm, "e1.0", *HERE)
    assert "epoch=8 owner=here tag=guest state=held" in vm.sh(CONFIG)
    vm.sh("aoe-nbd quiesce e1.0; aoe-nbd restart e1.0; timeout 50 aoe-nbd detach e1.0")
    assert "epoch=9 owner=here tag=guest state=free" in vm.sh(CONFIG)
    assert "free" in vm.sh("aoe-nbd reserve e1.0 -i eth0")


def test_taken_over_given_back_and_taken_over_for_good(vm: Machine) -> None:
    """The other host is a few changes of the record."""
    device = attach(vm, "e1.0", *HERE)
    vm.sh(f"{SET} 'aoe-nbd epoch=9 owner=there tag=guest state=moving from=here was=8'")
    until(vm, "aoe-nbd list | grep -q 'taken over by there'")
    vm.sh(f"dd if=/dev/urandom of={device} bs=64k count=16 oflag=direct >/tmp/dd.out 2>&1 & echo $! >/tmp/dd.pid")
    refused(vm, "aoe-nbd attach e1.0 --interface eth0", "taken over by there")
    vm.sh("aoe-nbd restart e1.0; sleep 2; kill -0 $(cat /tmp/dd.pid)")
    vm.sh(f"{SET} 'aoe-nbd epoch=10 owner=here tag=guest state=returned from=there was=8'")
    until(vm, "! kill -0 $(cat /tmp/dd.pid) 2>/dev/null")
    vm.sh("grep -q copied /tmp/dd.out && ! grep -q error /tmp/dd.out")
    assert "epoch=11 owner=here tag=guest state=held" in vm.sh(CONFIG)
    assert listed(vm)["e1.0"]["problem"] == ""
    vm.sh(f"{SET} 'aoe-nbd epoch=12 owner=there tag=guest state=moving from=here was=11'")
    until(vm, "aoe-nbd list | grep -q 'taken over by there'")
    vm.sh("timeout 50 aoe-nbd detach e1.0")
    assert "epoch=12 owner=there" in vm.sh(CONFIG)
