# SPDX-License-Identifier: BSD-3-Clause
"""One export, sans-IO but for its storage: a request frame in, reply frames out.

No sockets, clocks or threads here. Every reply is built from zeros, from the storage and from the request that it
answers, so nothing of another packet can be in it; where a `personality` leaks, it leaks `JUNK`.
"""

from __future__ import annotations

import bisect
import collections
import random
import socket
from collections.abc import Callable, Sequence
from typing import Final

from .. import __version__
from ..wire.address import Address
from ..wire.codes import (
    ALL_SHELVES,
    ALL_SLOTS,
    AOE_VERSION,
    BROADCAST_MAC,
    ERROR,
    ETHERTYPE,
    MAX_STRING,
    MIN_FRAME,
    RESPONSE,
    SECTOR,
    AoeError,
    Ata,
    AtaError,
    AtaFlag,
    Command,
    ConfigCommand,
    MaskCommand,
    MaskDirectiveCommand,
    MaskError,
    ReserveCommand,
    Status,
)
from ..wire.frames import (
    ATA,
    ATA_FRAME,
    ATA_SIZE,
    CONFIG,
    HEADER,
    HEADER_SIZE,
    TRIM_FEATURE,
    FrameError,
    MaskList,
    Reserve,
    mtu_sectors,
    parse_trim,
)
from ..wire.identify import Identify
from .backend import Backend, serial_of, wwn_of
from .personality import JUNK, OURS, Facts, Order, Padding, Personality, Refusal, Unknown, Versions, Width
from .state import State

Frame = bytes | memoryview
Replies = list[bytes | bytearray]

_EXT = frozenset({Ata.READ_EXT, Ata.WRITE_EXT, Ata.WRITE_DMA_FUA_EXT})
_WRITES = frozenset({Ata.WRITE, Ata.WRITE_EXT, Ata.WRITE_DMA_FUA_EXT})
_TRANSFERS = _WRITES | {Ata.READ, Ata.READ_EXT}
_EXTENDED, _WRITE = int(AtaFlag.EXTENDED), int(AtaFlag.WRITE)  # plain numbers: arithmetic on enums is slow
_OK: Final = int(Status.DRDY)
_ERR: Final = int(Status.ERR)
_FAILED: Final = int(Status.DRDY | Status.ERR)
_BROKEN: Final = int(Status.DRDY | Status.DF | Status.ERR)
_CONFIG_END: Final = HEADER_SIZE + CONFIG.size
_LIST_MOST: Final = 255
_ARG_SIZE = {Command.ATA: 12, Command.CONFIG: 8, Command.MASK: 4, Command.RESERVE: 2}
TRIM_BLOCKS: Final = 1  # of a DATA SET MANAGEMENT: 64 ranges, 2 GiB


class _Refused(Exception):
    """An AoE error to answer with; `arg` is what follows the header."""

    def __init__(self, code: int, arg: bytes = b"") -> None:
        self.code, self.arg = code, arg


