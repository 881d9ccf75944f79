# SPDX-License-Identifier: BSD-3-Clause
"""One request of a client: a range of sectors to read or write, or one command without a range."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from ..wire.codes import SECTOR
from .lock import Range

if TYPE_CHECKING:
    from .path import Path


class Kind(enum.IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    TRIM = 3
    IDENTIFY = 4
    CHECK_POWER = 5
    QUERY = 6  # Query Config, to one path
    PROBE_REPLY = 7  # READ of `count` sectors, to one path, to see whether so large a reply gets through
    PROBE_REQUEST = 8  # IDENTIFY padded by `count` sectors: the same for a request
    LOCK = 9  # sends nothing: holds its range exclusively, for a read-modify-write


RANGED = frozenset((Kind.READ, Kind.WRITE, Kind.TRIM, Kind.LOCK))
CHANGES = frozenset((Kind.WRITE, Kind.TRIM))


class Request:
    """State of one request. Its unit of progress is the sector (READ, WRITE) or the whole (all other kinds).

    `data` is the client's buffer, of count * 512 bytes; the reference is dropped before the request is reported done,
    so a late reply finds nothing to write into. `error` is an errno (0 for success) and `reason` one phrase for it.
    """

    __slots__ = (
        "answered",
        "count",
        "data",
        "done",
        "error",
        "fua",
        "ghosts",
        "kind",
        "lba",
        "left",
        "losses",
        "path",
        "range",
        "reason",
        "refusals",
        "resent",
        "result",
        "submitted",
        "token",
        "under",
        "unsent",
    )

    def __init__(
        self,
        kind: Kind,
        lba: int = 0,
        count: int = 0,
        data: memoryview | None = None,
        fua: bool = False,
        token: Any = None,
        path: Path | None = None,
        under: Request | None = None,
    ) -> None:
        self.kind, self.lba, self.count, self.data, self.fua, self.token = kind, lba, count, data, fua, token
        self.path = path  # if it must go by this path
        self.under = under  # the LOCK request whose range it works in
        units = count if kind <= Kind.WRITE else 1
        if kind <= Kind.WRITE and (data is None or len(data) != count * SECTOR or count < 1):
            raise ValueError(f"{kind.name} of {count} sectors needs a buffer of that size")
        self.answered = bytearray(units)  # one byte a unit, 1 once answered
        self.left = units  # not answered yet
        self.unsent = 0  # first unit that no copy was sent of
        self.range: Range | None = None
        self.resent: list[int] = []  # seqs of copies that were not the only ones of their sectors
        self.losses: dict[int, int] = {}  # offset -> how often a copy from there was lost
        self.ghosts: list[Range] = []  # of a LOCK: what writes inside it have left
        self.refusals = 0
        self.error = 0
        self.reason = ""
        self.result: bytes = b""  # IDENTIFY data
        self.done = False
        self.submitted = 0.0

    @property
    def units(self) -> int:
        return len(self.answered)

    def open_parts(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(offset, length) of the stretches not answered yet within the given units."""
        parts: list[tuple[int, int]] = []
        at, end = offset, offset + length
        while (start := self.answered.find(0, at, end)) >= 0:
            stop = self.answered.find(1, start, end)
            at = end if stop < 0 else stop
            parts.append((start, at - start))
        return parts
