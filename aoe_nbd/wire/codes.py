# SPDX-License-Identifier: BSD-3-Clause
"""The numbers of AoE and ATA, by name, and what they mean to an operator."""

from __future__ import annotations

import enum
from typing import Final

ETHERTYPE: Final = 0x88A2
SECTOR: Final = 512
MIN_FRAME: Final = 60  # Ethernet pads to this; veth and tap do not, and some targets and tools drop less
AOE_VERSION: Final = 1

RESPONSE: Final = 0x08  # of the version/flags byte
ERROR: Final = 0x04

BROADCAST_MAC: Final = b"\xff" * 6
ALL_SHELVES: Final = 0xFFFF
ALL_SLOTS: Final = 0xFF
MAX_SHELF: Final = 0xFFFE
MAX_SLOT: Final = 0xFE
MAX_STRING: Final = 1024  # of a config string

# Tags: bit 31 marks userland (the kernel's aoe driver ignores such replies). 0 is the tag of announcements and
# 0xffffffff is reserved by other initiators, so neither is ever ours.
USER_TAG: Final = 0x80000000


class Command(enum.IntEnum):
    """The AoE command byte."""

    ATA = 0
    CONFIG = 1
    MASK = 2
    RESERVE = 3


class AoeError(enum.IntEnum):
    """The AoE error byte, meaningful only where the E flag is set (qaoed sends E with 0: still a failure)."""

    UNRECOGNIZED_COMMAND = 1
    BAD_ARGUMENT = 2
    DEVICE_UNAVAILABLE = 3
    CONFIG_STRING_PRESENT = 4
    UNSUPPORTED_VERSION = 5
    TARGET_RESERVED = 6


AOE_ERROR_TEXT = {
    AoeError.UNRECOGNIZED_COMMAND: "unrecognized command",
    AoeError.BAD_ARGUMENT: "bad argument",
    AoeError.DEVICE_UNAVAILABLE: "device unavailable",
    AoeError.CONFIG_STRING_PRESENT: "config string present",
    AoeError.UNSUPPORTED_VERSION: "unsupported version",
    AoeError.TARGET_RESERVED: "target is reserved",
}


def aoe_error_text(code: int) -> str:
    """The name of an AoE error code, for messages."""
    try:
        return AOE_ERROR_TEXT[AoeError(code)]
    except ValueError:
        return f"AoE error {code}"


class ConfigCommand(enum.IntEnum):
    """CCmd of Query Config."""

    READ = 0
    TEST = 1
    TEST_PREFIX = 2
    SET = 3
    FORCE_SET = 4


class MaskCommand(enum.IntEnum):
    """MCmd of MAC Mask List."""

    READ = 0
    EDIT = 1


class MaskDirectiveCommand(enum.IntEnum):
    """DCmd of one MAC mask directive."""

    NONE = 0
    ADD = 1
    DELETE = 2


class MaskError(enum.IntEnum):
    """MError of a MAC Mask List reply (the E flag stays clear)."""

    NONE = 0
    UNSPECIFIED = 1
    BAD_DIRECTIVE = 2
    LIST_FULL = 3


class ReserveCommand(enum.IntEnum):
    """RCmd of Reserve/Release."""

    READ = 0
    SET = 1
    FORCE_SET = 2


class Ata(enum.IntEnum):
    """ATA opcodes that AoE initiators and targets use."""

    DATA_SET_MANAGEMENT = 0x06
    READ = 0x20
    READ_EXT = 0x24
    WRITE = 0x30
    WRITE_EXT = 0x34
    WRITE_DMA_FUA_EXT = 0x3D
    CHECK_POWER = 0xE5
    FLUSH = 0xE7
    FLUSH_EXT = 0xEA
    IDENTIFY = 0xEC


class AtaFlag(enum.IntFlag):
    """AFlags."""

    WRITE = 0x01
    ASYNC = 0x02
    DEVICE = 0x10
    EXTENDED = 0x40


class Status(enum.IntFlag):
    """The ATA status register."""

    ERR = 0x01
    DRQ = 0x08
    DF = 0x20
    DRDY = 0x40
    BSY = 0x80


FAILED = Status.ERR | Status.DRQ | Status.DF | Status.BSY  # any of these in a reply is a failure


class AtaError(enum.IntFlag):
    """The ATA error register, meaningful only where the status has ERR."""

    ABRT = 0x04
    IDNF = 0x10
    UNC = 0x40
