# SPDX-License-Identifier: BSD-3-Clause
"""A moving guest's disk is written by one host at a time, in every seed; and each rule that is switched off is caught."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

import pytest

from aoe_nbd.core.fence import FOREVER, NEVER, Fence, Phase, Record, State, _View

from .handover import play

SEEDS = int(os.environ.get("AOE_NBD_HANDOVER_SEEDS", "150"))
BITES = 600  # seeds at most in which a rule that is switched off must be caught


def test_seeds_hold() -> None:
    broken = {seed: rule for seed in range(SEEDS) if (rule := play(seed))}
    assert not broken, broken


def test_replays_identically() -> None:
    from .handover import Life

    def end(seed: int) -> tuple[list[int], bytes]:
        life = Life(seed)
        life.run()
        return life.guest.told, life.target.string

    for seed in range(5):
        assert end(seed) == end(seed)


class NoLease(Fence):
    """It goes on without being shown its record."""

    def _weigh(self) -> None:
        super()._weigh()
        if self.closes_at > NEVER:
            self.closes_at = FOREVER


class NoWait(Fence):
    """It does not wait for the former owner's lease to end."""

    def _judge(self, view: _View, seen: Record | None, now: float) -> None:
        super()._judge(view, seen, now)
        if seen is not None:
            view.wait = 0.0


class NoGrace(Fence):
    """An empty record that was written again is trusted at once."""

    def _judge(self, view: _View, seen: Record | None, now: float) -> None:
        super()._judge(view, seen, now)
        if seen is None:
            view.wait = 0.0


class EmptyIsFree(Fence):
    """Who has yielded takes an empty record for a release."""

    def _await_return(self, seen: Record | None, now: float) -> None:
        if seen is None and self.above is not None:
            return self._hold(Record(self.above.epoch + 1, self.host, self.tag, State.HELD), now)
        return super()._await_return(seen, now)


class MayWrite(Fence):
    """It writes without having said that it does, and so what it gives back is not untouched."""

    @property
    def may_write(self) -> bool:
        return self.closes_at > NEVER

    def want_write(self, now: float) -> None:
        pass


class Refusals(Fence):
    """A refusal for the reservation fails the request at once."""

    def refused(self, now: float) -> bool:
        return False


class Unverified(Fence):
    """A path that comes back after an outage is trusted."""

    def path_up(self, path: Hashable, now: float) -> None:
        super().path_up(path, now)
        if self.phase is Phase.HOLDING and self._firm:
            self._views[path].vouched = now + 60
            self._weigh()


class Unreserved(Fence):
    """The target is not reserved."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.enforcing = False

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, False if name == "enforcing" else value)


class Timid(Fence):
    """It does not write its record again over an older one."""

    def _overwrites(self, string: bytes) -> bool:
        found = Record.parse(string)
        older = found is not None and self.record is not None and self._firm and found.owner != self.host
        return super()._overwrites(string) and not older


MUTANTS = [NoLease, NoWait, NoGrace, EmptyIsFree, MayWrite, Refusals, Unverified, Unreserved, Timid]

EARLIER = {EmptyIsFree: 370}  # seeds that are known not to show it


@pytest.mark.sources
@pytest.mark.parametrize("mutant", MUTANTS)
def test_bites(mutant: type[Fence]) -> None:
    first = EARLIER.get(mutant, 0)
    for seed in range(first, first + BITES):
        if play(seed, fence=mutant):
            return
    pytest.fail(f"{BITES} seeds did not show that a rule was off: {mutant.__doc__}")


def test_bites_without_a_note() -> None:
    """A bridge that is started anew behaves as a fresh attach."""
    assert any(play(seed, resumes=False) for seed in range(BITES))
