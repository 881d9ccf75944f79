# SPDX-License-Identifier: BSD-3-Clause
"""One CPU, and another when that one has more room; but not to and fro."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aoe_nbd import affinity
from aoe_nbd.affinity import Affinity

ALL = os.sched_getaffinity(0)
several = pytest.mark.skipif(len(ALL) < 2, reason="there is one CPU only")


class Machine:
    """Its CPUs, and a bridge that looks once a second. `here` is the CPU it is on."""

    def __init__(self, stat: Path) -> None:
        self._stat = stat
        self.now = 100.0
        self.own = 0.0  # s of CPU time
        self._ticks = dict.fromkeys(ALL, 1000.0)
        self._write()

    def _write(self) -> None:
        lines = ["cpu  1 2 3 4 5 6 7 8 9 10", "intr 1 2 3"]
        lines[1:1] = [f"cpu{cpu} {int(ticks)} 0 0 77 88 0 0 0 99 0" for cpu, ticks in self._ticks.items()]
        self._stat.write_text("\n".join(lines) + "\n")

    def pass_(self, it: Affinity, own: float, others: dict[int, float], seconds: float = 1.0) -> set[int]:
        """Let time pass, in which the bridge and others have these shares of a CPU; where the bridge is then."""
        here = next(iter(os.sched_getaffinity(0)))
        self.own += own * seconds
        for cpu in ALL:
            busy = others.get(cpu, 0.0) + (own if cpu == here else 0.0)
            self._ticks[cpu] += busy * seconds * os.sysconf("SC_CLK_TCK")
        self.now += seconds
        self._write()
        it.look(self.now)
        return os.sched_getaffinity(0)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    found = Machine(tmp_path / "stat")
    monkeypatch.setattr(affinity, "STAT", tmp_path / "stat")
    monkeypatch.setattr(affinity.time, "process_time", lambda: found.own)
    monkeypatch.setattr(affinity.random, "uniform", lambda least, most: least)
    yield found
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), ALL)


def started(choice: str = "auto") -> tuple[Affinity, int, int]:
    """One that runs, the CPU it is on, and another."""
    it = Affinity(choice)  # type: ignore[arg-type]
    it.start()
    here = os.sched_getaffinity(0)
    assert len(here) == 1 and here <= ALL
    return it, *here, *sorted(ALL - here)[:1]  # type: ignore[return-value]


@several
def test_it_stays_on_its_cpu_however_much_it_has_to_do(machine: Machine) -> None:
    it, here, _ = started()
    for _ in range(5):
        assert machine.pass_(it, 1.0, {}) == {here}


@several
def test_it_leaves_one_that_others_crowd_and_stays_on_the_next(machine: Machine) -> None:
    it, here, there = started()
    machine.pass_(it, 0.5, {here: 0.5})  # the first look has nothing to compare with
    assert machine.pass_(it, 0.5, {here: 0.5}) == {there}
    for _ in range(5):
        assert machine.pass_(it, 1.0, {here: 0.2}) == {there}


@several
def test_it_stays_where_others_have_no_more_than_elsewhere(machine: Machine) -> None:
    it, here, _ = started()
    for _ in range(5):
        assert machine.pass_(it, 0.5, {here: 0.5, **dict.fromkeys(ALL - {here}, 0.4)}) == {here}
    assert machine.pass_(it, 0.5, {here: 0.5, **dict.fromkeys(ALL - {here}, 0.2)}) != {here}


@several
def test_what_was_long_ago_says_nothing(machine: Machine) -> None:
    it, here, _ = started()
    machine.pass_(it, 0.5, {here: 0.5})
    assert machine.pass_(it, 0.0, {here: 1.0}, seconds=60.0) == {here}
    assert machine.pass_(it, 0.5, {here: 0.5}) != {here}


@several
def test_it_looks_once_in_a_while(machine: Machine) -> None:
    it, here, _ = started()
    machine.pass_(it, 0.5, {here: 0.5})
    assert machine.pass_(it, 0.5, {here: 0.5}, seconds=0.4) == {here}
    assert machine.pass_(it, 0.5, {here: 0.5}, seconds=0.2) != {here}


@several
def test_all_threads_go_along(machine: Machine) -> None:
    it, here, there = started()
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert os.sched_getaffinity(thread.native_id) == {here}
        machine.pass_(it, 0.5, {here: 0.5})
        machine.pass_(it, 0.5, {here: 0.5})
        assert os.sched_getaffinity(thread.native_id) == {there}
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize("cpu", ["all", "one", min(ALL)])
def test_what_was_asked_for_stays(machine: Machine, cpu: int | str) -> None:
    it = Affinity(cpu)  # type: ignore[arg-type]
    it.start()
    before = os.sched_getaffinity(0)
    assert before == (ALL if cpu == "all" else before) and (cpu == "all" or len(before) == 1)
    for _ in range(3):
        assert machine.pass_(it, 0.1, dict.fromkeys(before, 0.9)) == before


def test_a_cpu_that_there_is_not(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    it = Affinity(4095)
    it.start()
    assert "cpu=4095 cannot be used" in caplog.text
    assert machine.pass_(it, 0.5, {}) == ALL


def test_a_kernel_that_does_not_tell(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    it, here, *_ = started()
    monkeypatch.setattr(affinity, "STAT", tmp_path / "none")
    for _ in range(3):
        assert machine.pass_(it, 0.5, {here: 1.0}) == {here}
