# SPDX-License-Identifier: BSD-3-Clause
"""Answers that came in a row, taken as one.

Replies arrive mostly as they were asked for: one tag after the other, each the plain success of the next copy. Such a
stretch is recognised by comparing a few columns of the array of frames with what they must be, and booked run by run with
slices, at a small part of `Initiator.receive`'s cost a frame. Whatever is in any way unusual goes to `receive`, which
alone knows all the rules.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np

from ..wire.codes import AOE_VERSION, ETHERTYPE, FAILED, RESPONSE, SECTOR, Command
from ..wire.frames import ATA_DTYPE, ATA_SIZE
from .copies import FLYING, MASK, SIZE, Run
from .initiator import Initiator
from .path import Path
from .request import Kind

Array: TypeAlias = np.ndarray[Any, Any]

_FIELDS: Any = ATA_DTYPE.fields
_SOURCE, _TAG, _STATUS = (_FIELDS[name][1] for name in ("src", "tag", "command_status"))
_INDEX, _INDEX_END = _TAG + 2, _TAG + 4  # the tag's low 16 bits, by which its copy is found
_USUAL = struct.Struct(">6sHBBHBBI")  # from source to tag
_RESPONSE: Final = AOE_VERSION << 4 | RESPONSE
_INDICES = np.arange(SIZE, dtype=">u2").tobytes()
_DATA: Final = ATA_SIZE
_FAILED: Final = int(FAILED)


def lone(initiator: Initiator, head: bytes) -> bool:
    """Whether the frame that begins with these 24 bytes answers, if any, a copy that was sent alone, as others beside it then."""
    run = initiator.copies.run[int.from_bytes(head[_INDEX:_INDEX_END], "big")]
    return run is None or run.count == 1


def receive(
    initiator: Initiator | None,
    link: str,
    rows: Array,
    lengths: Array,
    now: float,
    otherwise: Callable[[memoryview], None],
) -> None:
    """Take the frames rows[i, : lengths[i]], in this order; rows are at least 60 bytes wide.

    Stretches of usual answers to `initiator` are booked here, all else goes to `otherwise`, which knows `receive`.
    """
    at, count = 0, len(rows)
    while at < count:
        booked = 0
        if initiator is not None:
            run = initiator.copies.run[int.from_bytes(rows[at, _INDEX:_INDEX_END].tobytes(), "big")]
            if run is not None and run.count > 1:  # for a lone frame, `receive` is quicker
                booked = _stretch(initiator, link, rows[at:], lengths[at:], now)
        if not booked:
            otherwise(rows[at, : lengths[at]].data)
            booked = 1
        at += booked


def _stretch(initiator: Initiator, link: str, rows: Array, lengths: Array, now: float) -> int:
    """Book the usual answers that `rows` begins with. Returns how many."""
    head = rows[0, :ATA_SIZE].tobytes()
    source, ethertype, flags, error, shelf, slot, command, tag = _USUAL.unpack_from(head, _SOURCE)
    if (ethertype, flags, error, command) != (ETHERTYPE, _RESPONSE, 0, Command.ATA) or head[_STATUS] & _FAILED:
        return 0
    path = initiator.path_of(link, source)
    if path is None or not path.believed or (shelf, slot) != initiator.address:
        return 0
    seq = initiator.copies.find(tag)
    if seq < 0:
        return 0
    first = seq & MASK
    count = min(len(rows), SIZE - first)
    # All columns at once, as bytes: for so few rows that is far quicker than to compare them as arrays.
    tags, in_a_row = rows[:count, _INDEX:_INDEX_END].tobytes(), _INDICES[2 * first : 2 * (first + count)]
    count = common(tags, in_a_row) // 2  # fewer if a frame got lost
    if (
        rows[:count, _SOURCE:_INDEX].tobytes() != head[_SOURCE:_INDEX] * count
        or rows[:count, _STATUS].tobytes() != head[_STATUS : _STATUS + 1] * count
    ):
        count = _alike(rows, head, count)
    lengths = lengths[:count]
    shortest = int(lengths[0])
    if lengths.tobytes() != lengths[:1].tobytes() * count:
        shortest = int(lengths.min())
    if shortest < ATA_SIZE:
        return 0
    booked = 0
    while booked < count:
        run = initiator.copies.run[seq & MASK]
        if run is None or not run.seq <= seq < run.seq + run.count:
            break
        n = min(count - booked, run.seq + run.count - seq)
        end = booked + n
        if not _take(initiator, path, run, seq, rows[booked:end], lengths[booked:end], shortest, now):
            break
        booked, seq = end, seq + n
    return booked


def common(a: bytes, b: bytes) -> int:
    """How many bytes two strings of one length begin with in common, 1 or more."""
    if a == b:
        return len(a)
    same, different = 0, len(a)
    while different - same > 1:
        middle = (same + different) // 2
        if a[:middle] == b[:middle]:
            same = middle
        else:
            different = middle
    return same


def _alike(rows: Array, head: bytes, count: int) -> int:
    """How many of `count` rows, 1 or more, are as usual as the first."""
    fine = (rows[:count, _SOURCE:_INDEX] == np.frombuffer(head[_SOURCE:_INDEX], np.uint8)).all(axis=1)
    fine &= rows[:count, _STATUS] == head[_STATUS]
    return count if fine.all() else int(fine.argmin())


def _take(
    initiator: Initiator, path: Path, run: Run, seq: int, rows: Array, lengths: Array, shortest: int, now: float
) -> bool:
    """Book successful answers to copies seq, seq + 1, … of `run`. False: nothing was done."""
    copies, request, count, step = initiator.copies, run.request, len(rows), run.step
    i = seq & MASK
    j = i + count
    if copies.state.count(FLYING, i, j) != count or copies.run[i:j].count(run) != count:
        return False
    if request.done or request.kind > Kind.WRITE:
        return False
    offset = run.offset + (seq - run.seq) * step
    total = min(count * step, run.offset + run.length - offset)
    if request.answered.count(0, offset, offset + total) != total:
        return False
    if request.kind is Kind.READ:
        size, whole = step * SECTOR, total // step
        if shortest < _DATA + size:
            wanted = np.full(count, _DATA + size)
            wanted[whole:] = _DATA + (total - whole * step) * SECTOR
            if (lengths < wanted).any():
                return False
        data = np.frombuffer(request.data, np.uint8)  # type: ignore[arg-type]
        at, end = offset * SECTOR, (offset + total) * SECTOR
        middle = at + whole * size
        if whole:
            data[at:middle].reshape(whole, size)[:] = rows[:whole, _DATA : _DATA + size]
        if middle < end:
            data[middle:end] = rows[whole, _DATA : _DATA + end - middle]
        del data  # the last reference to the client's buffer but the request's own
    request.answered[offset : offset + total] = b"\1" * total
    request.left -= total
    initiator.answered_run(path, run, seq + count - 1, count, now)
    return True
