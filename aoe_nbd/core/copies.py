# SPDX-License-Identifier: BSD-3-Clause
"""Every copy of a command that was sent: which tag it has, and what it was a copy of.

A tag per copy, because only that tells a late answer from a prompt one, and a ghost from the living. Copies are numbered
by a sequence that starts somewhere unpredictable; the tag is the low 31 bits of that number under bit 31, which marks
userland tags. Copies that were sent in a row are one `Run`; the table is a ring with each copy's state and run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..wire.codes import USER_TAG

if TYPE_CHECKING:
    from .flight import Flight
    from .path import Path
    from .request import Request

SIZE: Final = 1 << 16
MASK: Final = SIZE - 1
_LOW: Final = USER_TAG - 1

FREE: Final = 0
FLYING: Final = 1  # counted as outstanding
LOST: Final = 2  # declared lost while its request is not done; an answer is still welcome
GHOST: Final = 3  # of a write that is done; holds its range
PROBED: Final = 4  # sent once more as a tail loss probe, which is counted in its place; an answer is still welcome
STALE: Final = 5  # only remembered so that a late answer can be recognised; may be overwritten

_UNUSED = (FREE, STALE)


def tag_of(seq: int) -> int:
    """The wire tag of copy number `seq`."""
    return USER_TAG | seq & _LOW


class Run:
    """Copies seq .. seq + count - 1, sent one after the other by one path at time `sent` (s).

    They cover `length` units of the request from `offset` on: `step` each, the last one what is left. All of them are
    at indices seq & MASK and following of the table, which no run crosses the end of.
    """

    __slots__ = ("count", "flight", "flying", "length", "offset", "path", "request", "sent", "seq", "step")

    def __init__(
        self,
        path: Path,
        flight: Flight,
        request: Request,
        seq: int,
        count: int,
        offset: int,
        length: int,
        step: int,
        sent: float,
    ) -> None:
        self.path, self.flight, self.request = path, flight, request
        self.seq, self.count, self.offset, self.length, self.step = seq, count, offset, length, step
        self.sent = sent
        self.flying = count  # how many of them are in state FLYING

    def part(self, seq: int) -> tuple[int, int]:
        """(offset, length) in the request of copy `seq`."""
        start = (seq - self.seq) * self.step
        return self.offset + start, min(self.step, self.length - start)


class Copies:
    """The ring. Index of a copy: its number modulo SIZE, which is also its tag modulo SIZE."""

    def __init__(self, start: int) -> None:
        self.next = start if start & _LOW != _LOW else start + 1
        self.state = bytearray(SIZE)
        self.run: list[Run | None] = [None] * SIZE

    def find(self, tag: int) -> int:
        """The number of the copy that has this tag, or -1."""
        i = tag & MASK
        run = self.run[i]
        if run is None or not self.state[i]:
            return -1
        seq = run.seq + i - (run.seq & MASK)
        return seq if tag == USER_TAG | seq & _LOW else -1

    def owner(self, seq: int) -> Run:
        """The run that copy `seq`, which `find` or a flight has named, belongs to."""
        run = self.run[seq & MASK]
        assert run is not None
        return run

    def holds(self, seq: int, run: Run) -> bool:
        """Whether the place of copy `seq` of `run` is still its own."""
        return self.run[seq & MASK] is run

    def room(self, most: int, gone: float = float("-inf")) -> int:
        """How many copies in a row, 1 to `most`, may be numbered from `next` on. Skips numbers that are taken.

        A lost copy that was sent by `gone`, so that it cannot arrive any more, gives its place up.
        """
        while self.next & _LOW == _LOW or not self._open(self.next & MASK, gone):
            self.next += 1
        if most == 1:
            return 1
        i = self.next & MASK
        most = min(most, SIZE - i, _LOW - (self.next & _LOW))
        if self.state.count(FREE, i, i + most) == most:
            return most
        n = 1
        while n < most and self._open(i + n, gone):
            n += 1
        return n

    def _open(self, i: int, gone: float) -> bool:
        state = self.state[i]
        if state in _UNUSED:
            return True
        run = self.run[i]
        return state in (LOST, PROBED) and run is not None and run.sent <= gone

    def add(self, run: Run) -> None:
        """Enter a run, whose copies are numbered from `next` on, as many as `room` allowed."""
        i, count = self.next & MASK, run.count
        if count == 1:
            self.state[i] = FLYING
            self.run[i] = run
        else:
            self.state[i : i + count] = _FLYING[:count]
            self.run[i : i + count] = [run] * count
        self.next += count

    def free_run(self, i: int, j: int) -> None:
        """Forget the copies at indices i .. j - 1."""
        self.state[i:j] = bytes(j - i)
        self.run[i:j] = [None] * (j - i)

    def free(self, seq: int) -> None:
        """Forget a copy."""
        i = seq & MASK
        self.state[i] = FREE
        self.run[i] = None


_FLYING: Final = bytes((FLYING,)) * SIZE
