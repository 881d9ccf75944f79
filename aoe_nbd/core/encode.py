# SPDX-License-Identifier: BSD-3-Clause
"""What a run of copies looks like on the wire: one frame at a time, or all headers of a run as one array."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..wire.codes import MIN_FRAME, SECTOR, Ata, AtaFlag, Command
from ..wire.frames import ATA_DTYPE, ATA_SIZE, TRIM_FEATURE, Config, build_header, build_request, build_trim, taskfile
from .copies import tag_of
from .initiator import Initiator, Run
from .request import Kind


def frame(initiator: Initiator, run: Run, index: int = 0) -> tuple[bytes, memoryview | None]:
    """Frame `index` of `run`: its header (padded, where that is the whole frame), and its payload if it carries one."""
    path, request, seq, _, offset, length, step = run
    address, tag = initiator.address, tag_of(seq + index)
    if request.kind is Kind.QUERY:
        return build_request(path.remote, path.local, address.shelf, address.slot, tag, Config()), None
    opcode = Ata(initiator.opcode(request))
    if request.kind is Kind.TRIM:
        registers = taskfile(opcode, count=1, feature=TRIM_FEATURE)
        data = build_trim(request.lba, request.count)
        return build_request(path.remote, path.local, address.shelf, address.slot, tag, registers, data), None
    if request.kind is Kind.PROBE_REQUEST:
        padding = bytes(request.count * SECTOR)
        return build_request(path.remote, path.local, address.shelf, address.slot, tag, taskfile(opcode), padding), None
    if request.kind is Kind.PROBE_REPLY:
        registers = taskfile(opcode, 0, request.count)
        return build_request(path.remote, path.local, address.shelf, address.slot, tag, registers), None
    start = offset + index * step
    size = min(step, offset + length - start) if request.kind <= Kind.WRITE else 0
    registers = taskfile(opcode, request.lba + start, size)
    header = build_header(path.remote, path.local, address.shelf, address.slot, Command.ATA, tag) + registers.pack()
    if request.kind is Kind.WRITE:
        assert request.data is not None
        return header, request.data[start * SECTOR : (start + size) * SECTOR]
    return header.ljust(MIN_FRAME, b"\0"), None


def headers(initiator: Initiator, run: Run) -> np.ndarray[Any, Any]:
    """The headers of all frames of a READ or WRITE run, one a row: 60 bytes (padded) of a READ, 36 of a WRITE."""
    _, request, seq, count, offset, length, step = run
    first, _ = frame(initiator, run)
    rows = np.empty((count, len(first)), np.uint8)
    rows[:] = np.frombuffer(first, np.uint8)
    index = np.arange(count, dtype=np.int64)
    at = {name: spec[1] for name, spec in (ATA_DTYPE.fields or {}).items()}
    tags = np.array([tag_of(seq)], ">u4") + index.astype(">u4")  # a run never crosses the end of the tags
    rows[:, at["tag"] : at["tag"] + 4] = tags.astype(">u4").view(np.uint8).reshape(count, 4)
    lba = (request.lba + offset + index * step).astype("<u8")
    if not first[at["flags"]] & AtaFlag.EXTENDED:
        lba |= np.uint64(0xE << 28)
    rows[:, at["lba"] : at["lba"] + 6] = lba.view(np.uint8).reshape(count, 8)[:, :6]
    rows[count - 1, at["count"]] = length - (count - 1) * step
    assert rows.shape[1] >= ATA_SIZE
    return rows
