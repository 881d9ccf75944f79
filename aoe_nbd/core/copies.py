# SPDX-License-Identifier: BSD-3-Clause
"""Every copy of a command that was sent: which tag it has, and what it was a copy of.

A tag per copy, because only that tells a late answer from a prompt one, and a ghost from the living. Copies are numbered
by a sequence that starts somewhere unpredictable; the tag is the low 31 bits of that number under bit 31, which marks
userland tags. The table is a ring of parallel columns, so that a run of copies is written as slices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..wire.codes import USER_TAG

if TYPE_CHECKING:
    from .flight import Flight
    from .request import Request

SIZE = 1 << 16
MASK = SIZE - 1
_LOW = USER_TAG - 1

FREE = 0
FLYING = 1  # counted as outstanding
LOST = 2  # declared lost while its request is not done; an answer is still welcome
GHOST = 3  # of a write that is done; holds its range
PROBED = 4  # sent once more as a tail loss probe, which is counted in its place; an answer is still welcome
STALE = 5  # only remembered so that a late answer can be recognised; may be overwritten

_UNUSED = (FREE, STALE)


def tag_of(seq: int) -> int:
    """The wire tag of copy number `seq`."""
    return USER_TAG | seq & _LOW


class Copies:
    """The ring. Index of a copy: its number modulo SIZE, which is also its tag modulo SIZE."""

    def __init__(self, start: int) -> None:
        self.next = start if start & _LOW != _LOW else start + 1
        self.state = bytearray(SIZE)
        self.seq = [0] * SIZE
        self.owner: list[Request | None] = [None] * SIZE
        self.offset = [0] * SIZE
        self.length = [0] * SIZE
        self.sent = [0.0] * SIZE
        self.flight: list[Flight | None] = [None] * SIZE

    def find(self, tag: int) -> int:
        """The number of the copy that has this tag, or -1."""
        i = tag & MASK
        seq = self.seq[i]
        return seq if self.state[i] and tag == tag_of(seq) else -1

    def run(self, most: int, gone: float = float("-inf")) -> int:
        """How many copies in a row, 1 to `most`, may be numbered from `next` on. Skips numbers that are taken.

        A lost copy that was sent by `gone`, so that it cannot arrive any more, gives its place up.
        """
        while self.next & _LOW == _LOW or not self._open(self.next & MASK, gone):
            self.next += 1
        i = self.next & MASK
        most = min(most, SIZE - i, _LOW - (self.next & _LOW))
        if most == 1 or self.state.count(0, i, i + most) == most:
            return most
        n = 1
        while n < most and self._open(i + n, gone):
            n += 1
        return n

    def _open(self, i: int, gone: float) -> bool:
        state = self.state[i]
        return state in _UNUSED or (state in (LOST, PROBED) and self.sent[i] <= gone)

    def add(self, request: Request, offset: int, length: int, step: int, count: int, flight: Flight, now: float) -> int:
        """Number `count` copies (as `run` allowed) of units [offset, offset + length), `step` a copy. Returns the first."""
        seq = self.next
        i = seq & MASK
        if count == 1:
            self.state[i] = FLYING
            self.seq[i], self.owner[i], self.sent[i], self.flight[i] = seq, request, now, flight
            self.offset[i], self.length[i] = offset, length
        else:
            j = i + count
            self.state[i:j] = bytes((FLYING,)) * count
            self.seq[i:j] = range(seq, seq + count)
            self.owner[i:j] = [request] * count
            self.sent[i:j] = [now] * count
            self.flight[i:j] = [flight] * count
            self.offset[i:j] = range(offset, offset + count * step, step)
            self.length[i:j] = [step] * (count - 1) + [length - (count - 1) * step]
        self.next = seq + count
        return seq

    def free_run(self, i: int, j: int) -> None:
        """Forget the copies at indices i .. j - 1."""
        self.state[i:j] = bytes(j - i)
        self.owner[i:j] = [None] * (j - i)
        self.flight[i:j] = [None] * (j - i)

    def free(self, seq: int) -> None:
        """Forget a copy."""
        i = seq & MASK
        self.state[i] = FREE
        self.owner[i] = self.flight[i] = None
