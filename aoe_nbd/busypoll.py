# SPDX-License-Identifier: BSD-3-Clause
"""Busy polling: whether a caller who is alone looks for its answer again and again, for a moment, before it sleeps.

To wake a sleeper often takes longer than a near target takes to answer. But who looks has a CPU to itself meanwhile. So
nobody does while looking is in vain, while several requests are under way, or while other programs keep the CPUs busy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Final

from .affinity import busy_seconds

_EVERY: Final = 1.0  # s from one look at what others do to the next
_CROWDED: Final = 0.75  # of all CPUs that we may run on: as much for others forbids it
_VAIN_MOST: Final = 1023  # requests at most that sleep at once, after others looked in vain
_CROWD: Final = 16  # that do, after three or more were under way together


class BusyPoll:
    """Ask `wanted` for every lone request, and say by `over` how it went; say `crowd` when requests are not alone."""

    def __init__(
        self,
        limit: float,
        busy: Callable[[], Mapping[int, float]] = busy_seconds,
        own: Callable[[], float] = time.process_time,
    ) -> None:
        """Look for `limit` seconds at most; 0: never. `busy` tells for how long each CPU has worked, `own` for us."""
        self.limit = limit
        self._busy, self._own = busy, own
        self._cpus = os.sched_getaffinity(0)
        self._skip = 0  # lone requests that sleep at once from now on
        self._vain = 0  # how many that were after the last one that looked in vain
        self._next = self._then = 0.0  # when to look at the others again, and when that was last done
        self._before = 0.0  # for how long the CPUs had worked for others by then
        self._crowded = False

    def wanted(self, now: float) -> bool:
        """Whether the request that begins `now` (s, monotonic) may look."""
        if self._skip:
            self._skip -= 1
            return False
        if not self.limit:
            return False
        if now >= self._next:
            self._look_around(now)
        return not self._crowded

    def _look_around(self, now: float) -> None:
        busy = self._busy()
        others = sum([busy[cpu] for cpu in self._cpus if cpu in busy]) - self._own()
        if self._then:
            self._crowded = others - self._before > _CROWDED * len(self._cpus) * (now - self._then)
        self._next, self._then, self._before = now + _EVERY, now, others

    def over(self, found: bool) -> None:
        """One has looked. In vain once, the next one does not; twice, the next three do not, and so on."""
        self._vain = 0 if found else min(2 * self._vain + 1, _VAIN_MOST)
        self._skip = self._vain

    def crowd(self) -> None:
        """Three requests or more are under way together: the I/O thread is quicker with those."""
        self._skip = max(self._skip, _CROWD)
