# SPDX-License-Identifier: BSD-3-Clause
"""Frames against golden bytes, written out by hand from the layout tables; and what the parsers refuse."""

from __future__ import annotations

import pytest

from aoe_nbd.wire.codes import (
    ALL_SHELVES,
    ALL_SLOTS,
    BROADCAST_MAC,
    ERROR,
    MAX_STRING,
    RESPONSE,
    SECTOR,
    Ata,
    Command,
    ConfigCommand,
    MaskCommand,
    MaskDirectiveCommand,
    MaskError,
    ReserveCommand,
    aoe_error_text,
)
from aoe_nbd.wire.frames import (
    ATA_SIZE,
    HEADER_SIZE,
    TRIM_ENTRIES,
    TRIM_RANGE,
    Config,
    FrameError,
    MaskList,
    Reserve,
    Taskfile,
    build_header,
    build_request,
    build_trim,
    matches,
    mtu_sectors,
    pad,
    parse_ata,
    parse_header,
    parse_trim,
    sectors_per_frame,
    taskfile,
)

DST, SRC = bytes.fromhex("001122334455"), bytes.fromhex("66778899aabb")
TAG = 0x80C0FFEE
MAC1, MAC2 = bytes.fromhex("0a0000000001"), bytes.fromhex("0a0000000002")


def octets(text: str) -> bytes:
    return bytes.fromhex("".join(text.split()))


def golden(command: int, body: str) -> bytes:
    """A request to e258.3 with our tag, padded to 60."""
    head = f"00 11 22 33 44 55  66 77 88 99 aa bb  88 a2  10 00  01 02  03  {command:02x}  80 c0 ff ee"
    return octets(head + body).ljust(60, b"\0")


def request(arg: Taskfile | Config | MaskList | Reserve, data: bytes = b"") -> bytes:
    return build_request(DST, SRC, 0x0102, 3, TAG, arg, data)


#                                       flags feat count op  lba0 .. lba5        reserved
ATA_GOLDEN = [
    (taskfile(Ata.IDENTIFY), "             00 00 01 ec  00 00 00 a0 00 00  00 00"),
    (taskfile(Ata.READ, 0x0A1B2C3, 2), "   00 00 02 20  c3 b2 a1 e0 00 00  00 00"),
    (taskfile(Ata.READ, 0xABCDEF1, 2), "   00 00 02 20  f1 de bc ea 00 00  00 00"),
    (taskfile(Ata.WRITE, 0xFFFFFFF, 1), "  01 00 01 30  ff ff ff ef 00 00  00 00"),
    (taskfile(Ata.READ_EXT, 5, 255), "     40 00 ff 24  05 00 00 00 00 00  00 00"),
    (taskfile(Ata.READ_EXT, 1 << 28, 1), " 40 00 01 24  00 00 00 10 00 00  00 00"),
    (taskfile(Ata.READ_EXT, 0xE0000000, 1), "40 00 01 24  00 00 00 e0 00 00  00 00"),
    (taskfile(Ata.READ_EXT, 2**32 + 5, 8), "40 00 08 24  05 00 00 00 01 00  00 00"),
    (taskfile(Ata.WRITE_EXT, 2**48 - 9, 9), "41 00 09 34  f7 ff ff ff ff ff  00 00"),
    (taskfile(Ata.WRITE_DMA_FUA_EXT, 0x0102030405, 16), "41 00 10 3d  05 04 03 02 01 00  00 00"),
    (taskfile(Ata.FLUSH), "                00 00 00 e7  00 00 00 00 00 00  00 00"),
    (taskfile(Ata.FLUSH_EXT), "            40 00 00 ea  00 00 00 00 00 00  00 00"),
    (taskfile(Ata.CHECK_POWER), "          00 00 00 e5  00 00 00 00 00 00  00 00"),
    (taskfile(Ata.DATA_SET_MANAGEMENT, count=1, feature=1), "41 01 01 06  00 00 00 00 00 00  00 00"),
]


@pytest.mark.parametrize(("registers", "body"), ATA_GOLDEN)
def test_ata_requests(registers: Taskfile, body: str) -> None:
    frame = request(registers)
    assert frame == golden(0, body)
    assert registers.pack() == octets(body)
    fields = parse_ata(frame)
    assert (fields.flags, fields.error_feature, fields.count, fields.command_status) == registers[:4]
    assert fields.lba == registers.lba
    assert fields.reserved == 0


