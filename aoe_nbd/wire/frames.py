# SPDX-License-Identifier: BSD-3-Clause
"""Whole frames: bytes to fields and back, for both ends.

Parsers take any bytes from the network: they raise `FrameError` with a reason, never anything else, and never read past
the length that they were given. Builders pad requests to Ethernet's 60 bytes with zeros (kvblade drops less).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .codes import (
    ALL_SHELVES,
    ALL_SLOTS,
    AOE_VERSION,
    ERROR,
    ETHERTYPE,
    MAX_STRING,
    MIN_FRAME,
    RESPONSE,
    SECTOR,
    Ata,
    AtaFlag,
    Command,
    ConfigCommand,
    MaskCommand,
    ReserveCommand,
)
from .derive import dtype_of, struct_of
from .formats import AtaArg, ConfigArg, Header, MaskArg, MaskDirective, ReserveArg

HEADER = struct_of(Header)
ATA = struct_of(AtaArg)
ATA_FRAME = struct_of(Header, AtaArg)
ATA_DTYPE = dtype_of(Header, AtaArg)  # one 36-byte ATA frame header
CONFIG = struct_of(ConfigArg)
HEADER_SIZE: Final = HEADER.size  # 24
ATA_SIZE = ATA_FRAME.size  # 36: where an ATA frame's data begins
TAG = struct.Struct(">I")
TAG_OFFSET: Final = 20


class FrameError(ValueError):
    """A frame that cannot be read. `reason` is a short fixed word, for counters."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class FrameHeader(NamedTuple):
    """The 24 bytes that every AoE frame begins with."""

    dst: bytes
    src: bytes
    ethertype: int
    version_flags: int
    error: int
    major: int
    minor: int
    command: int
    tag: int

    @property
    def response(self) -> bool:
        return bool(self.version_flags & RESPONSE)

    @property
    def failed(self) -> bool:
        """The E flag: the command was refused, whatever the error byte says."""
        return bool(self.version_flags & ERROR)


def parse_header(frame: bytes | memoryview) -> FrameHeader:
    """The header. Raises FrameError `short` or `ethertype`; versions and flags are the caller's business."""
    if len(frame) < HEADER_SIZE:
        raise FrameError("short", f"{len(frame)} bytes")
    header = FrameHeader._make(HEADER.unpack_from(frame))
    if header.ethertype != ETHERTYPE:
        raise FrameError("ethertype", f"{header.ethertype:#06x}")
    return header


def matches(header: FrameHeader, shelf: int, slot: int) -> bool:
    """Whether a target at shelf.slot is addressed (each half may be the wildcard)."""
    return header.major in (shelf, ALL_SHELVES) and header.minor in (slot, ALL_SLOTS)


def build_header(
    dst: bytes,
    src: bytes,
    shelf: int,
    slot: int,
    command: int,
    tag: int,
    flags: int = 0,
    error: int = 0,
    version: int = AOE_VERSION,
) -> bytes:
    """The 24 bytes of a header. `flags` are RESPONSE and ERROR."""
    return HEADER.pack(dst, src, ETHERTYPE, version << 4 | flags, error, shelf, slot, command, tag)


def pad(frame: bytes) -> bytes:
    """`frame`, zero-padded to the least Ethernet carries."""
    return frame.ljust(MIN_FRAME, b"\0")


class AtaFields(NamedTuple):
    """The 12 bytes of an ATA argument. `error_feature` and `command_status` change sense between request and reply."""

    flags: int
    error_feature: int
    count: int  # type: ignore[assignment]
    command_status: int
    lba: bytes
    reserved: int

    @property
    def lba48(self) -> int:
        """All six address registers."""
        return int.from_bytes(self.lba, "little")

    @property
    def lba28(self) -> int:
        """The 28 bits that an LBA28 command uses."""
        return int.from_bytes(self.lba[:4], "little") & 0x0FFFFFFF


def parse_ata(frame: bytes | memoryview) -> AtaFields:
    """The ATA argument. Raises FrameError `short`."""
    if len(frame) < ATA_SIZE:
        raise FrameError("short", f"{len(frame)} bytes for an ATA argument")
    return AtaFields._make(ATA.unpack_from(frame, HEADER_SIZE))


class Taskfile(NamedTuple):
    """What goes into the ATA registers of a request."""

    flags: int
    feature: int
    count: int  # type: ignore[assignment]
    command: int
    lba: bytes

    def pack(self) -> bytes:
        return ATA.pack(self.flags, self.feature, self.count, self.command, self.lba, 0)


class Form(NamedTuple):
    """How an ATA command's registers are filled: AFlags, what is or-ed into the LBA, and the first LBA it cannot name."""

    flags: int
    base: int
    limit: int


