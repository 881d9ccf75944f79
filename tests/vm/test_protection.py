# SPDX-License-Identifier: BSD-3-Clause
"""The bridge of an attached disk never waits for memory, and has no more powers than it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fixtures import Storage
from machine import Machine
from steps import attach


@pytest.fixture(autouse=True)
def nothing_stays(vm: Machine) -> Iterator[None]:
    """A test that has passed has left nothing attached."""
    yield
    vm.sh("[ ! -e /run/aoe-nbd/e1.0 ] || aoe-nbd detach --force e1.0")


def status(vm: Machine) -> dict[str, Any]:
    """What the bridge of e1.0 says of itself."""
    (answer,) = json.loads(vm.sh("aoe-nbd status --json e1.0"))
    assert isinstance(answer, dict)
    return answer


def test_the_bridge_never_waits_for_memory(vm: Machine, storage: Storage) -> None:
    storage.vblade(storage.disk())
    attach(vm)
    answer = status(vm)
    assert answer["memory_protected"]
    process = f"/proc/{answer['pid']}"
    facts = dict(line.split(":", 1) for line in vm.sh(f"cat {process}/status").splitlines())
    assert int(facts["VmLck"].split()[0]) > 0
    assert int(facts["CapEff"], 16) == 1 << 13  # CAP_NET_RAW
    assert vm.sh(f"cat {process}/oom_score_adj").strip() == "-1000"
    for flags in vm.sh(f"cut -d' ' -f9 {process}/task/*/stat").split():
        assert int(flags) & 0x80000  # PF_MEMALLOC_NOIO, which PR_SET_IO_FLUSHER sets: in every thread
    assert set(vm.sh(f"cut -d' ' -f41 {process}/task/*/stat").split()) == {"2"}  # SCHED_RR, also in every thread
