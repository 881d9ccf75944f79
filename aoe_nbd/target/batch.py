# SPDX-License-Identifier: BSD-3-Clause
"""Plain reads and writes: alone with as few steps as will do, and stretches of like ones as one.

A stretch is a number of frames that came one after the other and differ in tag, LBA and source only. All are reads or
all are writes, of the same size, to the same export of ours, and `Lun.handle` would carry out each and answer with
success. Such a stretch is recognised with arrays; sectors that follow each other take one system call; the replies are
the requests' headers, turned round as one array. Whatever is in any way unusual goes to `Lun.handle`, which alone knows
all the rules: this module only relies on what it does with a read or write that is in order. All give the same bytes.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np

from ..link.outbox import Outbox
from ..wire.address import Address
from ..wire.codes import AOE_VERSION, ETHERTYPE, MIN_FRAME, RESPONSE, SECTOR, Ata, AtaFlag, Command, Status
from ..wire.frames import ATA_DTYPE, ATA_FRAME, ATA_SIZE
from .lun import Lun
from .personality import OURS
from .state import State

Array: TypeAlias = np.ndarray[Any, Any]

LEAST: Final = 6  # frames that are worth an array
MOST: Final = 64  # frames of a batch, and so of a stretch
_MOST_PAYLOAD: Final = 255 * SECTOR  # bytes of one request
_ROOM: Final = 1 << 18  # bytes that are read in one go: they stay in the CPU's cache until they are sent

_ATA: Final = int(Command.ATA)  # plain numbers: arithmetic on enums is slow
_WRITE, _WIDE = int(AtaFlag.WRITE), int(AtaFlag.EXTENDED)
_ASKED, _ANSWER, _DONE = AOE_VERSION << 4, AOE_VERSION << 4 | RESPONSE, int(Status.DRDY)
_ZEROS = bytes(MIN_FRAME - ATA_SIZE)
_FLAGS = {  # by opcode, what the flags must say of it
    int(Ata.READ): 0,
    int(Ata.READ_EXT): _WIDE,
    int(Ata.WRITE): _WRITE,
    int(Ata.WRITE_EXT): _WIDE | _WRITE,
    int(Ata.WRITE_DMA_FUA_EXT): _WIDE | _WRITE,
}


def _rows(header: bytes) -> Array:
    """The words of `MOST` rows of an outbox that all are this header."""
    return np.tile(np.frombuffer(header, np.uint32), (MOST, 1))


def _mask(*names: str) -> Array:
    """Ones where the named fields are."""
    header = np.zeros((), ATA_DTYPE)
    for name in names:
        header[name] = ~header[name]
    return _rows(header.tobytes())


_SHAPE = _mask("dst", "ethertype", "version_flags", "major", "minor", "command", "flags", "count", "command_status")
_STREAM = _SHAPE | _mask("src", "lba")
_KEPT = _mask("tag", "flags", "count", "lba")  # what a reply repeats of its request
_SOURCE: int = ATA_DTYPE.fields["src"][1]  # type: ignore[index]
_COUNT: int = ATA_DTYPE.fields["count"][1]  # type: ignore[index]
_LBA: int = ATA_DTYPE.fields["lba"][1]  # type: ignore[index]
_WORD, _LITTLE = np.dtype("<u4"), np.dtype("<u8")  # the byte order of an LBA


class Batch:
    """Carries out what comes in, as rows of the receive ring or alone."""

    def __init__(self, exports: Mapping[tuple[int, int], Lun]) -> None:
        self._exports = exports
        # A header and its payload, which begins with a page as O_DIRECT wants it.
        page = memoryview(mmap.mmap(-1, mmap.PAGESIZE + _MOST_PAYLOAD))
        self._reply, self._data = page[mmap.PAGESIZE - ATA_SIZE :], page[mmap.PAGESIZE :]
        self._short = self._reply[:MIN_FRAME]
        self.outbox = Outbox(MOST, ATA_SIZE, _ROOM, MIN_FRAME)
        self._replies = self.outbox.headers.view(np.uint32)

    def one(self, frame: memoryview, mac: bytes, mtu: int) -> memoryview | None:
        """Carry out a single request. Returns the reply, good until the next call; None: it is unusual, nothing was done."""
        if len(frame) < ATA_SIZE:
            return None
        fields = ATA_FRAME.unpack_from(frame)
        dst, src, ethertype, verfl, _, major, minor, command, tag, flags, _, count, opcode, raw, _ = fields
        lun = self._exports.get((major, minor))
        if lun is None or not _plain(lun, dst, ethertype, verfl, command, flags, count, opcode, mac, mtu):
            return None
        lba = int.from_bytes(raw, "little") & (1 << (48 if flags & _WIDE else 28)) - 1
        if lba + count > lun.backend.sectors or not _welcome(lun.state, src):
            return None
        size, reply = count * SECTOR, self._short
        try:
            if flags & _WRITE:
                if lun.backend.read_only or len(frame) < ATA_SIZE + size:
                    return None
                lun.backend.write(frame[ATA_SIZE : ATA_SIZE + size], lba * SECTOR)
                if opcode == Ata.WRITE_DMA_FUA_EXT:
                    lun.backend.flush()
                reply[ATA_SIZE:] = _ZEROS
                lun.counters["write"] += 1
            else:
                lun.backend.read_into(self._data[:size], lba * SECTOR)
                reply = self._reply[: ATA_SIZE + size]
                lun.counters["read"] += 1
        except OSError:
            return None  # done again, which tells whose fault it was
        head = (src, mac, ETHERTYPE, _ANSWER, 0, major, minor, _ATA, tag, flags, 0, count, _DONE, raw, 0)
        ATA_FRAME.pack_into(reply, 0, *head)
        return reply

    def serve(
        self,
        rows: Array,
        lengths: Array,
        mac: bytes,
        mtu: int,
        send: Callable[[int, int], None],
        otherwise: Callable[[list[memoryview]], None],
    ) -> None:
        """Carry out the requests rows[i, : lengths[i]] in order: at most `MOST`.

        After a stretch, `send` is told how many replies are in `outbox`, and their share of payload in bytes.
        The frames between stretches are given to `otherwise`.
        """
        heads = np.ascontiguousarray(rows[:, :ATA_SIZE])
        words, number = heads.view(_WORD), len(heads)
        plain = ((words - _ramp(int(heads[0, _COUNT]))[:number]) & _STREAM[:number]).tobytes()
        stream = plain == plain[:ATA_SIZE] * number  # all from one client, sector after sector: nearly always
        start = 0
        for stop in [number] if stream else _stops(words & _SHAPE[:number]):
            while start < stop:
                part = slice(start, stop)
                done = 0
                if stop - start >= LEAST:
                    done = self._carry_out(heads[part], rows[part], lengths[part], mac, mtu, stream, send)
                if not done:
                    otherwise([rows[i, : lengths[i]].data for i in range(start, stop)])
                    done = stop - start
                start += done

    def _carry_out(
        self,
        heads: Array,
        rows: Array,
        lengths: Array,
        mac: bytes,
        mtu: int,
        stream: bool,
        send: Callable[[int, int], None],
    ) -> int:
        """Carry out frames of one shape, or the first of them. Returns how many; 0: one is unusual, nothing was answered."""
        fields = ATA_FRAME.unpack_from(heads.data)
        dst, src, ethertype, verfl, _, major, minor, command, _, flags, _, count, opcode, raw, _ = fields
        lun = self._exports.get((major, minor))
        if lun is None or not _plain(lun, dst, ethertype, verfl, command, flags, count, opcode, mac, mtu):
            return 0
        size = count * SECTOR
        writes = flags & _WRITE
        number: int = len(heads) if writes else min(len(heads), _ROOM // size)
        if number < len(heads):
            heads, rows, lengths = heads[:number], rows[:number], lengths[:number]
        if np.minimum.reduce(lengths) < (ATA_SIZE + size if writes else ATA_SIZE) or (writes and lun.backend.read_only):
            return 0
        width = 48 if flags & _WIDE else 28
        lba = int.from_bytes(raw, "little") & (1 << width) - 1
        if stream and _straight(lba, number * count, width):
            last, runs = lba + number * count, [(lba, 0, number)]
            welcome = _welcome(lun.state, src)
        else:
            lbas = heads[:, _LBA : _LBA + 8].view(_LITTLE)[:, 0] & (1 << width) - 1
            last, runs = int(lbas.max()) + count, _runs(lbas, count)
            sources = heads[:, _SOURCE : _SOURCE + 6].tobytes()
            welcome = all(_welcome(lun.state, one) for one in {sources[i : i + 6] for i in range(0, len(sources), 6)})
        if not welcome or last > lun.backend.sectors:
            return 0
        try:
            if writes:
                lun.backend.write_rows(rows[:, ATA_SIZE : ATA_SIZE + size], runs)
                if opcode == Ata.WRITE_DMA_FUA_EXT:
                    lun.backend.flush()
            else:
                lun.backend.read_runs(self.outbox.payload, size, runs)
        except OSError:
            return 0  # done again one by one, which tells whose fault it was
        lun.counters["write" if writes else "read"] += number
        replies = self._replies[:number]
        np.bitwise_and(heads.view(np.uint32), _KEPT[:number], out=replies)
        replies |= _reply(lun.address, mac, src)[:number]
        if not stream:
            self.outbox.headers[:number, :6] = heads[:, _SOURCE : _SOURCE + 6]
        send(number, 0 if writes else size)
        return number


def _plain(
    lun: Lun,
    dst: bytes,
    ethertype: int,
    verfl: int,
    command: int,
    flags: int,
    count: int,
    opcode: int,
    mac: bytes,
    mtu: int,
) -> bool:
    """Whether a header that names this export is one of a read or write in order, as far as a header shows."""
    return (
        lun.like is OURS
        and dst == mac
        and ethertype == ETHERTYPE
        and verfl == _ASKED
        and command == _ATA
        and flags & (_WIDE | _WRITE) == _FLAGS.get(opcode)
        and 0 < count <= lun.sector_limit(mtu)
    )


@functools.cache
def _ramp(count: int) -> Array:
    """What a stream's headers differ by from the first: the low word of the LBA grows by `count` from frame to frame."""
    ramp = np.zeros((MOST, ATA_SIZE), np.uint8)
    ramp[:, _LBA : _LBA + 4] = (np.arange(MOST, dtype="<u4") * count).astype("<u4").view(np.uint8).reshape(MOST, 4)
    return ramp.view(_WORD)


