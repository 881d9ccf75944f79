# SPDX-License-Identifier: BSD-3-Clause
"""Every parser of the wire room on any bytes: a FrameError (or ValueError) with a reason, or fields that were really there."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aoe_nbd.wire.address import Address, format_mac, parse_address, parse_mac, parse_shelf, parse_slot
from aoe_nbd.wire.codes import ETHERTYPE, MAX_SHELF, MAX_SLOT, MAX_STRING, Ata
from aoe_nbd.wire.formats import AtaArg, ConfigArg, Header, MaskArg, MaskDirective, ReserveArg
from aoe_nbd.wire.frames import (
    ATA_SIZE,
    HEADER_SIZE,
    TRIM_ENTRIES,
    TRIM_RANGE,
    Config,
    FrameError,
    MaskList,
    Reserve,
    build_header,
    build_request,
    build_trim,
    mtu_sectors,
    parse_ata,
    parse_header,
    parse_trim,
    sectors_per_frame,
    taskfile,
)
from aoe_nbd.wire.identify import Identify
from examples import examples

REASONS = {"short", "ethertype", "length"}
PARSERS: list[Any] = [parse_header, parse_ata, Config.parse, MaskList.parse, Reserve.parse]
MACS = st.binary(min_size=6, max_size=6)
BYTE = st.integers(0, 255)

ARGUMENTS = st.one_of(
    st.builds(
        Config,
        ccmd=st.integers(0, 15),
        string=st.binary(max_size=80) | st.binary(min_size=MAX_STRING, max_size=MAX_STRING),
        buffer_count=st.integers(0, 0xFFFF),
        firmware=st.integers(0, 0xFFFF),
        sector_count=BYTE,
        version=st.integers(0, 15),
    ),
    st.builds(MaskList, mcmd=BYTE, directives=st.lists(st.tuples(BYTE, MACS), max_size=20).map(tuple)),
    st.builds(Reserve, rcmd=BYTE, macs=st.lists(MACS, max_size=20).map(tuple)),
)


def check(parse: Any, frame: bytes) -> Any:
    """What `parse` makes of a frame. Bytes past its end are other people's: they must not matter."""
    found = parse_or_reason(parse, frame)
    if found in REASONS:
        return None
    assert parse(memoryview(frame)) == found
    return found


def parse_or_reason(parse: Any, frame: bytes) -> Any:
    try:
        return parse(frame)
    except FrameError as problem:
        return problem.reason


@examples(5_000)
@given(st.binary(max_size=90), st.booleans())
@example(b"", True)
def test_any_bytes(body: bytes, ours: bool) -> None:
    frame = body[:12] + ETHERTYPE.to_bytes(2, "big") + body[14:] if ours and len(body) > 14 else body
    header = check(parse_header, frame)
    assert (header is not None) == (len(frame) >= HEADER_SIZE and frame[12:14] == b"\x88\xa2")
    ata = check(parse_ata, frame)
    assert (ata is not None) == (len(frame) >= ATA_SIZE)
    config = check(Config.parse, frame)
    if config is not None:
        assert config.string in frame
        assert len(config.string) == int.from_bytes(frame[30:32], "big") <= len(frame) - 32
    mask = check(MaskList.parse, frame)
    if mask is not None and not mask.merror:
        assert len(mask.directives) == frame[27] <= (len(frame) - 28) // 8
    reserve = check(Reserve.parse, frame)
    if reserve is not None:
        assert len(reserve.macs) == frame[25] <= (len(frame) - 26) // 6


def bent(rng: random.Random) -> bytes:
    """A frame of any of the four commands, or none, with a few bytes changed, cut somewhere or with something behind it."""
    kind = rng.randrange(6)
    arg: Any
    if kind == 0:
        arg = taskfile(rng.choice(list(Ata)), 0, 1)
    elif kind == 1:
        arg = Config(rng.randrange(16), rng.randbytes(rng.randrange(40)))
    elif kind == 2:
        arg = MaskList(rng.randrange(2), tuple((rng.randrange(3), rng.randbytes(6)) for _ in range(rng.randrange(4))))
    elif kind == 3:
        arg = Reserve(rng.randrange(3), tuple(rng.randbytes(6) for _ in range(rng.randrange(5))))
    else:
        return rng.randbytes(rng.randrange(100))
    frame = bytearray(build_request(b"\2" * 6, b"\4" * 6, 1, 0, 0x80000001, arg))
    for _ in range(rng.randrange(4)):
        frame[rng.randrange(min(44, len(frame)))] = rng.choice((0, 1, 2, 0x7F, 0xFF, rng.randrange(256)))
    if rng.randrange(2):
        return bytes(frame[: rng.randrange(len(frame) + 1)])
    return bytes(frame) + rng.randbytes(rng.randrange(30))


