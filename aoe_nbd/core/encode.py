# SPDX-License-Identifier: BSD-3-Clause
"""What a run of copies looks like on the wire: one frame at a time, or all headers of a run as one array."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ..wire.codes import AOE_VERSION, ETHERTYPE, MIN_FRAME, SECTOR, Ata, Command
from ..wire.frames import (
    ATA_DTYPE,
    ATA_FRAME,
    ATA_SIZE,
    FORMS,
    TRIM_FEATURE,
    Config,
    build_request,
    build_trim,
    taskfile,
)
from .copies import tag_of
from .initiator import Initiator, Run
from .request import Kind

_PADDED = struct.Struct(f"{ATA_FRAME.format}{MIN_FRAME - ATA_SIZE}x")
_TAG, _COUNT, _LBA = (ATA_DTYPE.fields[name][1] for name in ("tag", "count", "lba"))  # type: ignore[index]
_INDEX = np.arange(1024, dtype=np.int64)


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
    if request.kind > Kind.WRITE:
        return build_request(path.remote, path.local, address.shelf, address.slot, tag, taskfile(opcode)), None
    start = offset + index * step
    size = min(step, offset + length - start)
    form = FORMS[opcode]
    lba = (request.lba + start | form.base).to_bytes(6, "little")
    fields = (
        *(path.remote, path.local, ETHERTYPE, AOE_VERSION << 4, 0, *address, Command.ATA, tag),
        *(form.flags, 0, size, opcode, lba, 0),
    )
    if request.kind is Kind.READ:
        return _PADDED.pack(*fields), None
    assert request.data is not None
    return ATA_FRAME.pack(*fields), request.data[start * SECTOR : (start + size) * SECTOR]


def headers(initiator: Initiator, run: Run) -> np.ndarray[Any, Any]:
    """The headers of all frames of a READ or WRITE run, one a row: 60 bytes (padded) of a READ, 36 of a WRITE."""
    _, request, seq, count, offset, length, step = run
    first, _ = frame(initiator, run)
    rows = np.empty((count, len(first)), np.uint8)
    rows[:] = np.frombuffer(first, np.uint8)
    index = _INDEX[:count] if count <= len(_INDEX) else np.arange(count, dtype=np.int64)
    rows[:, _TAG : _TAG + 4] = (index + tag_of(seq)).astype(">u4").view(np.uint8).reshape(count, 4)
    lba = index * step + (request.lba + offset | FORMS[Ata(initiator.opcode(request))].base)
    rows[:, _LBA : _LBA + 6] = lba.astype("<i8").view(np.uint8).reshape(count, 8)[:, :6]
    rows[count - 1, _COUNT] = length - (count - 1) * step
    return rows