def test_write_carries_its_data_unpadded_past_60_bytes() -> None:
    data = bytes(range(256)) * 4
    frame = request(taskfile(Ata.WRITE_EXT, 7, 2), data)
    assert frame[:ATA_SIZE] == golden(0, "41 00 02 34  07 00 00 00 00 00  00 00")[:ATA_SIZE]
    assert frame[ATA_SIZE:] == data


CONFIG_GOLDEN = [
    (Config(), "00 00  00 00  00 10  00 00"),
    (Config(ConfigCommand.TEST, b"abc"), "00 00 00 00 00 11 00 03 61 62 63"),
    (Config(ConfigCommand.TEST_PREFIX, b"a"), "00 00 00 00 00 12 00 01 61"),
    (Config(ConfigCommand.SET, b"x y"), "00 00 00 00 00 13 00 03 78 20 79"),
    (Config(ConfigCommand.FORCE_SET), "00 00 00 00 00 14 00 00"),
    (Config(0, b"s", 0x1234, 0x4019, 17, 1), "12 34 40 19 11 10 00 01 73"),
]


@pytest.mark.parametrize(("config", "body"), CONFIG_GOLDEN)
def test_config(config: Config, body: str) -> None:
    frame = request(config)
    assert frame == golden(1, body)
    assert Config.parse(frame) == config
    assert Config.parse(frame + b"somebody else's") == config


MASK_GOLDEN = [
    (MaskList(), "00 00 00 00"),
    (MaskList(MaskCommand.EDIT), "00 01 00 00"),
    (
        MaskList(MaskCommand.EDIT, ((MaskDirectiveCommand.ADD, MAC1), (MaskDirectiveCommand.DELETE, MAC2))),
        "00 01 00 02  00 01 0a 00 00 00 00 01  00 02 0a 00 00 00 00 02",
    ),
    (MaskList(0, ((MaskDirectiveCommand.NONE, MAC2),)), "00 00 00 01  00 00 0a 00 00 00 00 02"),
]


@pytest.mark.parametrize(("mask", "body"), MASK_GOLDEN)
def test_mask(mask: MaskList, body: str) -> None:
    frame = request(mask)
    assert frame == golden(2, body)
    again = MaskList.parse(frame)
    assert (again.mcmd, again.directives, again.merror) == (mask.mcmd, mask.directives, 0)
    assert again.count == len(mask.directives)


def test_mask_error_names_the_directive() -> None:
    """With an error the count is an index, and no directives follow: they must not be looked for."""
    frame = build_header(DST, SRC, 1, 0, Command.MASK, TAG, RESPONSE) + octets("00 01 02 c8")
    assert len(frame) == 28
    parsed = MaskList.parse(frame)
    assert (parsed.merror, parsed.count, parsed.directives) == (MaskError.BAD_DIRECTIVE, 200, ())
    assert parsed.build() == octets("00 01 02 c8")


RESERVE_GOLDEN = [
    (Reserve(), "00 00"),
    (Reserve(ReserveCommand.SET, (MAC1, MAC2)), "01 02 0a 00 00 00 00 01 0a 00 00 00 00 02"),
    (Reserve(ReserveCommand.SET), "01 00"),
    (Reserve(ReserveCommand.FORCE_SET, (MAC2,)), "02 01 0a 00 00 00 00 02"),
]


@pytest.mark.parametrize(("reserve", "body"), RESERVE_GOLDEN)
def test_reserve(reserve: Reserve, body: str) -> None:
    frame = request(reserve)
    assert frame == golden(3, body)
    assert Reserve.parse(frame) == reserve


def test_header_of_a_reply() -> None:
    frame = build_header(DST, SRC, 7, 3, 1, 0xFFFFFFFE, RESPONSE | ERROR, 6)
    assert frame == octets("00 11 22 33 44 55 66 77 88 99 aa bb 88 a2 1c 06 00 07 03 01 ff ff ff fe")
    header = parse_header(memoryview(frame))
    assert header == (DST, SRC, 0x88A2, 0x1C, 6, 7, 3, 1, 0xFFFFFFFE)
    assert header.response
    assert header.failed
    assert not parse_header(build_header(DST, SRC, 7, 3, 1, 1)).response
    assert parse_header(build_header(DST, SRC, 7, 3, 1, 1, version=0)).version_flags == 0