@pytest.mark.parametrize("seed", range(16))
def test_many_bent_frames(seed: int) -> None:
    """Hypothesis finds the clever ones; these are 80,000 more of the simple ones, in a fraction of the time."""
    rng = random.Random(seed)
    for _ in range(5_000):
        frame = bent(rng)
        for parse in PARSERS:
            found = parse_or_reason(parse, frame)
            if isinstance(found, str):
                assert found in REASONS, frame.hex()
            elif isinstance(found, Config):
                assert 32 + len(found.string) <= len(frame), frame.hex()
            elif isinstance(found, MaskList):
                assert 28 + 8 * len(found.directives) <= len(frame), frame.hex()
            elif isinstance(found, Reserve):
                assert 26 + 6 * len(found.macs) <= len(frame), frame.hex()


@examples(2_000)
@given(ARGUMENTS, st.binary(max_size=30))
def test_what_is_built_is_read_back_whatever_follows_it(arg: Any, tail: bytes) -> None:
    built = arg.build()
    frame = build_header(b"\2" * 6, b"\4" * 6, 1, 0, 1, 1) + built
    again = type(arg).parse(frame + tail)
    assert again.build() == built
    if not isinstance(arg, MaskList):
        assert again == arg


@examples(3_000)
@given(ARGUMENTS, st.data())
def test_valid_frames_bent_and_cut(arg: Any, data: st.DataObject) -> None:
    """Each length from nothing to whole, and bytes changed anywhere: wild counts, lengths, versions."""
    frame = bytearray(build_request(b"\2" * 6, b"\4" * 6, 1, 0, 0x80000001, arg))
    for _ in range(data.draw(st.integers(0, 3))):
        frame[data.draw(st.integers(0, min(40, len(frame) - 1)))] = data.draw(BYTE)
    cut = bytes(frame[: data.draw(st.integers(0, len(frame)))])
    for parse in PARSERS:
        check(parse, cut)


@examples(2_000)
@given(st.binary(min_size=24, max_size=24), st.binary(min_size=12, max_size=12))
def test_fast_and_declared_forms_agree(head: bytes, arg: bytes) -> None:
    frame = head[:12] + b"\x88\xa2" + head[14:] + arg
    header, slow = parse_header(frame), Header.parse(frame)
    assert (header.dst, header.src, header.error, header.major, header.minor, header.command, header.tag) == (
        *(slow.dst, slow.src, slow.error, slow.major, slow.minor, slow.command, slow.tag),
    )
    assert header.response == slow.version_flags.response
    assert header.failed == slow.version_flags.error
    assert header.version_flags >> 4 == slow.version_flags.version
    ata, slow_ata = parse_ata(frame), AtaArg.parse(arg)
    assert (ata.error_feature, ata.count, ata.command_status, ata.lba48, ata.reserved) == (
        *(slow_ata.error_feature, slow_ata.count, slow_ata.command_status, slow_ata.lba, slow_ata.reserved),
    )
    assert bool(ata.flags & 0x40) == slow_ata.flags.extended
    assert bool(ata.flags & 0x01) == slow_ata.flags.write
    for declaration in (Header, AtaArg, ConfigArg, MaskArg, MaskDirective, ReserveArg):
        raw = (head + arg)[: declaration.sizeof()]
        assert declaration.build(declaration.parse(raw)) == raw


