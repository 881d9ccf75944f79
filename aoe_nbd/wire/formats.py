# SPDX-License-Identifier: BSD-3-Clause
"""The layouts of AoE, each declared once with construct.

Everything else that knows where a byte lies is derived from these declarations (see `derive`): the `struct.Struct` forms
and numpy dtypes of the hot path are computed from them, not written a second time.

Source: AoEr11 as restated by independent dissectors and targets; offsets in the comments count from the first byte of
the Ethernet frame. All integers are big-endian but for the LBA (six byte registers, lba0 first) and IDENTIFY's words.
"""

from __future__ import annotations

from construct import (
    BitsInteger,
    BitStruct,
    Bytes,
    BytesInteger,
    Default,
    Flag,
    Int8ub,
    Int16ub,
    Int16ul,
    Int32ub,
    Int32ul,
    Int64ul,
    Padding,
    Struct,
)

VersionFlags = BitStruct(
    "version" / Default(BitsInteger(4), 1),
    "response" / Default(Flag, False),
    "error" / Default(Flag, False),
    "reserved" / Default(BitsInteger(2), 0),
)

Header = Struct(
    "dst" / Bytes(6),  # 0
    "src" / Bytes(6),  # 6
    "ethertype" / Default(Int16ub, 0x88A2),  # 12
    "version_flags" / VersionFlags,  # 14
    "error" / Default(Int8ub, 0),  # 15
    "major" / Int16ub,  # 16: shelf
    "minor" / Int8ub,  # 18: slot
    "command" / Int8ub,  # 19
    "tag" / Int32ub,  # 20
)

AtaFlags = BitStruct(
    "reserved7" / Default(Flag, False),
    "extended" / Default(Flag, False),  # 0x40 E: the LBA has 48 bits
    "reserved5" / Default(Flag, False),
    "device" / Default(Flag, False),  # 0x10 D
    "reserved32" / Default(BitsInteger(2), 0),
    "asynchronous" / Default(Flag, False),  # 0x02 A
    "write" / Default(Flag, False),  # 0x01 W: data goes to the device
)

AtaArg = Struct(
    "flags" / AtaFlags,  # 24
    "error_feature" / Default(Int8ub, 0),  # 25: Feature in a request, Error in a reply
    "count" / Int8ub,  # 26: sectors, in LBA48 too
    "command_status" / Int8ub,  # 27: Command in a request, Status in a reply
    "lba" / BytesInteger(6, swapped=True),  # 28: lba0 .. lba5
    "reserved" / Default(Int16ub, 0),  # 34
)

ConfigArg = Struct(
    "buffer_count" / Default(Int16ub, 0),  # 24
    "firmware" / Default(Int16ub, 0),  # 26
    "sector_count" / Default(Int8ub, 0),  # 28: 0 means 2
    "version_ccmd" / BitStruct("version" / Default(BitsInteger(4), 1), "ccmd" / BitsInteger(4)),  # 29
    "length" / Int16ub,  # 30: of the string, which follows
)

MaskArg = Struct(
    "reserved" / Default(Int8ub, 0),  # 24
    "mcmd" / Int8ub,  # 25
    "merror" / Default(Int8ub, 0),  # 26
    "count" / Int8ub,  # 27: directives that follow
)

MaskDirective = Struct("reserved" / Default(Int8ub, 0), "dcmd" / Int8ub, "mac" / Bytes(6))

ReserveArg = Struct("rcmd" / Int8ub, "count" / Int8ub)  # 24, 25; count MACs follow

# IDENTIFY DEVICE, 256 little-endian words; the comment is the word's number (ATA8-ACS 7.16). Strings are kept as the
# raw bytes here: how to read them is a question of who wrote them (see `identify`).
IdentifyData = Struct(
    "general" / Default(Int16ul, 0),  # 0
    Padding(18),
    "serial" / Bytes(20),  # 10-19
    Padding(6),
    "firmware" / Bytes(8),  # 23-26
    "model" / Bytes(40),  # 27-46
    "max_multiple" / Default(Int16ul, 0),  # 47
    Padding(2),
    "capabilities" / Default(Int16ul, 0),  # 49: bit 9 LBA
    "capabilities2" / Default(Int16ul, 0),  # 50
    Padding(4),
    "validity" / Default(Int16ul, 0),  # 53
    Padding(12),
    "lba28_sectors" / Default(Int32ul, 0),  # 60-61
    Padding(14),
    "additional" / Default(Int16ul, 0),  # 69: bit 14 DRAT, bit 5 RZAT
    Padding(20),
    "ata_major" / Default(Int16ul, 0),  # 80
    "ata_minor" / Default(Int16ul, 0),  # 81
    "supported1" / Default(Int16ul, 0),  # 82: bit 5 write cache
    "supported2" / Default(Int16ul, 0),  # 83: bit 10 LBA48, 12 FLUSH CACHE, 13 FLUSH CACHE EXT
    "supported3" / Default(Int16ul, 0),  # 84: bit 6 FUA, bit 8 WWN
    "enabled1" / Default(Int16ul, 0),  # 85
    "enabled2" / Default(Int16ul, 0),  # 86
    "enabled3" / Default(Int16ul, 0),  # 87
    Padding(24),
    "lba48_sectors" / Default(Int64ul, 0),  # 100-103
    Padding(2),
    "dsm_blocks" / Default(Int16ul, 0),  # 105: most 512-byte blocks of a DATA SET MANAGEMENT
    "sector_size"
    / Default(Int16ul, 0),  # 106: bit 13 several logical sectors a physical one, bit 12 large logical ones
    Padding(2),
    "wwn" / Default(Int16ul[4], [0, 0, 0, 0]),  # 108-111
    Padding(10),
    "logical_words" / Default(Int32ul, 0),  # 117-118: words a logical sector, where word 106 bit 12 is set
    Padding(20),
    "vendor" / Default(Bytes(8), bytes(8)),  # 129-132: vendor specific
    Padding(72),
    "dsm" / Default(Int16ul, 0),  # 169: bit 0 TRIM
    Padding(94),
    "rotation" / Default(Int16ul, 0),  # 217: 1 means it does not rotate
    Padding(76),
)
