# SPDX-License-Identifier: BSD-3-Clause
"""IDENTIFY DEVICE: what a disk says of itself, read from and written to its 256 words (ATA8-ACS 7.16)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .codes import SECTOR
from .formats import IdentifyData

SIZE: Final = 512
LBA28_LIMIT: Final = 1 << 28
_LBA48_LIMIT: Final = 1 << 48
_LOGICAL_MOST, _PHYSICAL_MOST = 1 << 16, 1 << 25  # bytes of a sector; more is no disk's, and no NBD block size
# Words 129-132 of our own target: a signature, then flags. ATA has no place for either fact.
SIGNATURE: Final = b"AoEnbd"
VENDOR_READ_ONLY: Final = 0x0001
VENDOR_SYNC_WRITES: Final = 0x0002  # a write's reply means that it is on stable storage
VENDOR_TRUE_FLUSH: Final = 0x0004  # a flush's reply means that what was acknowledged before is on stable storage


def _swap(raw: bytes) -> bytes:
    """Exchange the bytes of each word."""
    swapped = bytearray(raw)
    swapped[0::2], swapped[1::2] = raw[1::2], raw[0::2]
    return bytes(swapped)


def _text(raw: bytes) -> str:
    """An IDENTIFY string. ATA pads with spaces and swaps bytes; qaoed does neither, and its NULs give it away."""
    body = raw.split(b"\0", 1)[0] if b"\0" in raw else _swap(raw)
    return body.decode("latin-1").strip()


def _raw(text: str, size: int) -> bytes:
    return _swap(text.encode("latin-1", "replace")[:size].ljust(size))


@dataclass(frozen=True)
class Identify:
    """The facts of an IDENTIFY reply that an initiator acts on. `sectors` are of 512 bytes, as all of AoE's."""

    serial: str
    firmware: str
    model: str
    sectors: int
    lba48: bool = True
    flush: bool = True
    flush_ext: bool = True
    fua: bool = False
    trim: bool = False
    trim_blocks: int = 1
    trim_zeroes: bool = False
    logical_size: int = SECTOR
    physical_size: int = SECTOR
    wwn: int = 0
    rotating: bool = True
    read_only: bool = False
    sync_writes: bool = False
    true_flush: bool = False
    vendor_known: bool = False

    @classmethod
    def parse(cls, data: bytes | memoryview) -> Identify:
        """Read the first 512 bytes of `data`. Raises ValueError if there are fewer."""
        if len(data) < SIZE:
            raise ValueError(f"IDENTIFY data of {len(data)} bytes: {SIZE} are needed")
        words = IdentifyData.parse(bytes(data[:SIZE]))
        commands = words.supported2 | words.enabled2
        lba48 = bool(commands & 1 << 10)
        sectors = min(words.lba48_sectors, _LBA48_LIMIT) if lba48 else words.lba28_sectors & 0x0FFFFFFF
        # Words 83, 84, 87 and 106 count only where bits 15:14 are 01; vblade writes no 01 into 86, qaoed none at all.
        geometry = words.sector_size if words.sector_size & 0xC000 == 0x4000 else 0
        logical = words.logical_words * 2 if geometry & 1 << 12 else SECTOR
        if not SECTOR <= logical <= _LOGICAL_MOST or logical & logical - 1:
            logical = SECTOR
        physical = logical << (geometry & 0xF) if geometry & 1 << 13 else logical
        if physical > _PHYSICAL_MOST:
            physical = logical
        vendor = words.vendor if words.vendor[:6] == SIGNATURE else bytes(8)
        flags = int.from_bytes(vendor[6:8], "little")
        return cls(
            serial=_text(words.serial),
            firmware=_text(words.firmware),
            model=_text(words.model),
            sectors=sectors,
            lba48=lba48,
            flush=bool(words.supported2 & 1 << 12),
            flush_ext=bool(words.supported2 & 1 << 13),
            fua=words.supported3 & 0xC000 == 0x4000 and bool(words.supported3 & 1 << 6),
            trim=bool(words.dsm & 1) and words.dsm != 0xFFFF,
            trim_blocks=max(1, words.dsm_blocks),
            trim_zeroes=words.additional & 0x4020 == 0x4020,
            logical_size=logical,
            physical_size=physical,
            wwn=words.wwn[0] << 48 | words.wwn[1] << 32 | words.wwn[2] << 16 | words.wwn[3],
            rotating=words.rotation != 1,
            read_only=bool(flags & VENDOR_READ_ONLY),
            sync_writes=bool(flags & VENDOR_SYNC_WRITES),
            true_flush=bool(flags & VENDOR_TRUE_FLUSH),
            vendor_known=vendor[:6] == SIGNATURE,
        )

    def build(self) -> bytes:
        """The 512 bytes, with the integrity word (255) and the capability words that match the fields."""
        supported2 = 0x4000 | self.lba48 << 10 | self.flush << 12 | self.flush_ext << 13
        supported3 = 0x4000 | self.fua << 6 | bool(self.wwn) << 8
        ratio = (self.physical_size // self.logical_size).bit_length() - 1
        sector_size = 0x4000 | (ratio > 0) << 13 | (self.logical_size > SECTOR) << 12 | ratio
        flags = self.read_only * VENDOR_READ_ONLY | self.sync_writes * VENDOR_SYNC_WRITES
        flags |= self.true_flush * VENDOR_TRUE_FLUSH
        data = bytearray(
            IdentifyData.build(
                {
                    "general": 0x0040,
                    "serial": _raw(self.serial, 20),
                    "firmware": _raw(self.firmware, 8),
                    "model": _raw(self.model, 40),
                    "max_multiple": 0x8000,
                    "capabilities": 0x0200,
                    "capabilities2": 0x4000,
                    "validity": 0x0002,
                    "lba28_sectors": min(self.sectors, LBA28_LIMIT - 1),
                    "additional": 0x4020 if self.trim and self.trim_zeroes else 0,
                    "ata_major": 0x01F0,
                    "supported1": 0x4000 | (not self.sync_writes) << 5,
                    "supported2": supported2,
                    "supported3": supported3,
                    "enabled1": 0x4000 | (not self.sync_writes) << 5,
                    "enabled2": supported2 & ~0x4000,
                    "enabled3": supported3,
                    "lba48_sectors": self.sectors if self.lba48 else 0,
                    "dsm_blocks": self.trim_blocks if self.trim else 0,
                    "sector_size": sector_size,
                    "wwn": [self.wwn >> shift & 0xFFFF for shift in (48, 32, 16, 0)],
                    "logical_words": self.logical_size // 2 if self.logical_size > SECTOR else 0,
                    "vendor": (SIGNATURE + flags.to_bytes(2, "little")) if self.vendor_known else bytes(8),
                    "dsm": int(self.trim),
                    "rotation": 0 if self.rotating else 1,
                }
            )
        )
        data[510] = 0xA5
        data[511] = -sum(data[:511]) & 0xFF
        return bytes(data)
