# SPDX-License-Identifier: BSD-3-Clause
"""The congestion window of one path, in frames: never above the target's buffer count, which all its clients share."""

from __future__ import annotations

from .constants import DELAY_BRAKE, WINDOW_CUT, WINDOW_SILENT, WINDOW_START
from .rtt import Rtt


class Window:
    """`size` frames may be outstanding. A cut can be undone once the frame it was made for proves to have been late."""

    __slots__ = ("_prior", "_recover", "_slow_start", "cap", "size")

    def __init__(self, cap: int) -> None:
        self.cap = max(1, cap)
        self.size = float(max(1, min(self.cap // 2, WINDOW_START)))
        self._slow_start = float(self.cap)
        self._prior = 0.0
        self._recover = 0

    def set_cap(self, cap: int) -> None:
        """The target's buffer count; 0 and 1 both let one frame out at a time."""
        cap = max(1, cap)
        if cap != self.cap:
            self.cap = cap
            self._slow_start = max(self._slow_start, float(cap))
        self.size = min(self.size, float(cap))

    def answered(self, rtt: Rtt, count: int = 1) -> None:
        """`count` answers came while the window was full: grow, unless the path's delay says that it has enough."""
        if self.size < self.cap and rtt.srtt <= DELAY_BRAKE * rtt.least:
            grown = self.size + (count if self.size < self._slow_start else count / self.size)
            self.size = min(grown, float(self.cap))

    def lost(self, seq: int, next_seq: int) -> None:
        """Copy `seq` was lost: cut once for all copies sent before `next_seq`."""
        if seq >= self._recover:
            less = max(self.size * WINDOW_CUT, WINDOW_SILENT)
            self._cut(less, less, next_seq)

    def silent(self, next_seq: int) -> None:
        """Nothing was heard for a whole timeout: begin anew, quickly up to what a single loss would have left."""
        self._cut(WINDOW_SILENT, max(self.size * WINDOW_CUT, WINDOW_SILENT), next_seq)

    def _cut(self, size: float, slow_start: float, next_seq: int) -> None:
        self._prior = max(self._prior, self.size)
        self.size = min(size, float(self.cap))
        self._slow_start = slow_start
        self._recover = next_seq

    def undo(self) -> None:
        """The last cut was made for a frame that was only late."""
        if self._prior:
            self.size = min(max(self.size, self._prior), float(self.cap))
            self._slow_start = max(self._slow_start, self._prior)
            self._prior = 0.0

    def settled(self, seq: int) -> None:
        """Copy `seq` was answered in time: past the last cut's round, that cut can no longer be undone."""
        if self._prior and seq >= self._recover:
            self._prior = 0.0
