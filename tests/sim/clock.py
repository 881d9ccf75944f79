# SPDX-License-Identifier: BSD-3-Clause
"""Virtual time: a heap of calls, run in order of time and then of arrival."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """`now` in seconds. Nothing here waits."""

    __slots__ = ("_count", "_heap", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """Have `call(*args)` run at `when`, or now if that has passed."""
        self._count += 1
        heapq.heappush(self._heap, (max(when, self.now), self._count, call, args))

    def run(self, until: float, over: Callable[[], bool] | None = None) -> None:
        """Let time pass up to `until`, or up to the first moment at which `over()` holds."""
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] <= until:
            when, _, call, args = pop(heap)
            self.now = when
            call(*args)
            if over is not None and over():
                return
        self.now = max(self.now, until)