def _straight(lba: int, sectors: int, width: int) -> bool:
    """Whether a ramp that begins at `lba` stays within the low word of a wide LBA, or within a narrow one."""
    low = min(width, 32)
    return lba % (1 << low) + sectors <= 1 << low


def _stops(shape: Array) -> list[int]:
    """Where stretches of equal rows end."""
    plain = shape.tobytes()
    if plain == plain[:ATA_SIZE] * len(shape):
        return [len(shape)]
    return [*(np.flatnonzero((shape[1:] != shape[:-1]).any(axis=1)) + 1).tolist(), len(shape)]


def _runs(lbas: Array, count: int) -> list[tuple[int, int, int]]:
    """(LBA, first, last) of each run of frames whose sectors follow each other; `count` are in a frame."""
    starts = [0, *(np.flatnonzero(lbas[1:] - lbas[:-1] != count) + 1).tolist()]
    return list(zip(lbas[starts].tolist(), starts, [*starts[1:], len(lbas)], strict=True))


@functools.lru_cache(maxsize=64)
def _reply(address: Address, mac: bytes, to: bytes) -> Array:
    """What all successful replies from this address to one client have in common."""
    return _rows(ATA_FRAME.pack(to, mac, ETHERTYPE, _ANSWER, 0, *address, _ATA, 0, 0, 0, 0, _DONE, bytes(6), 0))


def _welcome(state: State, source: bytes) -> bool:
    """Whether this client may read and write."""
    return (
        not source[0] & 1
        and (not state.mask or source in state.mask)
        and (not state.reserved or source in state.reserved)
    )
