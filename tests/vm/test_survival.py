# SPDX-License-Identifier: BSD-3-Clause
"""Whatever dies behind a mounted disk, nobody who uses the disk sees an error."""

from __future__ import annotations

import time

from fixtures import Storage
from machine import Machine
from steps import attach, load, until

TIMES = 10
STATE = "/run/aoe-nbd/e1.0/state.json"


def state(name: str) -> str:
    """The shell command that prints a number of the supervisor's state."""
    return f"grep -oP '\"{name}\": *\\K[0-9]+' {STATE}"


def test_the_bridge_is_killed(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())
    device = attach(vm)
    with load(vm, device) as work:
        for _ in range(TIMES):
            starts = int(vm.sh(state("starts")))
            vm.sh(f"kill -KILL $({state('bridge')})")
            until(vm, f'[ "$({state("starts")})" -gt {starts} ]')
            work.goes_on()
    vm.sh("aoe-nbd detach e1.0")


def test_the_target_is_killed(vm: Machine, storage: Storage) -> None:
    target = storage.vblade(storage.disk())
    device = attach(vm)
    with load(vm, device) as work:
        for i in range(TIMES):
            target.kill()
            time.sleep(12 if i == TIMES // 2 else 0.5)  # once for so long that it is taken for dead
            target.start_again()
            work.goes_on()
    vm.sh("aoe-nbd detach e1.0")


def test_the_restart_verb(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())
    device = attach(vm)
    with load(vm, device) as work:
        for _ in range(TIMES):
            vm.sh("aoe-nbd restart e1.0")
            work.goes_on()
    vm.sh("aoe-nbd detach e1.0")


def test_the_supervisor_is_killed(vm: Machine, storage: Storage) -> None:
    """Its bridge ends with it, and must not answer by an error what comes in meanwhile."""
    storage.vblade(storage.disk())
    device = attach(vm)
    with load(vm, device) as work:
        for _ in range(3):
            vm.sh("kill -KILL $(cat /run/aoe-nbd/e1.0/lock)")
            assert device in vm.sh("aoe-nbd attach e1.0 --holder again")  # what systemd would do
            work.goes_on()
    vm.sh("aoe-nbd detach e1.0 --all-holders")
