# SPDX-License-Identifier: BSD-3-Clause
"""What a run of copies looks like on the wire: one frame at a time, or all headers of a run as one array."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

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

ROW = 64  # bytes from one header to the next in an array of them

_MACS = 12  # bytes
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


class Headers:
    """Headers of a run, made as arrays in memory that is used again and again: rows of ROW bytes.

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
        self._odd = 0  # the row that carries fewer sectors than the others

    def fill(self, initiator: Initiator, run: Run, first: int, count: int) -> int:
        """Write frames first .. first + count - 1 of a READ or WRITE run to the rows from 0 on.

        Returns the size of each: 60 bytes (padded) of a READ, 36 of a WRITE.
        """
        request, path, step = run.request, run.path, run.step
        opcode = initiator.opcode(request)
        alike = (path.remote, path.local, initiator.address, opcode, step)
        if alike != self._alike:
            self._alike = alike
            header, _ = frame(initiator, run)
            self.rows[:, : len(header)] = np.frombuffer(header, np.uint8)
            self._counts[:] = step
            self._sectors = self._numbers * step
        elif self._counts[self._odd] != step:
            self._counts[self._odd] = step
        start = run.offset + first * step
        lba = request.lba + start | FORMS[opcode].base  # type: ignore[index]
        np.add(self._numbers[:count], tag_of(run.seq + first), out=self._tags[:count], casting="unsafe")
        np.add(self._sectors[:count], lba, out=self._lbas[:count], casting="unsafe")
        short = run.offset + run.length - (start + (count - 1) * step)
        if short < step:
            self._odd = count - 1
            self._counts[self._odd] = short
        return MIN_FRAME if request.kind is Kind.READ else ATA_SIZE