@examples(2_000)
@given(st.binary(max_size=20), st.integers(0, 511), st.sampled_from([0, 0xFF, None]))
def test_identify_of_any_bytes(patch: bytes, at: int, fill: int | None) -> None:
    data = bytearray(Identify("serial", "fw", "model", 1 << 30).build() if fill is None else bytes([fill]) * 512)
    data[at : at + len(patch)] = patch
    del data[512:]
    if len(data) < 512:
        return
    found = Identify.parse(bytes(data))
    assert 0 <= found.sectors <= 1 << 48
    assert len(found.serial) <= 20
    assert len(found.model) <= 40
    for size in (found.logical_size, found.physical_size):
        assert 512 <= size <= 1 << 25
        assert size & size - 1 == 0
    assert found.physical_size >= found.logical_size
    assert found.trim_blocks >= 1


@examples(500)
@given(st.binary(min_size=512, max_size=512))
def test_identify_of_whole_nonsense(data: bytes) -> None:
    found = Identify.parse(data)
    assert found.sectors <= 1 << 48
    assert Identify.parse(data + b"more") == found


TEXT = st.text(st.sampled_from("e0123456789.:-abcdefABCDEFxX +\t\n²٣"), max_size=24) | st.text(max_size=24)


@examples(3_000)
@given(TEXT)
@example("e1.0")
@example("02:00:00:00:00:01")
def test_addresses_and_macs_of_any_text(text: str) -> None:
    for parse in (parse_address, parse_shelf, parse_slot, parse_mac):
        parse_any: Any = parse
        try:
            found = parse_any(text)
        except ValueError:
            continue
        if isinstance(found, Address):
            assert 0 <= found.shelf <= MAX_SHELF
            assert 0 <= found.slot <= MAX_SLOT
            assert parse_address(str(found)) == found
        elif isinstance(found, bytes):
            assert len(found) == 6
            assert not found[0] & 1
            assert parse_mac(format_mac(found)) == found
        else:
            assert 0 <= found <= MAX_SHELF


LBAS = st.integers(0, (1 << 48) + 300) | st.integers((1 << 28) - 300, (1 << 28) + 300) | st.integers(-5, 5)


@examples(3_000)
@given(
    st.sampled_from([Ata.READ, Ata.WRITE, Ata.READ_EXT, Ata.WRITE_EXT, Ata.WRITE_DMA_FUA_EXT]),
    LBAS,
    st.integers(-1, 300),
)
def test_registers_name_the_address_that_was_meant_or_none(command: Ata, lba: int, count: int) -> None:
    limit = 1 << 28 if command in (Ata.READ, Ata.WRITE) else 1 << 48
    possible = 1 <= count <= 255 and lba >= 0 and lba + count <= limit
    try:
        fields = parse_ata(bytes(24) + taskfile(command, lba, count).pack())
    except ValueError:
        assert not possible
        return
    assert possible
    assert fields.count == count
    assert (fields.lba28 if limit == 1 << 28 else fields.lba48) == lba
    assert bool(fields.flags & 0x40) == (limit == 1 << 48)
    assert bool(fields.flags & 0x01) == (command not in (Ata.READ, Ata.READ_EXT))
    if limit == 1 << 28:
        assert fields.lba[3] & 0xF0 == 0xE0


@examples(3_000)
@given(st.integers(0, 255), st.integers(0, 1 << 17), st.integers(1, 255))
def test_sectors_per_frame_is_within_all_limits_and_keeps_pages_whole(advertised: int, mtu: int, cap: int) -> None:
    n = sectors_per_frame(advertised, mtu, cap)
    assert 0 <= n <= min(advertised or 2, cap, mtu_sectors(mtu))
    assert n * 512 + ATA_SIZE <= max(mtu, ATA_SIZE)
    assert n < 8 or n % 8 == 0
    assert n > 0 or mtu < 548


@examples(1_000)
@given(st.integers(0, (1 << 48) - TRIM_RANGE * TRIM_ENTRIES), st.integers(1, TRIM_RANGE * TRIM_ENTRIES))
def test_trim_ranges_cover_exactly_what_was_asked(lba: int, count: int) -> None:
    block = build_trim(lba, count)
    assert len(block) == 512
    at = lba
    for first, n in parse_trim(block):
        assert first == at
        assert 0 < n <= TRIM_RANGE
        at += n
    assert at == lba + count


@examples(1_000)
@given(st.binary(max_size=600))
def test_trim_data_of_any_bytes(data: bytes) -> None:
    for lba, count in parse_trim(data):
        assert 0 <= lba < 1 << 48
        assert 0 < count <= TRIM_RANGE
