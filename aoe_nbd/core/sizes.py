# SPDX-License-Identifier: BSD-3-Clause
"""How many sectors a frame may carry by one path, found out for each direction apart.

Target and interfaces say what they can do, but not what the switches between them let through. So a path starts with what
surely fits, larger sizes are tried with frames whose loss hurts nobody (an IDENTIFY with padding towards the target, a READ
towards us), and where only large frames keep getting lost, the size steps down until it is tried again. A loss says nothing
about size if a frame as large that was sent later has got through: then the network loses frames of any size.
"""

from __future__ import annotations

from .constants import SIZE_LOSSES, SIZE_RETRY_FIRST, SIZE_RETRY_MOST, SIZE_SAFE
from .flight import FOREVER

_LADDER = (128, 64, 32, 16, 8, 4, 2, 1)


class FrameSizes:
    """Sectors a frame: `most` is what is allowed, `limit[Kind.READ]` and `limit[Kind.WRITE]` what gets through."""

    __slots__ = ("_interval", "_losses", "_through", "limit", "most", "next_probe")

    def __init__(self) -> None:
        self.most = 1
        self.limit = [1, 1]
        self.next_probe = FOREVER
        self._losses = [0, 0]
        self._through = [-1, -1]  # the latest copy of that size or more that got through
        self._interval = SIZE_RETRY_FIRST

    def allow(self, most: int, now: float) -> None:
        """Target, MTU and operator allow `most` from now on."""
        grown = most > self.most
        self.most = most
        self.limit = [max(min(limit, most), min(most, SIZE_SAFE)) for limit in self.limit]
        if grown and most > min(self.limit):
            self._interval, self.next_probe = SIZE_RETRY_FIRST, now

    def restart(self, now: float) -> None:
        """The path has come up, perhaps by another way than before: trust only what surely fits."""
        self.limit = [min(self.most, SIZE_SAFE)] * 2
        self._losses = [0, 0]
        self._interval = SIZE_RETRY_FIRST
        self.next_probe = now if self.most > SIZE_SAFE else FOREVER

    def refused(self, length: int) -> None:
        """The target does not take `length` sectors any more."""
        self.most = min(self.most, max(1, length // 2))
        self.limit = [min(limit, self.most) for limit in self.limit]

    def due(self, now: float) -> list[tuple[int, int]]:
        """(direction, sectors) of each size to be tried now; asks again later, ever more rarely, for what then is missing."""
        self.next_probe = now + self._interval
        self._interval = min(self._interval * 2, SIZE_RETRY_MOST)
        sizes = (self.most, *(n for n in _LADDER if n < self.most))
        found = [(way, n) for way in (0, 1) for n in sizes if n > self.limit[way]]
        if not found:
            self.next_probe = FOREVER
        return found

    def answered(self, way: int, length: int, seq: int) -> None:
        """Copy `seq`, a frame of `length` sectors, got through."""
        if length >= self.limit[way]:
            self._losses[way] = 0
            self._through[way] = max(self._through[way], seq)
            self.limit[way] = min(max(length, self.limit[way]), self.most)
            if self.limit == [self.most, self.most]:
                self.next_probe = FOREVER

    def lost(self, way: int, length: int, seq: int, now: float) -> bool:
        """Copy `seq`, as long, got lost while the path is alive. Returns whether the size steps down for it."""
        if length < self.limit[way] or length <= 1 or seq < self._through[way]:
            return False
        self._losses[way] += 1
        if self._losses[way] < SIZE_LOSSES:
            return False
        self._losses[way] = 0
        self.limit[way] = next(n for n in _LADDER if n < length)
        self._interval = SIZE_RETRY_FIRST
        self.next_probe = min(self.next_probe, now + self._interval)
        return True
