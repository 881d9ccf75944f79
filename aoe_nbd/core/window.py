# SPDX-License-Identifier: BSD-3-Clause
"""The congestion window of one path, in frames: never above the target's buffer count, which all its clients share.

Two things tell that there is too much under way: a round in which many frames are lost (a full buffer loses a burst), and
nothing coming back at all. A few lost frames are no such sign, for cables lose frames too: one of 16 is free, and each
further one costs a frame, which the next round brings back. A long delay only stops growth, and only beyond the level that
was reached before: the least round trip is that of a lone frame on an idle machine, and as a brake on everything it would
keep a busy host at the bottom after a few losses.
"""

from __future__ import annotations

from .constants import DELAY_BRAKE, DELAY_SMALL, LOSS_FREE, LOSSES_FEW, WINDOW_CUT, WINDOW_SILENT, WINDOW_START
from .rtt import Rtt


class Window:
    """`size` frames may be outstanding. A cut can be undone once the frame it was made for proves to have been late."""

    __slots__ = ("_before", "_level", "_losses", "_prior", "_recover", "_slow_start", "cap", "size")

    def __init__(self, cap: int) -> None:
        self.cap = max(1, cap)
        self.size = self._level = self._share()
        self._slow_start = float(self.cap)
        # The level is what it grows to whatever the delay: the share, or what a short delay once allowed.
        self._prior = 0.0  # what `undo` brings back
        self._recover = 0  # copies before this one were sent before the last loss was known: of the same round
        self._before = self.size  # what that round began with
        self._losses = 0  # of that round

    def _share(self) -> float:
        """What one client may take of the buffers without looking at the delay."""
        return float(max(1, min(self.cap // 2, WINDOW_START)))

    def set_cap(self, cap: int) -> None:
        """The target's buffer count; 0 and 1 both let one frame out at a time."""
        cap = max(1, cap)
        if cap != self.cap:
            self.cap = cap
            self._level = self._share()
            self._slow_start = max(self._slow_start, float(cap))
        self.size = min(self.size, float(cap))

    def answered(self, rtt: Rtt, count: int = 1) -> None:
        """`count` answers came while the window was full: grow, beyond the level only while the delay does not."""
        if self.size >= self.cap:
            return
        if self.size < self._level or rtt.srtt <= max(DELAY_BRAKE * rtt.least, DELAY_SMALL):
            # A frame a round, and a few where it has been higher: as many as a bad cable takes from a large window.
            pace = max(1.0, self._level / 8) if self.size < self._level else 1.0
            grown = self.size + (count if self.size < self._slow_start else count * pace / self.size)
            self.size = min(grown, float(self.cap))
            self._level = max(self._level, self.size)

    def lost(self, seq: int, next_seq: int) -> None:
        """Copy `seq` was lost: a few of a round are free, some cost a frame each, many a cut for all before `next_seq`."""
        if seq >= self._recover:
            self._recover, self._before, self._losses = next_seq, self.size, 0
            self._prior = max(self._prior, self.size)
        self._losses += 1
        if self._losses > max(LOSSES_FEW, self._before / 8):
            self.size = min(self.size, max(self._before * WINDOW_CUT, WINDOW_SILENT))
        else:
            beyond = max(0, self._losses - int(self._before / LOSS_FREE))
            self.size = min(self.size, max(self._before - beyond, WINDOW_SILENT))
        self._slow_start = self.size

    def silent(self, next_seq: int) -> None:
        """Nothing was heard for a whole timeout: begin anew, quickly up to what a single loss would have left."""
        self._cut(WINDOW_SILENT, max(self.size * WINDOW_CUT, WINDOW_SILENT), next_seq)

    def _cut(self, size: float, slow_start: float, next_seq: int) -> None:
        self._prior = max(self._prior, self.size)
        self.size = min(size, float(self.cap))
        self._level = self._share()
        self._slow_start = slow_start
        self._recover, self._before, self._losses = next_seq, self.size, 0

    def undo(self) -> None:
        """The last cut was made for a frame that was only late."""
        if self._prior:
            self.size = min(max(self.size, self._prior), float(self.cap))
            self._slow_start = max(self._slow_start, self._prior)
            self._level = max(self._level, self.size)
            self._prior = 0.0

    def settled(self, seq: int) -> None:
        """Copy `seq` was answered in time: past the last cut's round, that cut can no longer be undone."""
        if self._prior and seq >= self._recover:
            self._prior = 0.0
