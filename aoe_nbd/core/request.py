# SPDX-License-Identifier: BSD-3-Clause
"""One request of a client: a range of sectors to read or write, or one command without a range."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..wire.codes import SECTOR
from .constants import RESENT_MANY
from .lock import Range

if TYPE_CHECKING:
    from ..wire.frames import Config, Reserve
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
    SET = 9  # of the config string, to one path
    RESERVE = 10  # Reserve/Release, to one path
    LOCK = 11  # sends nothing: holds its range exclusively, for a read-modify-write


RANGED = frozenset((Kind.READ, Kind.WRITE, Kind.TRIM, Kind.LOCK))
CHANGES = frozenset((Kind.WRITE, Kind.TRIM))

_NO_LOSSES: Mapping[int, int] = MappingProxyType({})


class Request:
    """State of one request. Its unit of progress is the sector (READ, WRITE) or the whole (all other kinds).

    `data` is the client's buffer, of count * 512 bytes; the reference is dropped before the request is reported done,
    so a late reply finds nothing to write into. `error` is an errno (0 for success) and `reason` one phrase for it.
    """

    # What most requests never change stands here: a request is made for every few KiB.
    range: Range | None = None
    under: Request | None = None  # the LOCK request whose range it works in
    path: Path | None = None  # if it must go by this path
    arg: Config | Reserve | None = None  # of QUERY, SET and RESERVE
    unsent = 0  # first unit that no copy was sent of
    resent: tuple[int, ...] = ()  # seqs of copies that were not the only ones of their sectors, while they may land
    resent_most: int  # how many of them there may be until they are looked through
    losses: Mapping[int, int]  # offset -> how often a copy from there was lost
    ghosts: tuple[Range, ...] = ()  # of a LOCK: what writes inside it have left
    refusals = 0
    error = 0
    reason = ""
    result = b""  # IDENTIFY data
    done = False
    submitted = 0.0

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
        if path is not None:
            self.path = path
        if under is not None:
            self.under = under
        self.resent_most, self.losses = RESENT_MANY, _NO_LOSSES
        units = 1
        if kind <= Kind.WRITE:
            units = count
            if data is None or len(data) != count * SECTOR or count < 1:
                raise ValueError(f"{kind.name} of {count} sectors needs a buffer of that size")
        self.answered = bytearray(units)  # one byte a unit, 1 once answered
        self.left = units  # not answered yet

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
