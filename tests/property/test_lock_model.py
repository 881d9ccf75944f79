# SPDX-License-Identifier: BSD-3-Clause
"""The interval lock against a model that is too slow to use and too simple to be wrong."""

from __future__ import annotations

import random

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aoe_nbd.core.lock import IntervalLock, Range
from examples import examples

BUCKET = 1 << 11


class LockModel(RuleBasedStateMachine):
    """All ranges in order of arrival; one is held if no earlier one that it conflicts with is still there.

    A ghost takes the place in the order of the range that it is left of.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lock = IntervalLock()
        self.order: list[Range] = []  # arrival; ghosts where their writes were
        self.ghosts: set[int] = set()
        self.granted: set[int] = set()

    @initialize(base=st.sampled_from([0, BUCKET - 8, 5 * BUCKET - 3, (1 << 48) - 4 * BUCKET]))
    def place(self, base: int) -> None:
        self.base = base

    def expected(self) -> set[int]:
        held = set()
        for i, r in enumerate(self.order):
            if id(r) in self.ghosts or not any(r.conflicts(other) for other in self.order[:i]):
                held.add(id(r))
        return held

    @rule(start=st.integers(0, 24), length=st.integers(1, 12), exclusive=st.booleans(), wide=st.integers(0, 9))
    def acquire(self, start: int, length: int, exclusive: bool, wide: int) -> None:
        if wide == 0:
            length += 2 * BUCKET
        r = Range(self.base + start, self.base + start + length, exclusive)
        self.order.append(r)
        if self.lock.acquire(r):
            self.granted.add(id(r))

    @precondition(lambda self: any(id(r) in self.granted for r in self.order))
    @rule(pick=st.integers(0, 1 << 16), ghosts=st.integers(0, 3), seed=st.integers(0, 1 << 16))
    def release(self, pick: int, ghosts: int, seed: int) -> None:
        held = [r for r in self.order if id(r) in self.granted]
        r = held[pick % len(held)]
        left = []
        if r.exclusive and id(r) not in self.ghosts:
            rng = random.Random(seed)
            for _ in range(ghosts):
                a = rng.randrange(r.start, r.end)
                left.append(Range(a, rng.randrange(a, min(r.end, a + 12)) + 1, False))
        at = self.order.index(r)
        self.order[at : at + 1] = left
        self.granted.discard(id(r))
        for ghost in left:
            self.ghosts.add(id(ghost))
            self.granted.add(id(ghost))
        for other in self.lock.release(r, left):
            assert id(other) not in self.granted, "granted twice"
            self.granted.add(id(other))
        self.kept = [*getattr(self, "kept", []), r]  # or its id may come again

    @invariant()
    def held_is_what_the_model_holds(self) -> None:
        assert self.granted == self.expected()
        assert len(self.lock) == len(self.order)

    @invariant()
    def no_two_that_conflict_are_held(self) -> None:
        held = [r for r in self.order if id(r) in self.granted and id(r) not in self.ghosts]
        for i, a in enumerate(held):
            for b in held[:i]:
                assert not a.conflicts(b)

    def teardown(self) -> None:
        """Whatever the history: release all that is held, again and again, and nobody waits for ever."""
        for _ in range(len(self.order) + 1):
            for r in [r for r in self.order if id(r) in self.granted]:
                self.order.remove(r)
                self.granted.discard(id(r))
                self.granted.update(id(other) for other in self.lock.release(r))
        assert not self.order
        assert len(self.lock) == 0


TestLockModel = LockModel.TestCase
TestLockModel.settings = examples(300, stateful_step_count=40)
