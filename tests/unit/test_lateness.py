# SPDX-License-Identifier: BSD-3-Clause
"""Late requests return one after the other, the others at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from aoe_nbd import lateness
from aoe_nbd.lateness import FIRST, LATE, NEXT, Lateness


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(lateness, "time", SimpleNamespace(monotonic=found.monotonic, sleep=found.sleep))
    return found


def test_nobody_waits_as_long_as_all_is_well(clock: Clock) -> None:
    late = Lateness()
    for _ in range(5):
        late.settle(clock.now - LATE / 2)
    assert clock.slept == []


def test_late_ones_return_apart(clock: Clock) -> None:
    late = Lateness()
    for _ in range(4):
        late.settle(clock.now - 2 * LATE)
    assert clock.slept == [FIRST, NEXT, NEXT], "the first at once"
    clock.now += 60
    late.settle(clock.now - 2 * LATE)
    assert len(clock.slept) == 3
    late.settle(clock.now - 2 * LATE)
    assert clock.slept[3:] == [FIRST]
