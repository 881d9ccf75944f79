# SPDX-License-Identifier: BSD-3-Clause
"""Stretches of like requests, carried out as one.

A stretch is a number of frames that came one after the other and differ in tag, LBA and source only. All are reads or
all are writes, of the same size, to the same export of ours, and `Lun.handle` would carry out each and answer with
success. Such a stretch is recognised with arrays; sectors that follow each other take one system call; the replies are
the requests' headers, turned round as one array. Whatever is in any way unusual goes to `Lun.handle`, which alone knows
all the rules: this module only relies on what it does with a read or write that is in order. Both give the same bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..link.outbox import ROW, Outbox
from ..wire.address import Address
from ..wire.codes import AOE_VERSION, ETHERTYPE, MIN_FRAME, RESPONSE, SECTOR, Ata, AtaFlag, Command, Status
from ..wire.frames import ATA_DTYPE, ATA_FRAME, ATA_SIZE
from .lun import Frame, Lun
from .personality import OURS
from .state import State

Array = np.ndarray[Any, Any]

LEAST = 3  # frames that are worth an array
MOST = 64  # frames of a batch, and so of a stretch
_ROOM = 1 << 18  # bytes of a stretch's data, so that they stay in the CPU's cache from the disk to the network

_WRITE, _WIDE = int(AtaFlag.WRITE), int(AtaFlag.EXTENDED)
_FLAGS = {  # by opcode, what the flags must say of it
    int(Ata.READ): 0,
    int(Ata.READ_EXT): _WIDE,
    int(Ata.WRITE): _WRITE,
    int(Ata.WRITE_EXT): _WIDE | _WRITE,
    int(Ata.WRITE_DMA_FUA_EXT): _WIDE | _WRITE,
}


def _mask(*names: str) -> Array:
    """The words of `MOST` headers as the outbox has them, ones where the named fields are."""
    header = np.zeros((), ATA_DTYPE)
    for name in names:
        header[name] = ~header[name]
    return _tile(header.tobytes())


def _tile(header: bytes) -> Array:
    return np.tile(np.frombuffer(header.ljust(ROW, b"\0"), np.uint32), MOST)


_SAME = _mask("dst", "ethertype", "version_flags", "major", "minor", "command", "flags", "count", "command_status")
_KEPT = _mask("tag", "flags", "count", "lba")  # what a reply repeats of its request
_WORDS = ROW // 4
_SOURCE: int = ATA_DTYPE.fields["src"][1]  # type: ignore[index]
_LBA: int = ATA_DTYPE.fields["lba"][1]  # type: ignore[index]
_WIDE_LBA, _NARROW_LBA = (1 << 48) - 1, (1 << 28) - 1
_LITTLE = np.dtype("<u8")
_AT = np.arange(MOST, dtype=np.uint64)


class Batch:
    """Carries out what comes in as rows of the receive ring."""

    def __init__(self, exports: Mapping[tuple[int, int], Lun]) -> None:
        self._exports = exports
        self.outbox = Outbox(MOST, _ROOM)
        self._replies = self.outbox.headers.reshape(-1).view(np.uint32)

    def serve(
        self,
        rows: Array,
        lengths: Array,
        mac: bytes,
        mtu: int,
        send: Callable[[int, int, int], None],
        otherwise: Callable[[list[Frame]], None],
    ) -> None:
        """Carry out the requests rows[i, : lengths[i]] in order: at most `MOST`, 64 bytes wide or more.

        After a stretch, `send` is told the replies in `outbox`: their number, bytes of header, bytes of payload.
        The frames between stretches are given to `otherwise`.
        """
        heads = np.ascontiguousarray(rows[:, :ROW])
        shape = heads.reshape(-1).view(np.uint32) & _SAME[: len(rows) * _WORDS]
        start = 0
        for stop in _stops(shape.reshape(-1, _WORDS)):
            while start < stop:
                done = 0
                if stop - start >= LEAST:
                    done = self._carry_out(heads[start:stop], rows[start:stop], lengths[start:stop], mac, mtu, send)
                if not done:
                    otherwise([rows[i, : lengths[i]].data for i in range(start, stop)])
                    done = stop - start
                start += done

    def _carry_out(
        self, heads: Array, rows: Array, lengths: Array, mac: bytes, mtu: int, send: Callable[[int, int, int], None]
    ) -> int:
        """Carry out frames of one shape, or the first of them. Returns how many; 0: one is unusual, nothing was answered."""
        dst, _, ethertype, verfl, _, major, minor, command, _, flags, _, count, opcode, _, _ = ATA_FRAME.unpack_from(
            heads[0]
        )
        lun = self._exports.get((major, minor))
        if (
            lun is None
            or lun.like is not OURS
            or dst != mac
            or ethertype != ETHERTYPE
            or verfl != AOE_VERSION << 4
            or command != Command.ATA
            or flags & (_WIDE | _WRITE) != _FLAGS.get(opcode)
            or not 0 < count <= lun.sector_limit(mtu)
        ):
            return 0
        size = count * SECTOR
        number = min(len(heads), MOST, _ROOM // size)
        if number < len(heads):
            heads, rows, lengths = heads[:number], rows[:number], lengths[:number]
        writes = flags & _WRITE
        if int(lengths.min()) < (ATA_SIZE + size if writes else ATA_SIZE) or (writes and lun.backend.read_only):
            return 0
        if not _welcome(lun.state, heads):
            return 0
        lbas = heads[:, _LBA : _LBA + 8].view(_LITTLE)[:, 0] & (_WIDE_LBA if flags & _WIDE else _NARROW_LBA)
        if int(lbas.max()) + count > lun.backend.sectors:
            return 0
        runs = _runs(lbas, count)
        try:
            if writes:
                lun.backend.write_rows(rows[:, ATA_SIZE : ATA_SIZE + size], runs)
                if opcode == Ata.WRITE_DMA_FUA_EXT:
                    lun.backend.flush()
            else:
                payload = self.outbox.payload
                for lba, first, last in runs:
                    lun.backend.read_into(payload[first * size : last * size], lba * SECTOR)
        except OSError:
            return 0  # done again one by one, which tells whose fault it was
        lun.counters["write" if writes else "read"] += number
        words = number * _WORDS
        replies = self._replies[:words]
        np.bitwise_and(heads.reshape(-1).view(np.uint32), _KEPT[:words], out=replies)
        replies |= _reply(lun.address, mac)[:words]
        self.outbox.headers[:number, :6] = heads[:, _SOURCE : _SOURCE + 6]
        if writes:
            send(number, MIN_FRAME, 0)
        else:
            send(number, ATA_SIZE, size)
        return number


def _stops(grid: Array) -> list[int]:
    """Where stretches of equal rows end."""
    after, before = grid[1:], grid[:-1]
    if after.tobytes() == before.tobytes():  # nearly always, and much faster
        return [len(grid)]
    return [*(np.flatnonzero((after != before).any(axis=1)) + 1).tolist(), len(grid)]


def _runs(lbas: Array, count: int) -> list[tuple[int, int, int]]:
    """(LBA, first, last) of each run of frames whose sectors follow each other; `count` are in a frame."""
    number = len(lbas)
    lba = int(lbas[0])
    if lbas.tobytes() == (_AT[:number] * count + lba).tobytes():
        return [(lba, 0, number)]
    starts = [0, *(np.flatnonzero(lbas[1:] - lbas[:-1] != count) + 1).tolist()]
    return list(zip(lbas[starts].tolist(), starts, [*starts[1:], number], strict=True))


@functools.lru_cache(maxsize=64)
def _reply(address: Address, mac: bytes) -> Array:
    """What all successful replies from this address have in common."""
    verfl, status = AOE_VERSION << 4 | RESPONSE, int(Status.DRDY)
    return _tile(
        ATA_FRAME.pack(bytes(6), mac, ETHERTYPE, verfl, 0, *address, Command.ATA, 0, 0, 0, 0, status, bytes(6), 0)
    )


def _welcome(state: State, heads: Array) -> bool:
    """Whether all senders may use the export; different ones may where everyone may."""
    sources = heads[:, _SOURCE : _SOURCE + 6]
    first = sources[0].tobytes()
    if sources.tobytes() == first * len(heads):
        held = state.reserved and first not in state.reserved
        return not (first[0] & 1 or held or (state.mask and first not in state.mask))
    return not (state.mask or state.reserved or (sources[:, 0] & 1).any())
