# SPDX-License-Identifier: BSD-3-Clause
"""What copies look like on the wire: one frame at a time, or the headers of runs that are alike as one array."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

import numpy as np

from ..wire.address import Address
from ..wire.codes import AOE_VERSION, ETHERTYPE, MIN_FRAME, SECTOR, Ata, Command
from ..wire.frames import (
    ATA_DTYPE,
    ATA_SIZE,
    FORMS,
    HEADER,
    TRIM_FEATURE,
    Config,
    Reserve,
    Taskfile,
    build_request,
    build_trim,
    taskfile,
)
from .copies import Run, tag_of
from .initiator import Initiator
from .request import Kind

ROW: Final = 64  # bytes from one header to the next in an array of them

_MACS: Final = 12  # bytes
_TAG, _COUNT, _LBA = (ATA_DTYPE.fields[name][1] for name in ("tag", "count", "lba"))  # type: ignore[index]
_WRITE = struct.Struct(f">{_TAG}sI4B6s2x")  # all before the tag as one, for it is the same in most frames
_READ = struct.Struct(f"{_WRITE.format}{MIN_FRAME - ATA_SIZE}x")


def frame(initiator: Initiator, run: Run, index: int = 0) -> tuple[bytes, memoryview | None]:
    """Frame `index` of `run`: its header (padded, where that is the whole frame), and its payload if it carries one."""
    request, path = run.request, run.path
    if request.kind > Kind.WRITE:
        return _question(initiator, run, index), None
    start = run.offset + index * run.step
    size = min(run.step, run.offset + run.length - start)
    opcode = initiator.opcode(request)
    form = FORMS[opcode]  # type: ignore[index]
    lba = (request.lba + start | form.base).to_bytes(6, "little")
    head = path.remote + path.local + _head(initiator.address)
    if request.kind is Kind.READ:
        return _READ.pack(head, tag_of(run.seq + index), form.flags, 0, size, opcode, lba), None
    assert request.data is not None
    header = _WRITE.pack(head, tag_of(run.seq + index), form.flags, 0, size, opcode, lba)
    return header, request.data[start * SECTOR : (start + size) * SECTOR]


@cache
def _head(address: Address) -> bytes:
    """What lies between the MACs and the tag of an ATA command to this LUN."""
    return HEADER.pack(b"", b"", ETHERTYPE, AOE_VERSION << 4, 0, *address, Command.ATA, 0)[_MACS:_TAG]


def _question(initiator: Initiator, run: Run, index: int) -> bytes:
    """The whole frame of a command that is not about a range of sectors."""
    request, path = run.request, run.path
    arg: Config | Reserve | Taskfile
    data = b""
    if request.arg is not None:
        arg = request.arg
    elif request.kind is Kind.QUERY:
        arg = Config()
    elif request.kind is Kind.TRIM:
        arg = taskfile(Ata.DATA_SET_MANAGEMENT, count=1, feature=TRIM_FEATURE)
        data = build_trim(request.lba, request.count)
    elif request.kind is Kind.PROBE_REPLY:
        arg = taskfile(Ata(initiator.opcode(request)), 0, request.count)
    else:
        arg = taskfile(Ata(initiator.opcode(request)))
        if request.kind is Kind.PROBE_REQUEST:
            data = bytes(request.count * SECTOR)
    return build_request(path.remote, path.local, *initiator.address, tag_of(run.seq + index), arg, data)


def together(runs: Sequence[Run], most: int) -> Iterator[Sequence[Run]]:
    """The runs in their order, those joined whose frames may go out together: to one place, of one shape, `most` frames."""
    first, count = 0, 0
    for i, run in enumerate(runs):
        if i > first and (count + run.count > most or not _alike(runs[first], run)):
            yield runs[first:i]
            first, count = i, 0
        count += run.count
    if runs:
        yield runs[first:]


def _alike(a: Run, b: Run) -> bool:
    kind = a.request.kind
    return (
        kind <= Kind.WRITE
        and b.request.kind is kind
        and b.path is a.path
        and b.step == a.step
        and b.request.fua == a.request.fua
    )


class Headers:
    """Headers of runs, made as arrays in memory that is used again and again: rows of ROW bytes.

    Successive runs mostly differ in tags and LBAs only; all else is written only when it changes.
    """

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        """`rows` is a C-contiguous array of n x ROW bytes."""
        self.rows = rows
        self._tags = rows[:, _TAG : _TAG + 4].view(">u4")[:, 0]
        self._lbas = rows[:, _LBA : _LBA + 8].view("<u8")[:, 0]  # and the reserved field behind, which is zero
        self._counts = rows[:, _COUNT]
        self._numbers = np.arange(len(rows))
        self._sectors = self._numbers  # from the first row's LBA to each other's
        self._alike: tuple[object, ...] = ()  # what the rows have in common
        self._odd: list[int] = []  # the rows that carry fewer sectors than the others

    def fill(self, initiator: Initiator, runs: Sequence[Run]) -> int:
        """Write all frames of READ or WRITE runs that go `together` to the rows from 0 on, one run after the other.

        Returns the size of each: 60 bytes (padded) of a READ, 36 of a WRITE.
        """
        run = runs[0]
        path, step = run.path, run.step
        opcode = initiator.opcode(run.request)
        alike = (path.remote, path.local, initiator.address, opcode, step)
        if alike != self._alike:
            self._alike = alike
            header, _ = frame(initiator, run)
            self.rows[:, : len(header)] = np.frombuffer(header, np.uint8)
            self._counts[:] = step
            self._sectors = self._numbers * step
        elif self._odd:
            self._counts[self._odd] = step
        self._odd.clear()
        base = FORMS[opcode].base  # type: ignore[index]
        at = 0
        for run in runs:
            count = run.count
            end = at + count
            lba = run.request.lba + run.offset | base
            np.add(self._numbers[:count], tag_of(run.seq), out=self._tags[at:end], casting="unsafe")
            np.add(self._sectors[:count], lba, out=self._lbas[at:end], casting="unsafe")
            short = run.length - (count - 1) * step
            if short < step:
                self._odd.append(end - 1)
                self._counts[end - 1] = short
            at = end
        return MIN_FRAME if runs[0].request.kind is Kind.READ else ATA_SIZE