class _Silence(Exception):
    """No answer, for this reason."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Request:
    """One request, its header taken apart."""

    __slots__ = ("command", "dst", "error", "frame", "mac", "mtu", "src", "tag", "verfl")

    def __init__(self, frame: Frame, mac: bytes, mtu: int) -> None:
        self.frame, self.mac, self.mtu = frame, mac, mtu
        self.dst, self.src, _, self.verfl, self.error, _, _, self.command, self.tag = HEADER.unpack_from(frame)


class Lun:
    """One export. `counters` counts what was done and dropped, by reason."""

    def __init__(
        self,
        address: Address,
        backend: Backend,
        state: State | None = None,
        buffers: int | None = None,
        serial: str | None = None,
        like: Personality = OURS,
        seed: int | None = None,
    ) -> None:
        """`serial` None makes one from address and storage; `seed` is for what a personality does at random."""
        self.address, self.backend, self.like = address, backend, like
        self.state = state or State()
        self.buffers = like.buffers if buffers is None else buffers
        self.serial = serial or serial_of(str(address), backend.identity())
        self.counters: collections.Counter[str] = collections.Counter()
        self._random = random.Random(seed)
        self._limit = 2 if like.limit_at_query else None  # None: the limit follows the MTU
        self._commands: dict[int, Callable[[_Request], Replies]] = {
            Command.ATA: self._ata,
            Command.CONFIG: self._config,
            Command.MASK: self._mask,
            Command.RESERVE: self._reserve,
        }

    # -- in and out --------------------------------------------------------------------------------------------------

    def handle(self, frame: Frame, mac: bytes, mtu: int) -> Replies:
        """Carry out one frame that came in on the link with our address `mac`. Returns the replies, mostly one or none.

        Any bytes may be given. Nothing returned refers to `frame`'s memory.
        """
        try:
            return self._answer(frame, mac, mtu)
        except _Silence as silence:
            self.counters[silence.reason] += 1
            return []

    def handle_batch(self, frames: Sequence[Frame], mac: bytes, mtu: int) -> Replies:
        """Carry out frames that arrived together, in the order that this target keeps (ours: as they came)."""
        if self.like.order is Order.OFFSET:
            frames = sorted(frames, key=_offset)
        elif self.like.order is Order.RANDOM:
            frames = self._random.sample(list(frames), len(frames))
        return [reply for frame in frames for reply in self.handle(frame, mac, mtu)]

    def announce(self, mac: bytes, mtu: int) -> Replies:
        """What to send when the export appears or changes: to everyone, or to each member of the mask."""
        self._query_limit(mtu)
        argument = self._config_arg(ConfigCommand.READ, mtu)
        verfl = self.like.announce_version << 4 | RESPONSE
        shelf, slot = self.address
        return [
            self._short(HEADER.pack(to, mac, ETHERTYPE, verfl, 0, shelf, slot, Command.CONFIG, 0) + argument)
            for to in self.state.mask or [BROADCAST_MAC]
        ]

    def refresh(self) -> bool:
        """Look at the storage's size again. Returns whether it changed."""
        return self.like.follows_size and self.backend.refresh()

    def sector_limit(self, mtu: int) -> int:
        """Sectors that one request may have on a link of this MTU."""
        if self._limit is not None:
            return self._limit
        most = mtu_sectors(mtu)
        return 1 << min(most.bit_length() - 1, 6) if self.like.power_of_two and most > 8 else most

    def _query_limit(self, mtu: int) -> None:
        if self.like.limit_at_query:
            self._limit = mtu_sectors(mtu)

    def _answer(self, frame: Frame, mac: bytes, mtu: int) -> Replies:
        like = self.like
        if len(frame) < like.least_request:
            raise _Silence("short")
        dst, src, ethertype, verfl, _, major, minor, command, _ = HEADER.unpack_from(frame)
        if ethertype != ETHERTYPE:
            raise _Silence("ethertype")
        if verfl & RESPONSE and not like.answers_responses:
            raise _Silence("response")
        if dst != mac and dst != BROADCAST_MAC and like.checks_destination:
            raise _Silence("other-host")
        shelf, slot = self.address
        if (major != shelf or minor != slot) and not self._wildcard(major, minor):
            raise _Silence("other-address")
        if src[0] & 1:
            raise _Silence("source")
        if self.state.mask and src not in self.state.mask:
            raise _Silence("masked")
        request = _Request(frame, mac, mtu)
        try:
            if verfl >> 4 != AOE_VERSION and like.versions is not Versions.ANY:
                if like.versions is Versions.SILENCE:
                    raise _Silence("version")
                raise _Refused(AoeError.UNSUPPORTED_VERSION)
            if command not in like.commands:
                return self._unknown(request)
            return self._commands[command](request)
        except _Refused as refused:
            return [self._refuse(request, refused)]

    def _wildcard(self, major: int, minor: int) -> bool:
        shelf, slot = self.address
        if major == ALL_SHELVES and minor == ALL_SLOTS:
            return True
        return self.like.half_wildcards and major in (shelf, ALL_SHELVES) and minor in (slot, ALL_SLOTS)

    def _header(self, request: _Request, flags: int = 0, error: int = 0) -> bytes:
        like = self.like
        shelf, slot = self.address
        verfl = (request.verfl | like.flags_or if like.echo_flags else AOE_VERSION << 4) | RESPONSE | flags
        if like.echo_error and not flags & ERROR:
            error = request.error
        return HEADER.pack(request.src, request.mac, ETHERTYPE, verfl, error, shelf, slot, request.command, request.tag)

    def _short(self, reply: bytes) -> bytes:
        """A reply that may be under 60 bytes, filled up as this target does."""
        return reply.ljust(MIN_FRAME, b"\0") if self.like.padding is Padding.ZEROS else reply

    def _reply(self, request: _Request, argument: bytes) -> Replies:
        """A successful reply of commands 1 to 3."""
        if not _fits(argument, request.mtu):
            raise _Refused(AoeError.BAD_ARGUMENT)
        return [self._short(self._header(request) + argument)]

    def _refuse(self, request: _Request, refused: _Refused) -> bytes:
        like, frame = self.like, request.frame
        self.counters[f"aoe-error-{int(refused.code)}"] += 1
        header = self._header(request, ERROR, refused.code)
        if request.command == Command.CONFIG and like.bare_config_errors:
            return header
        if like.shifted_errors:
            return header + bytes(frame[HEADER_SIZE + _ARG_SIZE.get(request.command, 0) :])
        if request.command == Command.ATA and not refused.arg and len(frame) >= ATA_SIZE:
            if like.padding is Padding.STALE:
                return (header + bytes(frame[HEADER_SIZE:]) + JUNK * 2)[:MIN_FRAME]
            refused.arg = bytes(frame[HEADER_SIZE:ATA_SIZE])
        return self._short(header + refused.arg if _fits(refused.arg, request.mtu) else header)

    def _unknown(self, request: _Request) -> Replies:
        how, frame = self.like.unknown, bytes(request.frame)
        if how is Unknown.SILENCE or (how is Unknown.COPY and request.command == 4):
            raise _Silence("command")
        self.counters["aoe-error-1"] += 1
        header = self._header(request, ERROR, AoeError.UNRECOGNIZED_COMMAND)
        if how is Unknown.ECHO:
            return [header + frame[HEADER_SIZE:]]
        return [header + frame if how is Unknown.COPY else self._short(header)]

    # -- command 0: ATA ----------------------------------------------------------------------------------------------

    def _ata(self, request: _Request) -> Replies:
        like, frame = self.like, request.frame
        if len(frame) < ATA_SIZE:
            raise _Silence("short")
        flags, feature, count, opcode, lba, _ = ATA.unpack_from(frame, HEADER_SIZE)
        blocked = opcode != Ata.IDENTIFY and (like.reserve_blocks_all or opcode in _TRANSFERS)
        if blocked and not self._holds(request, by_destination=False):
            raise _Refused(AoeError.TARGET_RESERVED)
        if opcode not in like.opcodes:
            return self._ata_error(request, AtaError.ABRT)
        if opcode in _TRANSFERS:
            return self._transfer(request, flags, count, opcode, lba)
        if opcode == Ata.IDENTIFY:
            if like.identify_count_one and count != 1:
                raise _Refused(AoeError.BAD_ARGUMENT)
            if not mtu_sectors(request.mtu):
                raise _Refused(AoeError.BAD_ARGUMENT)  # the reply would not go through this link
            self.refresh()
            self.counters["identify"] += 1
            return self._ata_reply(request, _OK, 0, 0 if like.clears_count else count, self.identify())
        if opcode == Ata.CHECK_POWER:
            return self._ata_reply(request, _OK, 0, 0xFF)  # active
        if opcode == Ata.DATA_SET_MANAGEMENT:
            return self._trim(request, feature, count)
        return self._flush(request, count, opcode)

    def _transfer(self, request: _Request, flags: int, count: int, opcode: int, raw: bytes) -> Replies:
        like, frame, backend = self.like, request.frame, self.backend
        wide, writes = opcode in _EXT, opcode in _WRITES
        extended = bool(flags & _EXTENDED)
        if (like.width is Width.AGREE and extended != wide) or (like.checks_w and bool(flags & _WRITE) != writes):
            return self._ata_error(request, AtaError.ABRT)
        if like.width is Width.FLAG:
            wide = extended
        lba = int.from_bytes(raw, "little") if wide else int.from_bytes(raw[:4], "little") & 0x0FFFFFFF
        if count == 0 and like.zero_sectors is not Refusal.ACCEPT:
            return self._turn_down(request, like.zero_sectors, "no-sectors")
        if count > self.sector_limit(request.mtu) and like.too_many is not Refusal.ACCEPT:
            return self._turn_down(request, like.too_many, "too-many")
        end = ATA_SIZE + count * SECTOR
        if writes and len(frame) < end and like.short_data is not Refusal.ACCEPT:
            return self._turn_down(request, like.short_data, "short-data")
        if lba + count > backend.sectors and like.checks_bounds:
            return self._ata_error(request, AtaError.IDNF, like.bounds_status)
        if writes:
            if backend.read_only and count:
                return self._ata_error(request, AtaError.ABRT)
            return self._write(request, count, opcode, lba, end)
        return self._read(request, count, lba)

    def _turn_down(self, request: _Request, how: Refusal, reason: str) -> Replies:
        if how is Refusal.SILENCE:
            raise _Silence(reason)
        if how is Refusal.AOE:
            raise _Refused(AoeError.BAD_ARGUMENT)
        return self._ata_error(request, AtaError.ABRT)

    def _read(self, request: _Request, count: int, lba: int) -> Replies:
        like = self.like
        if not like.checks_bounds or like.partial_io:
            return self._read_loosely(request, count, lba)
        reply = bytearray(max(ATA_SIZE + count * SECTOR, MIN_FRAME))
        try:
            self.backend.read_into(memoryview(reply)[ATA_SIZE : ATA_SIZE + count * SECTOR], lba * SECTOR)
        except OSError:
            return self._ata_error(request, AtaError.UNC, _BROKEN)
        self.counters["read"] += 1
        flags, _, _, _, raw, _ = ATA.unpack_from(request.frame, HEADER_SIZE)
        left = 0 if like.clears_count else count
        reply[:ATA_SIZE] = self._header(request) + ATA.pack(flags, 0, left, _OK, raw, 0)
        return [reply]

    def _read_loosely(self, request: _Request, count: int, lba: int) -> Replies:
        """As targets read that do not make sure of the end of the storage."""
        data = bytearray()
        try:
            while len(data) < count * SECTOR and lba * SECTOR + len(data) < 1 << 63:
                sector = bytearray(SECTOR)
                self.backend.read_into(memoryview(sector), lba * SECTOR + len(data))
                data += sector
        except OSError:
            pass
        self.counters["read"] += 1
        done = len(data) // SECTOR
        if done == count:
            return self._ata_reply(request, _OK, 0, 0 if self.like.clears_count else count, bytes(data))
        if self.like.partial_io:
            return self._ata_reply(request, _FAILED, AtaError.ABRT, count - done, bytes(data))
        filled = (bytes(data) + JUNK * (count * SECTOR // len(JUNK) + 1))[: count * SECTOR]
        if done:
            return self._ata_reply(request, _OK, 0, count, filled)
        return self._ata_reply(request, _FAILED, AtaError.ABRT, count, filled)

    def _write(self, request: _Request, count: int, opcode: int, lba: int, end: int) -> Replies:
        data = request.frame[ATA_SIZE:end]
        if len(data) < count * SECTOR:
            data = (bytes(data) + JUNK * (count * SECTOR // len(JUNK) + 1))[: count * SECTOR]
        try:
            if count:
                self.backend.write(data, lba * SECTOR)
            if opcode == Ata.WRITE_DMA_FUA_EXT:
                self.backend.flush()
        except (OSError, OverflowError):
            return self._ata_error(request, AtaError.ABRT, _BROKEN)
        self.counters["write"] += 1
        return self._ata_reply(request, _OK, 0, 0 if self.like.clears_count else count)

    def _flush(self, request: _Request, count: int, opcode: int) -> Replies:
        like = self.like
        self.counters["flush"] += 1
        if like.flush_status:
            return self._ata_reply(request, like.flush_status[opcode], self._random.choice(like.flush_error), count)
        try:
            if not self.backend.read_only:
                self.backend.flush()
        except OSError:
            return self._ata_error(request, AtaError.ABRT, _BROKEN)
        return self._ata_reply(request, _OK, 0, count)

    def _trim(self, request: _Request, feature: int, count: int) -> Replies:
        if feature != TRIM_FEATURE or not 0 < count <= TRIM_BLOCKS or not self.backend.trims:
            return self._ata_error(request, AtaError.ABRT)
        if count > self.sector_limit(request.mtu) or len(request.frame) < ATA_SIZE + count * SECTOR:
            raise _Refused(AoeError.BAD_ARGUMENT)
        ranges = parse_trim(request.frame[ATA_SIZE : ATA_SIZE + count * SECTOR])
        if any(lba + n > self.backend.sectors for lba, n in ranges):
            return self._ata_error(request, AtaError.IDNF)
        try:
            for lba, n in ranges:
                self.backend.zero(lba * SECTOR, n * SECTOR)
        except OSError:
            return self._ata_error(request, AtaError.ABRT, _BROKEN)
        self.counters["trim"] += 1
        return self._ata_reply(request, _OK, 0, count)

    def _ata_error(self, request: _Request, error: int, status: int = _FAILED) -> Replies:
        self.counters[f"ata-error-{int(error):#04x}"] += 1
        return self._ata_reply(request, status, error, request.frame[HEADER_SIZE + 2])

    def _ata_reply(self, request: _Request, status: int, error: int, count: int, data: bytes = b"") -> Replies:
        like, frame = self.like, request.frame
        flags, _, asked, _, raw, _ = ATA.unpack_from(frame, HEADER_SIZE)
        header = self._header(request, ERROR if like.aoe_flag_on_ata_error and status & _ERR else 0)
        head = header + ATA.pack(flags, error, count, status, raw, 0)
        if like.w_sizes_reply:
            plain = flags & _WRITE or not asked or count > asked
            size = MIN_FRAME if plain else ATA_SIZE + (asked - count) * SECTOR
            left = data or bytes(frame[ATA_SIZE:])
            return [(head + left + JUNK * (size // len(JUNK) + 1))[:size]]
        return [self._short(head + data)]

    def identify(self) -> bytes:
        """The 512 bytes of IDENTIFY DEVICE."""
        backend = self.backend
        if self.like.identify:
            return self.like.identify(Facts(*self.address, backend.path, socket.gethostname(), backend.sectors))
        return Identify(
            serial=self.serial,
            firmware=__version__,
            model="aoe-nbd target",
            sectors=backend.sectors,
            fua=not backend.read_only,
            trim=backend.trims,
            trim_blocks=TRIM_BLOCKS,
            trim_zeroes=backend.trims,
            physical_size=backend.physical_size,
            wwn=wwn_of(self.serial),
            rotating=backend.rotating,
            read_only=backend.read_only,
            sync_writes=backend.sync,
            true_flush=True,
            vendor_known=True,
        ).build()

    # -- command 1: Query Config -------------------------------------------------------------------------------------

    def _config(self, request: _Request) -> Replies:
        like, state, frame = self.like, self.state, request.frame
        if len(frame) < _CONFIG_END:
            raise _Silence("short")
        self._query_limit(request.mtu)
        _, _, _, version_ccmd, length = CONFIG.unpack_from(frame, HEADER_SIZE)
        ccmd = version_ccmd & 0xF
        if ccmd > ConfigCommand.FORCE_SET:
            raise _Refused(like.bad_ccmd, self._config_arg(ccmd, request.mtu))
        string = b""
        if ccmd != ConfigCommand.READ or like.checks_length_on_read:
            string = self._config_string(request, ccmd, length)
        if ccmd == ConfigCommand.TEST and not (like.exact_test and string == state.config):
            raise _Silence("no-match")
        if ccmd == ConfigCommand.TEST_PREFIX and not state.config.startswith(string):
            raise _Silence("no-match")
        if ccmd == ConfigCommand.SET and state.config and not (like.set_identical and string == state.config):
            raise _Refused(AoeError.CONFIG_STRING_PRESENT, self._config_arg(ccmd, request.mtu))
        if ccmd in (ConfigCommand.SET, ConfigCommand.FORCE_SET):
            before, state.config = state.config, string
            self._save(string != before, lambda: setattr(state, "config", before))
            if not like.set_shows_string:
                return self._reply(request, self._config_arg(ccmd, request.mtu, b""))
        return self._reply(request, self._config_arg(ccmd, request.mtu))

    def _config_string(self, request: _Request, ccmd: int, length: int) -> bytes:
        like, frame = self.like, request.frame
        room = len(frame) - (0 if like.length_of_frame else _CONFIG_END)
        if length > MAX_STRING or length > room:
            if like.bad_length is Refusal.SILENCE:
                raise _Silence("length")
            if like.bad_length is not Refusal.ACCEPT:
                raise _Refused(AoeError.BAD_ARGUMENT, self._config_arg(ccmd, request.mtu))
            length = min(length, MAX_STRING)
        string = bytes(frame[_CONFIG_END : _CONFIG_END + length])
        return string if len(string) == length else (string + JUNK * (length // len(JUNK) + 1))[:length]

    def _config_arg(self, ccmd: int, mtu: int, string: bytes | None = None) -> bytes:
        like = self.like
        string = self.state.config if string is None else string
        if not like.shows_ccmd:
            ccmd = 0
        sectors = max(1, self.sector_limit(mtu))  # 0 would be read as 2
        return CONFIG.pack(self.buffers, like.firmware, sectors, AOE_VERSION << 4 | ccmd, len(string)) + string

    def _save(self, changed: bool, undo: Callable[[], None]) -> None:
        """Keep a change of state before it is acknowledged, or undo it."""
        if not changed:
            return
        try:
            self.state.save()
        except OSError:
            undo()
            raise _Refused(AoeError.DEVICE_UNAVAILABLE) from None

    # -- command 2: MAC mask list ------------------------------------------------------------------------------------

    def _mask(self, request: _Request) -> Replies:
        frame, state = request.frame, self.state
        if len(frame) < HEADER_SIZE + 4:
            raise _Silence("short")
        mcmd = frame[HEADER_SIZE + 1]
        if mcmd not in (MaskCommand.READ, MaskCommand.EDIT):
            raise _Refused(AoeError.BAD_ARGUMENT, MaskList(mcmd).build())
        if mcmd == MaskCommand.READ:
            return self._reply(request, self._mask_arg(mcmd))
        if frame[HEADER_SIZE + 2]:  # MError belongs to replies: read the directives all the same
            frame = bytes(frame[: HEADER_SIZE + 2]) + b"\0" + bytes(frame[HEADER_SIZE + 3 :])
        try:
            directives = MaskList.parse(frame).directives
        except FrameError:
            raise _Refused(AoeError.BAD_ARGUMENT, MaskList(mcmd).build()) from None
        most = min(_LIST_MOST, (request.mtu + 14 - HEADER_SIZE - 4) // 8)  # what a reply on this link can list
        before = list(state.mask)
        failed = None
        for index, (dcmd, mac) in enumerate(directives):
            if error := self._directive(dcmd, mac, most):
                failed = MaskList(mcmd, (), error, index)
                break
        self._save(state.mask != before, lambda: setattr(state, "mask", before))
        return self._reply(request, failed.build() if failed else self._mask_arg(mcmd))

    def _mask_arg(self, mcmd: int) -> bytes:
        return MaskList(mcmd, tuple((MaskDirectiveCommand.NONE, mac) for mac in self.state.mask)).build()

    def _directive(self, dcmd: int, mac: bytes, most: int) -> MaskError:
        mask = self.state.mask
        if dcmd == MaskDirectiveCommand.ADD:
            looked_at = -(-len(mask) // 6) if self.like.mask_miscounts else len(mask)
            if mac in mask[:looked_at]:
                return MaskError.NONE
            if len(mask) >= most:
                return MaskError.LIST_FULL
            mask.append(bytes(6))
            mask[looked_at] = mac
        elif dcmd == MaskDirectiveCommand.DELETE:
            if mac in mask and not (self.like.mask_miscounts and len(mask) > 1):
                mask.remove(mac)
        elif dcmd != MaskDirectiveCommand.NONE:
            return MaskError.BAD_DIRECTIVE
        return MaskError.NONE

    # -- command 3: Reserve/Release ----------------------------------------------------------------------------------

    def _reserve(self, request: _Request) -> Replies:
        frame, state = request.frame, self.state
        if len(frame) < HEADER_SIZE + 2:
            raise _Silence("short")
        rcmd = frame[HEADER_SIZE]
        if rcmd not in (ReserveCommand.READ, ReserveCommand.SET, ReserveCommand.FORCE_SET):
            raise _Refused(AoeError.BAD_ARGUMENT, self._reserve_arg(rcmd))
        if rcmd == ReserveCommand.READ:
            return self._reply(request, self._reserve_arg(rcmd))
        try:
            macs = Reserve.parse(frame).macs
        except FrameError:
            raise _Refused(AoeError.BAD_ARGUMENT, self._reserve_arg(rcmd)) from None
        if rcmd == ReserveCommand.SET and not self._holds(request, self.like.reserve_by_destination):
            raise _Refused(AoeError.TARGET_RESERVED, self._reserve_arg(rcmd))
        if rcmd == ReserveCommand.SET and self.like.reserve_searches_sorted:
            macs = tuple(sorted(macs))
        before, state.reserved = state.reserved, list(macs)
        self._save(state.reserved != before, lambda: setattr(state, "reserved", before))
        return self._reply(request, self._reserve_arg(rcmd))

    def _reserve_arg(self, rcmd: int) -> bytes:
        return Reserve(rcmd, tuple(self.state.reserved)).build()

    def _holds(self, request: _Request, by_destination: bool) -> bool:
        """Whether the target is free, or the requester is on the reservation list."""
        holders = self.state.reserved
        if not holders:
            return True
        mac = request.dst if by_destination else request.src
        if self.like.reserve_searches_sorted:
            at = bisect.bisect_left(holders, mac)
            return at < len(holders) and holders[at] == mac
        return mac in holders


def _fits(argument: bytes, mtu: int) -> bool:
    """Whether a reply with this argument goes through a link of this MTU."""
    return HEADER_SIZE + len(argument) <= max(mtu + 14, MIN_FRAME)


def _offset(frame: Frame) -> int:
    """Where on the disk a request reads or writes; -1 for all others."""
    if len(frame) < ATA_SIZE:
        return -1
    *_, command, _, _flags, _feature, _count, opcode, lba, _reserved = ATA_FRAME.unpack_from(frame)
    return int.from_bytes(lba, "little") if command == Command.ATA and opcode in _TRANSFERS else -1