# E flag, opcode and LBA form are always of one mind: targets disagree on which of the first two decides the width of the
# address; a 28-bit address carries 0xe0 in lba3, a 48-bit one must not. W is set exactly on commands that carry data to
# the device (vblade returns no data with it).
FORMS = {
    Ata.READ: Form(0, 0xE << 28, 1 << 28),
    Ata.WRITE: Form(AtaFlag.WRITE, 0xE << 28, 1 << 28),
    Ata.READ_EXT: Form(AtaFlag.EXTENDED, 0, 1 << 48),
    Ata.WRITE_EXT: Form(AtaFlag.EXTENDED | AtaFlag.WRITE, 0, 1 << 48),
    Ata.WRITE_DMA_FUA_EXT: Form(AtaFlag.EXTENDED | AtaFlag.WRITE, 0, 1 << 48),
    Ata.DATA_SET_MANAGEMENT: Form(AtaFlag.EXTENDED | AtaFlag.WRITE, 0, 1),
    Ata.FLUSH: Form(0, 0, 1),
    Ata.FLUSH_EXT: Form(AtaFlag.EXTENDED, 0, 1),
    Ata.CHECK_POWER: Form(0, 0, 1),
    Ata.IDENTIFY: Form(0, 0xA << 28, 1),
}
_ADDRESSED = (Ata.READ, Ata.WRITE, Ata.READ_EXT, Ata.WRITE_EXT, Ata.WRITE_DMA_FUA_EXT)


def taskfile(command: Ata, lba: int = 0, count: int = 0, feature: int = 0) -> Taskfile:
    """The registers for one command. Raises ValueError for a count or LBA that the command cannot express."""
    form = FORMS[command]
    if command in _ADDRESSED and not (count >= 1 and 0 <= lba <= form.limit - count):
        raise ValueError(f"{count} sectors from LBA {lba}: opcode {command:#04x} ends at LBA {form.limit}")
    if command is Ata.IDENTIFY:
        count = 1
    if not 0 <= count <= 255:
        raise ValueError(f"{count} sectors in one command: at most 255")
    return Taskfile(int(form.flags), feature, count, command, (lba | form.base).to_bytes(6, "little"))


TRIM_FEATURE: Final = 1  # of DATA SET MANAGEMENT
TRIM_RANGE: Final = 0xFFFF  # most sectors of one range entry
TRIM_ENTRIES = SECTOR // 8  # range entries in one 512-byte block


def build_trim(lba: int, count: int) -> bytes:
    """The one 512-byte block of range entries that trims `count` sectors from `lba` (ACS-2 7.10).

    Raises ValueError for more than TRIM_RANGE * TRIM_ENTRIES sectors.
    """
    if not 0 < count <= TRIM_RANGE * TRIM_ENTRIES:
        raise ValueError(f"{count} sectors in one trim block: 1 to {TRIM_RANGE * TRIM_ENTRIES}")
    entries = bytearray()
    while count:
        n = min(count, TRIM_RANGE)
        entries += (lba | n << 48).to_bytes(8, "little")
        lba, count = lba + n, count - n
    return bytes(entries).ljust(SECTOR, b"\0")


