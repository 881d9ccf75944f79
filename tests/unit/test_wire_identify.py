# SPDX-License-Identifier: BSD-3-Clause
"""IDENTIFY: read as real targets write it, written as the standard wants it, and robust against what is neither."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from aoe_nbd.wire.identify import LBA28_LIMIT, Identify

PLAIN = Identify(serial="S-1", firmware="1.0", model="a disk", sectors=1 << 20)


def with_words(base: Identify, words: dict[int, int]) -> bytes:
    data = bytearray(base.build())
    for word, value in words.items():
        data[2 * word : 2 * word + 2] = value.to_bytes(2, "little")
    return bytes(data)


def word(data: bytes, number: int) -> int:
    return int.from_bytes(data[2 * number : 2 * number + 2], "little")


@pytest.mark.parametrize(
    "facts",
    [
        PLAIN,
        Identify("", "", "", 1),
        Identify("s" * 20, "f" * 8, "m" * 40, (1 << 48) - 1, wwn=0x3123456789ABCDEF),
        Identify("s", "f", "m", 1000, lba48=False, flush=False, flush_ext=False),
        Identify("s", "f", "m", 1000, fua=True, trim=True, trim_blocks=8, trim_zeroes=True, rotating=False),
        Identify("s", "f", "m", 8192, logical_size=4096, physical_size=4096),
        Identify("s", "f", "m", 8192, logical_size=512, physical_size=4096),
        Identify("s", "f", "m", 8192, logical_size=1024, physical_size=16384),
        *(
            Identify("s", "f", "m", 9, read_only=a, sync_writes=b, true_flush=c, vendor_known=True)
            for a, b, c in itertools.product((False, True), repeat=3)
        ),
    ],
)
def test_round_trip(facts: Identify) -> None:
    data = facts.build()
    assert len(data) == 512
    assert Identify.parse(bytes(data)) == facts
    assert Identify.parse(memoryview(data + b"trailing")) == facts


def test_integrity_word() -> None:
    data = PLAIN.build()
    assert data[510] == 0xA5
    assert sum(data) & 0xFF == 0


def test_strings_are_swapped_and_padded_with_spaces() -> None:
    data = PLAIN.build()
    assert data[20:40] == b"-S 1" + b" " * 16
    assert data[54:60] == b" aidks"


def test_strings_of_qaoed_are_raw_with_nuls() -> None:
    data = bytearray(PLAIN.build())
    data[20:40] = b"/srv/disk".ljust(20, b"\0")
    data[54:94] = b"123456789".ljust(40, b"\0")
    data[46:54] = bytes(8)
    parsed = Identify.parse(bytes(data))
    assert (parsed.serial, parsed.model, parsed.firmware) == ("/srv/disk", "123456789", "")


def test_strings_that_are_no_text_are_read_all_the_same() -> None:
    data = bytearray(PLAIN.build())
    data[20:40] = bytes(range(0xEC, 0x100))
    assert len(Identify.parse(bytes(data)).serial) == 20


def test_too_long_strings_are_cut() -> None:
    parsed = Identify.parse(Identify("s" * 30, "f" * 9, "m" * 50, 1).build())
    assert (parsed.serial, parsed.firmware, parsed.model) == ("s" * 20, "f" * 8, "m" * 40)


@pytest.mark.parametrize("size", [0, 1, 511])
def test_short_data_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="512 are needed"):
        Identify.parse(bytes(size))


def test_all_zeros_and_all_ones() -> None:
    zeros = Identify.parse(bytes(512))
    assert (zeros.sectors, zeros.lba48, zeros.flush, zeros.trim) == (0, False, False, False)
    ones = Identify.parse(b"\xff" * 512)
    assert not ones.trim
    assert ones.logical_size == ones.physical_size == 512
    assert not ones.fua
    assert not ones.vendor_known


def test_capacity_is_never_more_than_commands_can_address() -> None:
    """Words 100-103 have room for 64 bits, an LBA for 48: a claim beyond that cannot be used."""
    data = bytearray(PLAIN.build())
    data[200:208] = b"\xff" * 8
    assert Identify.parse(bytes(data)).sectors <= 1 << 48
    data[200:208] = ((1 << 48) - 1).to_bytes(8, "little")
    assert Identify.parse(bytes(data)).sectors == (1 << 48) - 1


@pytest.mark.parametrize(
    ("w83", "w86", "sectors", "lba48"),
    [
        (0x4400, 0x0000, 1 << 20, True),
        (0x0000, 0x0400, 1 << 20, True),
        (0x4000, 0x0000, 77, False),
        (0x5400, 0x1400, 1 << 20, True),
        (0x0400, 0x0400, 1 << 20, True),
    ],
)
def test_capacity_and_lba48(w83: int, w86: int, sectors: int, lba48: bool) -> None:
    data = with_words(PLAIN, {60: 77, 61: 0, 83: w83, 86: w86})
    assert (Identify.parse(bytes(data)).sectors, Identify.parse(bytes(data)).lba48) == (sectors, lba48)


def test_lba28_capacity_is_capped() -> None:
    assert word(Identify("s", "f", "m", 1 << 33).build(), 60) | word(
        Identify("s", "f", "m", 1 << 33).build(), 61
    ) << 16 == (LBA28_LIMIT - 1)
    data = with_words(PLAIN, {60: 0xFFFF, 61: 0xFFFF, 83: 0x4000, 86: 0})
    assert Identify.parse(bytes(data)).sectors == LBA28_LIMIT - 1


@pytest.mark.parametrize(
    ("w83", "flush", "flush_ext"),
    [(0x5400, True, False), (0x7400, True, True), (0x4400, False, False), (0x6400, False, True)],
)
def test_flush_bits(w83: int, flush: bool, flush_ext: bool) -> None:
    parsed = Identify.parse(with_words(PLAIN, {83: w83}))
    assert (parsed.flush, parsed.flush_ext) == (flush, flush_ext)


@pytest.mark.parametrize(
    ("w84", "fua"), [(0x4040, True), (0x4000, False), (0x0040, False), (0xFFFF, False), (0xC040, False)]
)
def test_fua_counts_only_in_a_valid_word(w84: int, fua: bool) -> None:
    assert Identify.parse(with_words(PLAIN, {84: w84})).fua is fua


@pytest.mark.parametrize(
    ("w106", "w117", "w118", "logical", "physical"),
    [
        (0x0000, 0, 0, 512, 512),
        (0x4000, 0, 0, 512, 512),
        (0x6003, 0, 0, 512, 4096),
        (0x5000, 2048, 0, 4096, 4096),
        (0x7002, 2048, 0, 4096, 16384),
        (0xFFFF, 2048, 0, 512, 512),
        (0x2003, 2048, 0, 512, 512),
        (0x5000, 0, 0, 512, 512),
    ],
)
def test_sector_sizes(w106: int, w117: int, w118: int, logical: int, physical: int) -> None:
    parsed = Identify.parse(with_words(PLAIN, {106: w106, 117: w117, 118: w118}))
    assert (parsed.logical_size, parsed.physical_size) == (logical, physical)


@pytest.mark.parametrize("words", [1, 3, 255, 257, 260, 0xFFFF, 0x10000, 0x01000000, 0xFFFFFFFF])
def test_sector_sizes_that_cannot_be_are_not_believed(words: int) -> None:
    """A size below 512, of no power of two, or past any disk's would make a block device that no one can use."""
    data = with_words(PLAIN, {106: 0x500F | 0x2000, 117: words & 0xFFFF, 118: words >> 16})
    parsed = Identify.parse(bytes(data))
    for size in (parsed.logical_size, parsed.physical_size):
        assert size >= 512
        assert size & size - 1 == 0
        assert size <= 1 << 25


@pytest.mark.parametrize(("w169", "trim"), [(0, False), (1, True), (0xFFFF, False), (0xFFFE, False)])
def test_trim_bit(w169: int, trim: bool) -> None:
    assert Identify.parse(with_words(PLAIN, {169: w169})).trim is trim


@pytest.mark.parametrize(("w69", "zeroes"), [(0x4020, True), (0x4000, False), (0x0020, False)])
def test_trim_zeroes_needs_both_bits(w69: int, zeroes: bool) -> None:
    assert Identify.parse(with_words(dataclasses.replace(PLAIN, trim=True), {69: w69})).trim_zeroes is zeroes


def test_vendor_words_count_only_with_our_signature() -> None:
    data = bytearray(dataclasses.replace(PLAIN, read_only=True, true_flush=True, vendor_known=True).build())
    assert Identify.parse(bytes(data)).read_only
    data[258] ^= 1
    parsed = Identify.parse(bytes(data))
    assert (parsed.read_only, parsed.true_flush, parsed.vendor_known) == (False, False, False)
