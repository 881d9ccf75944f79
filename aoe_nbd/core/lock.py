# SPDX-License-Identifier: BSD-3-Clause
"""The interval lock of one LUN: which requests may be on the wire together.

AoE orders nothing, and real targets (ggaoed, kvblade) reorder even without loss. So at most one write is under way for
an LBA, and no read passes a write; both in order of arrival. A write that was sent more than once leaves a *ghost*: a
copy that may still arrive. Its range stays closed to other writes, which the stale copy would undo, while reads may
pass, because ghost and disk hold the same data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

_BUCKET: Final = 11  # ranges are looked up by 2^11 sectors (1 MiB)


class Range:
    """Sectors [start, end) of a LUN, held or waited for. `owner` is whatever the holder wants to find there."""

    __slots__ = ("blockers", "end", "exclusive", "keys", "owner", "start", "waiters")

    def __init__(self, start: int, end: int, exclusive: bool, owner: Any = None) -> None:
        self.start, self.end, self.exclusive, self.owner = start, end, exclusive, owner
        self.keys = range(start >> _BUCKET, (end - 1 >> _BUCKET if end > start else start >> _BUCKET) + 1)
        self.blockers = 0
        self.waiters: list[Range] = []

    def conflicts(self, other: Range) -> bool:
        return self.start < other.end and other.start < self.end and (self.exclusive or other.exclusive)


class IntervalLock:
    """Ranges held, and those that wait for them."""

    def __init__(self) -> None:
        self._buckets: dict[int, list[Range]] = {}

    def _near(self, r: Range) -> Iterable[Range]:
        if len(r.keys) == 1:
            return self._buckets.get(r.keys.start, ())
        return dict.fromkeys(other for key in r.keys for other in self._buckets.get(key, ()))

    def acquire(self, r: Range) -> bool:
        """Ask for `r`. True if it is held now; else it waits for all conflicting ranges asked for before it."""
        for other in self._near(r):
            if r.conflicts(other):
                other.waiters.append(r)
                r.blockers += 1
        self.keep(r)
        return not r.blockers

    def keep(self, r: Range) -> None:
        """Hold `r` without asking: its holder has the sectors already (a ghost of a range about to be released)."""
        buckets = self._buckets
        for key in r.keys:
            if key in buckets:
                buckets[key].append(r)
            else:
                buckets[key] = [r]

    def release(self, r: Range, ghosts: Sequence[Range] = ()) -> list[Range]:
        """Give `r` back, keeping `ghosts` (parts of it) in its place. Returns the ranges that are held from now on."""
        for key in r.keys:
            bucket = self._buckets[key]
            bucket.remove(r)
            if not bucket:
                del self._buckets[key]
        for ghost in ghosts:
            self.keep(ghost)
        granted: list[Range] = []
        for waiter in r.waiters:
            for ghost in ghosts:
                if waiter.conflicts(ghost):
                    ghost.waiters.append(waiter)
                    waiter.blockers += 1
            waiter.blockers -= 1
            if not waiter.blockers:
                granted.append(waiter)
        r.waiters = []
        return granted

    def __len__(self) -> int:
        return len({id(r) for bucket in self._buckets.values() for r in bucket})