def parse_trim(data: bytes | memoryview) -> list[tuple[int, int]]:
    """(LBA, sectors) of each entry in DATA SET MANAGEMENT data; entries of no length are skipped."""
    entries = (e for (e,) in struct.iter_unpack("<Q", data[: len(data) // 8 * 8]))
    return [(e & (1 << 48) - 1, e >> 48) for e in entries if e >> 48]


@dataclass(frozen=True)
class Config:
    """Query Config, both ways. `sector_count` is as on the wire: 0 means 2 (see `sectors_per_frame`)."""

    ccmd: int = ConfigCommand.READ
    string: bytes = b""
    buffer_count: int = 0
    firmware: int = 0
    sector_count: int = 0
    version: int = AOE_VERSION

    @classmethod
    def parse(cls, frame: bytes | memoryview) -> Config:
        """From a whole frame. Raises FrameError `short` or `length` (a string that is not all there)."""
        end = HEADER_SIZE + CONFIG.size
        if len(frame) < end:
            raise FrameError("short", f"{len(frame)} bytes for a config argument")
        buffer_count, firmware, sector_count, version_ccmd, length = CONFIG.unpack_from(frame, HEADER_SIZE)
        if length > MAX_STRING or end + length > len(frame):
            raise FrameError("length", f"a config string of {length} bytes in a frame of {len(frame)}")
        string = bytes(frame[end : end + length])
        return cls(version_ccmd & 0xF, string, buffer_count, firmware, sector_count, version_ccmd >> 4)

    def build(self) -> bytes:
        """The argument and string. Raises ValueError for a string over 1024 bytes."""
        if len(self.string) > MAX_STRING:
            raise ValueError(f"a config string of {len(self.string)} bytes: at most {MAX_STRING}")
        version_ccmd = self.version << 4 | self.ccmd
        fixed = CONFIG.pack(self.buffer_count, self.firmware, self.sector_count, version_ccmd, len(self.string))
        return fixed + self.string


@dataclass(frozen=True)
class MaskList:
    """MAC Mask List, both ways: `directives` are (dcmd, MAC). On `merror`, `count` is the failing directive's index."""

    mcmd: int = MaskCommand.READ
    directives: tuple[tuple[int, bytes], ...] = ()
    merror: int = 0
    count: int | None = None

    @classmethod
    def parse(cls, frame: bytes | memoryview) -> MaskList:
        """From a whole frame. Raises FrameError `short` or `length` (directives that are not all there)."""
        end = HEADER_SIZE + MaskArg.sizeof()
        if len(frame) < end:
            raise FrameError("short", f"{len(frame)} bytes for a MAC mask argument")
        arg = MaskArg.parse(bytes(frame[HEADER_SIZE:end]))
        if arg.merror:
            return cls(arg.mcmd, (), arg.merror, arg.count)
        size = MaskDirective.sizeof()
        if end + arg.count * size > len(frame):
            raise FrameError("length", f"{arg.count} directives in a frame of {len(frame)}")
        found = [MaskDirective.parse(bytes(frame[end + i * size : end + (i + 1) * size])) for i in range(arg.count)]
        return cls(arg.mcmd, tuple((d.dcmd, d.mac) for d in found), 0, arg.count)

    def build(self) -> bytes:
        """The argument and its directives. Raises ValueError for more than 255."""
        count = len(self.directives) if self.count is None else self.count
        if count > 255:
            raise ValueError(f"{count} MAC mask directives: at most 255")
        fixed = MaskArg.build({"mcmd": self.mcmd, "merror": self.merror, "count": count})
        return bytes(fixed) + b"".join(MaskDirective.build({"dcmd": d, "mac": m}) for d, m in self.directives)


@dataclass(frozen=True)
class Reserve:
    """Reserve/Release, both ways: the list of MACs that hold the target."""

    rcmd: int = ReserveCommand.READ
    macs: tuple[bytes, ...] = field(default=())

    @classmethod
    def parse(cls, frame: bytes | memoryview) -> Reserve:
        """From a whole frame. Raises FrameError `short` or `length` (MACs that are not all there)."""
        end = HEADER_SIZE + ReserveArg.sizeof()
        if len(frame) < end:
            raise FrameError("short", f"{len(frame)} bytes for a reserve argument")
        arg = ReserveArg.parse(bytes(frame[HEADER_SIZE:end]))
        if end + arg.count * 6 > len(frame):
            raise FrameError("length", f"{arg.count} MACs in a frame of {len(frame)}")
        return cls(arg.rcmd, tuple(bytes(frame[end + i * 6 : end + i * 6 + 6]) for i in range(arg.count)))

    def build(self) -> bytes:
        """The argument and its MACs. Raises ValueError for more than 255."""
        if len(self.macs) > 255:
            raise ValueError(f"{len(self.macs)} MACs in a reservation: at most 255")
        return bytes(ReserveArg.build({"rcmd": self.rcmd, "count": len(self.macs)})) + b"".join(self.macs)


def mtu_sectors(mtu: int) -> int:
    """Sectors that one frame carries on a link of this MTU, 0 to 255.

    36 bytes are taken off, as every target does, although 14 of them lie outside the MTU: 2 at 1500, 17 at 9000.
    """
    return max(0, min(255, (mtu - ATA_SIZE) // SECTOR))


def sectors_per_frame(advertised: int, mtu: int, cap: int = 255) -> int:
    """Sectors that we put into one frame: what target, own MTU and operator allow, in whole 4 KiB where that fits.

    `advertised` is the config reply's sector count (0 means 2). 17-sector frames would split a 4 KiB page at nearly
    every frame border, so 9 to 17 become 8 to 16. Returns 0 if not even one sector fits the MTU.
    """
    most = min(advertised or 2, mtu_sectors(mtu), cap)
    return most // 8 * 8 if most >= 8 else most


def build_request(
    dst: bytes,
    src: bytes,
    shelf: int,
    slot: int,
    tag: int,
    arg: Taskfile | Config | MaskList | Reserve,
    data: bytes = b"",
) -> bytes:
    """A whole padded request frame for any of the four commands."""
    if isinstance(arg, Taskfile):
        command, body = Command.ATA, arg.pack() + data
    elif isinstance(arg, Config):
        command, body = Command.CONFIG, arg.build()
    elif isinstance(arg, MaskList):
        command, body = Command.MASK, arg.build()
    else:
        command, body = Command.RESERVE, arg.build()
    return pad(build_header(dst, src, shelf, slot, command, tag) + body)