@pytest.mark.parametrize("size", range(24))
def test_a_header_cut_short_is_refused(size: int) -> None:
    with pytest.raises(FrameError) as caught:
        parse_header(build_header(DST, SRC, 7, 3, 1, 1)[:size])
    assert caught.value.reason == "short"


def test_another_ethertype_is_refused() -> None:
    with pytest.raises(FrameError) as caught:
        parse_header(DST + SRC + b"\x08\x00" + bytes(46))
    assert caught.value.reason == "ethertype"
    assert "0x0800" in str(caught.value)


@pytest.mark.parametrize(
    ("parse", "need"), [(parse_ata, 36), (Config.parse, 32), (MaskList.parse, 28), (Reserve.parse, 26)]
)
def test_an_argument_cut_short_is_refused(parse, need: int) -> None:  # type: ignore[no-untyped-def]
    frame = build_header(DST, SRC, 7, 3, 1, 1) + bytes(12)
    parse(frame[:need])
    for size in range(need):
        with pytest.raises(FrameError) as caught:
            parse(frame[:size])
        assert caught.value.reason == "short"


@pytest.mark.parametrize(
    ("parse", "built"),
    [
        (Config.parse, Config(string=b"twelve bytes").build()),
        (MaskList.parse, MaskList(1, ((1, MAC1), (2, MAC2))).build()),
        (Reserve.parse, Reserve(1, (MAC1, MAC2)).build()),
    ],
)
def test_a_list_that_is_not_all_there_is_refused(parse, built: bytes) -> None:  # type: ignore[no-untyped-def]
    whole = build_header(DST, SRC, 7, 3, 1, 1) + built
    parse(whole)
    for cut in range(1, 12):
        with pytest.raises(FrameError) as caught:
            parse(whole[:-cut])
        assert caught.value.reason == "length"


def test_a_config_string_has_at_most_1024_bytes() -> None:
    longest = Config(string=b"x" * MAX_STRING)
    head = build_header(DST, SRC, 7, 3, 1, 1)
    assert Config.parse(head + longest.build()) == longest
    with pytest.raises(ValueError, match="1025 bytes: at most 1024"):
        Config(string=b"x" * (MAX_STRING + 1)).build()
    with pytest.raises(FrameError) as caught:
        Config.parse(head + octets("00 00 00 00 00 10 04 01") + bytes(2000))
    assert caught.value.reason == "length"


def test_lists_have_at_most_255_entries() -> None:
    assert len(MaskList(1, ((1, MAC1),) * 255).build()) == 4 + 255 * 8
    assert len(Reserve(1, (MAC1,) * 255).build()) == 2 + 255 * 6
    with pytest.raises(ValueError, match="256 MAC mask directives: at most 255"):
        MaskList(1, ((1, MAC1),) * 256).build()
    with pytest.raises(ValueError, match="256 MACs in a reservation: at most 255"):
        Reserve(1, (MAC1,) * 256).build()


@pytest.mark.parametrize(
    ("command", "lba", "count"),
    [
        (Ata.READ, (1 << 28) - 1, 1),
        (Ata.WRITE, (1 << 28) - 255, 255),
        (Ata.READ_EXT, (1 << 48) - 1, 1),
        (Ata.WRITE_EXT, (1 << 48) - 255, 255),
        (Ata.READ_EXT, 1 << 28, 1),
        (Ata.READ_EXT, (1 << 32) + 5, 255),
    ],
)
def test_the_last_address_that_a_command_can_name(command: Ata, lba: int, count: int) -> None:
    fields = parse_ata(request(taskfile(command, lba, count)))
    assert (fields.lba28 if command in (Ata.READ, Ata.WRITE) else fields.lba48) == lba
    assert fields.count == count


