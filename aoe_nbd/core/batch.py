# SPDX-License-Identifier: BSD-3-Clause
"""Answers that came in a row, taken as one.

A stream's replies arrive as they were asked for: one tag after the other, each the plain success of one request's next
part. Such a stretch is recognised with arrays and booked with slices, at a small part of `Initiator.receive`'s cost a
frame. Whatever is in any way unusual goes to `receive`, which alone knows all the rules.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from ..wire.codes import AOE_VERSION, ETHERTYPE, FAILED, RESPONSE, SECTOR, Command
from ..wire.frames import ATA_DTYPE, ATA_SIZE
from .copies import FLYING, MASK
from .initiator import Initiator
from .path import Path
from .request import Kind

Bytes2D = np.ndarray[Any, np.dtype[np.uint8]]

_FIELDS: Any = ATA_DTYPE.fields
_SOURCE, _TAG = _FIELDS["src"][1], _FIELDS["tag"][1]
_STATUS = _FIELDS["command_status"][1]
_USUAL = struct.Struct(">6sHBBHBB")  # all of the header from source to command
_RESPONSE = AOE_VERSION << 4 | RESPONSE


def receive(
    initiator: Initiator | None,
    link: str,
    rows: Bytes2D,
    lengths: np.ndarray[Any, Any],
    now: float,
    otherwise: Callable[[memoryview], None],
) -> None:
    """Take the frames rows[i, : lengths[i]], in this order; rows are at least 60 bytes wide.

    Stretches of usual answers to `initiator` are booked here, all else goes to `otherwise`, which knows `receive`.
    """
    source = rows[0, _SOURCE : _SOURCE + 6].tobytes()
    path = initiator.path_of(link, source) if initiator is not None else None
    count = len(rows)
    if initiator is None or path is None or not path.believed:
        stops = list(range(1, count + 1))
        usual = [False] * count
    else:
        header = _USUAL.pack(source, ETHERTYPE, _RESPONSE, 0, *initiator.address, Command.ATA)
        same = (rows[:, _SOURCE:_TAG] == np.frombuffer(header, np.uint8)).all(axis=1)
        fine = same & (rows[:, _STATUS] & FAILED == 0) & (lengths >= ATA_SIZE)
        usual = fine.tolist()
        tags = np.ascontiguousarray(rows[:, _TAG : _TAG + 4]).view(">u4")[:, 0].astype(np.int64)
        joined = (np.diff(tags) == 1) & fine[1:] & fine[:-1]
        stops = [*(np.flatnonzero(~joined) + 1).tolist(), count]
    start = 0
    for stop in stops:
        if not (
            path is not None
            and initiator is not None
            and stop - start > 1
            and usual[start]
            and _take(initiator, path, int(tags[start]), rows[start:stop], lengths[start:stop], now)
        ):
            for i in range(start, stop):
                otherwise(rows[i, : lengths[i]].data)
        start = stop


def _take(initiator: Initiator, path: Path, tag: int, rows: Bytes2D, lengths: np.ndarray[Any, Any], now: float) -> bool:
    """Book successful answers to copies tag, tag + 1, … if they are the next parts of one request. False: nothing was done."""
    copies, count = initiator.copies, len(rows)
    seq = copies.find(tag)
    i = seq & MASK
    j = i + count
    if seq < 0 or j > len(copies.state) or copies.state.count(FLYING, i, j) != count:
        return False
    request, flight, step, offset = copies.owner[i], copies.flight[i], copies.length[i], copies.offset[i]
    if request is None or flight is None or request.done or request.kind > Kind.WRITE:
        return False
    last = copies.length[j - 1]
    total = (count - 1) * step + last
    if (
        copies.seq[i:j] != list(range(seq, seq + count))
        or copies.owner[i:j].count(request) != count
        or copies.flight[i:j].count(flight) != count
        or copies.offset[i:j] != list(range(offset, offset + count * step, step))
        or copies.length[i : j - 1].count(step) != count - 1
        or request.answered.count(0, offset, offset + total) != total
    ):
        return False
    if request.kind is Kind.READ:
        size = step * SECTOR
        if int(lengths[:-1].min()) < ATA_SIZE + size or int(lengths[-1]) < ATA_SIZE + last * SECTOR:
            return False
        data = np.frombuffer(request.data, np.uint8)  # type: ignore[arg-type]
        at, whole = offset * SECTOR, count if last == step else count - 1
        data[at : at + whole * size].reshape(whole, size)[:] = rows[:whole, ATA_SIZE : ATA_SIZE + size]
        if whole < count:
            rest = data[at + whole * size : (offset + total) * SECTOR]
            rest[:] = rows[whole, ATA_SIZE : ATA_SIZE + last * SECTOR]
        del data  # the last reference to the client's buffer but the request's own
    request.answered[offset : offset + total] = b"\1" * total
    request.left -= total
    sent = copies.sent[j - 1]
    copies.free_run(i, j)
    initiator.answered_run(path, flight, request, seq, count, sent, step, now)
    return True
