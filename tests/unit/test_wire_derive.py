# SPDX-License-Identifier: BSD-3-Clause
"""The fast forms say the same as the construct declarations they come from, field by field, on many values."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from construct import Int16ub, Int16ul, Struct

from aoe_nbd.wire.derive import dtype_of, struct_of
from aoe_nbd.wire.formats import AtaArg, ConfigArg, Header, IdentifyData, MaskArg, MaskDirective, ReserveArg

FORMATS = {
    "Header": (Header, 24),
    "AtaArg": (AtaArg, 12),
    "ConfigArg": (ConfigArg, 8),
    "MaskArg": (MaskArg, 4),
    "MaskDirective": (MaskDirective, 8),
    "ReserveArg": (ReserveArg, 2),
}


def samples(size: int) -> list[bytes]:
    rng = random.Random(size)
    return [bytes(size), b"\xff" * size, bytes(range(1, size + 1)), *(rng.randbytes(size) for _ in range(200))]


def names(declaration: Any) -> list[str]:
    return [field.name for field in declaration.subcons]


@pytest.mark.parametrize("name", FORMATS)
def test_sizes(name: str) -> None:
    declaration, size = FORMATS[name]
    assert declaration.sizeof() == size
    assert struct_of(declaration).size == size
    assert dtype_of(declaration).itemsize == size


@pytest.mark.parametrize("name", FORMATS)
def test_construct_round_trip(name: str) -> None:
    declaration, size = FORMATS[name]
    for data in samples(size):
        assert declaration.build(declaration.parse(data)) == data


@pytest.mark.parametrize("name", FORMATS)
def test_struct_form_reads_what_construct_reads(name: str) -> None:
    declaration, size = FORMATS[name]
    fast = struct_of(declaration)
    for data in samples(size):
        values = fast.unpack(data)
        assert fast.pack(*values) == data
        parsed = declaration.parse(data)
        for field, value in zip(declaration.subcons, values, strict=True):
            expected = parsed[field.name]
            if isinstance(expected, int | bytes) and isinstance(value, type(expected)):
                assert value == expected, field.name
            else:  # bit fields are one byte, odd-sized integers are raw bytes
                raw = bytes([value]) if isinstance(value, int) else value
                assert field.build(expected) == raw, field.name


@pytest.mark.parametrize("name", FORMATS)
def test_numpy_form_reads_what_construct_reads(name: str) -> None:
    declaration, size = FORMATS[name]
    fast = dtype_of(declaration)
    assert list(fast.names or ()) == names(declaration)
    for data in samples(size):
        rows = np.frombuffer(data, fast)
        parsed = declaration.parse(data)
        for field in declaration.subcons:
            raw = rows[field.name].tobytes()
            assert field.build(parsed[field.name]) == raw, field.name


def test_joined_forms_lie_one_after_the_other() -> None:
    joined = dtype_of(Header, AtaArg)
    assert joined.itemsize == 36
    assert joined.fields is not None
    assert [(name, joined.fields[name][1]) for name in ("tag", "flags", "count", "lba", "reserved")] == [
        ("tag", 20),
        ("flags", 24),
        ("count", 26),
        ("lba", 28),
        ("reserved", 34),
    ]
    twice = dtype_of(ReserveArg, ReserveArg)  # names that come twice are told apart
    assert twice.names == ("rcmd", "count", "arg_rcmd", "arg_count")
    assert struct_of(Header, AtaArg).size == 36


def test_little_endian_fields_are_refused() -> None:
    """A silent byte swap would be worse than no fast form."""
    with pytest.raises(TypeError, match="not big-endian"):
        struct_of(Struct("a" / Int16ub, "b" / Int16ul))


def test_defaults_are_what_requests_need() -> None:
    built = Header.build(
        {"dst": bytes(6), "src": bytes(6), "version_flags": {}, "major": 1, "minor": 2, "command": 3, "tag": 4}
    )
    assert built[12:16] == b"\x88\xa2\x10\x00"
    assert AtaArg.build({"flags": {}, "count": 1, "command_status": 0xEC, "lba": 5}) == struct.pack(
        ">BBBB6sH", 0, 0, 1, 0xEC, b"\5\0\0\0\0\0", 0
    )


def test_identify_words_lie_where_the_standard_puts_them() -> None:
    assert IdentifyData.sizeof() == 512
    parsed = IdentifyData.parse(b"".join(struct.pack("<H", word) for word in range(256)))
    words = {
        "general": 0,
        "max_multiple": 47,
        "capabilities": 49,
        "capabilities2": 50,
        "validity": 53,
        "additional": 69,
        "ata_major": 80,
        "ata_minor": 81,
        "supported1": 82,
        "supported2": 83,
        "supported3": 84,
        "enabled1": 85,
        "enabled2": 86,
        "enabled3": 87,
        "dsm_blocks": 105,
        "sector_size": 106,
        "dsm": 169,
        "rotation": 217,
    }
    assert {name: parsed[name] for name in words} == words
    assert parsed.lba28_sectors == 60 | 61 << 16
    assert parsed.lba48_sectors == 100 | 101 << 16 | 102 << 32 | 103 << 48
    assert list(parsed.wwn) == [108, 109, 110, 111]
    assert parsed.logical_words == 117 | 118 << 16
    for name, first, last in (("serial", 10, 19), ("firmware", 23, 26), ("model", 27, 46), ("vendor", 129, 132)):
        assert parsed[name] == b"".join(struct.pack("<H", word) for word in range(first, last + 1)), name