@pytest.mark.parametrize(
    ("command", "lba", "count"),
    [
        (Ata.READ, (1 << 28) - 1, 2),
        (Ata.READ, 1 << 28, 1),
        (Ata.WRITE, (1 << 28) - 254, 255),
        (Ata.READ, -1, 1),
        (Ata.READ, 0, 0),
        (Ata.READ, 0, 256),
        (Ata.READ_EXT, (1 << 48) - 1, 2),
        (Ata.WRITE_EXT, 1 << 48, 1),
        (Ata.WRITE_DMA_FUA_EXT, 1 << 48, 1),
        (Ata.READ_EXT, 5, 0),
        (Ata.READ_EXT, 5, 256),
        (Ata.WRITE_EXT, -1, 1),
    ],
)
def test_addresses_and_counts_that_a_command_cannot_name(command: Ata, lba: int, count: int) -> None:
    with pytest.raises(ValueError, match="sectors"):
        taskfile(command, lba, count)


@pytest.mark.parametrize(
    ("mtu", "sectors"),
    [
        *[(0, 0), (36, 0), (547, 0), (548, 1), (576, 1), (1046, 1), (1059, 1), (1060, 2), (1400, 2), (1500, 2)],
        *[
            (1572, 3),
            (4131, 7),
            (4132, 8),
            (4200, 8),
            (9000, 17),
            (9216, 17),
            (65536, 127),
            (131072, 255),
            (1 << 30, 255),
        ],
    ],
)
def test_sectors_by_mtu(mtu: int, sectors: int) -> None:
    """The table that targets have in common, and its edges."""
    assert mtu_sectors(mtu) == sectors


@pytest.mark.parametrize(
    ("advertised", "mtu", "cap", "sectors"),
    [
        (0, 9000, 255, 2),
        (2, 9000, 255, 2),
        (1, 9000, 255, 1),
        (17, 9000, 255, 16),
        (16, 9000, 255, 16),
        (15, 9000, 255, 8),
        (9, 9000, 255, 8),
        (8, 9000, 255, 8),
        (7, 9000, 255, 7),
        (255, 9000, 255, 16),
        (255, 1500, 255, 2),
        (255, 65536, 255, 120),
        (255, 1 << 20, 255, 248),
        (17, 9000, 4, 4),
        (17, 9000, 12, 8),
        (17, 547, 255, 0),
    ],
)
def test_sectors_per_frame(advertised: int, mtu: int, cap: int, sectors: int) -> None:
    assert sectors_per_frame(advertised, mtu, cap) == sectors


def test_trim_block() -> None:
    assert build_trim(0x010203, 5) == octets("03 02 01 00 00 00 05 00").ljust(SECTOR, b"\0")
    block = build_trim((1 << 48) - 70000, 70000)
    assert block[:16] == octets("90 ee fe ff ff ff ff ff  8f ee ff ff ff ff 71 11")
    assert parse_trim(block) == [((1 << 48) - 70000, 65535), ((1 << 48) - 4465, 4465)]
    most = TRIM_RANGE * TRIM_ENTRIES
    entries = parse_trim(build_trim(77, most))
    assert len(entries) == 64
    assert sum(n for _, n in entries) == most
    for count in (0, -1, most + 1):
        with pytest.raises(ValueError, match="sectors in one trim block"):
            build_trim(0, count)
    assert parse_trim(b"\1\0\0\0\0\0\1\0half") == [(1, 1)]


def test_wildcards() -> None:
    def asked(major: int, minor: int) -> bool:
        return matches(parse_header(build_header(BROADCAST_MAC, SRC, major, minor, 1, 1)), 7, 3)

    assert asked(7, 3)
    assert asked(ALL_SHELVES, ALL_SLOTS)
    assert asked(7, ALL_SLOTS)
    assert asked(ALL_SHELVES, 3)
    assert not asked(8, 3)
    assert not asked(7, 4)
    assert not asked(8, ALL_SLOTS)


def test_padding() -> None:
    assert pad(b"x" * 59) == b"x" * 59 + b"\0"
    assert pad(b"x" * 60) == b"x" * 60
    assert pad(b"x" * 61) == b"x" * 61
    assert HEADER_SIZE == 24


def test_error_names() -> None:
    assert aoe_error_text(6) == "target is reserved"
    assert aoe_error_text(2) == "bad argument"
    assert aoe_error_text(0) == "AoE error 0"
    assert aoe_error_text(255) == "AoE error 255"
