# SPDX-License-Identifier: BSD-3-Clause
"""What an answer means, and which errno a client gets to see."""

from __future__ import annotations

import errno

import pytest

from aoe_nbd.core.reply import OK, aoe_refusal, ata_verdict
from aoe_nbd.core.request import Kind
from aoe_nbd.wire.codes import Ata

OPCODE = {
    Kind.READ: Ata.READ_EXT,
    Kind.WRITE: Ata.WRITE_EXT,
    Kind.FLUSH: Ata.FLUSH,
    Kind.TRIM: Ata.DATA_SET_MANAGEMENT,
    Kind.IDENTIFY: Ata.IDENTIFY,
    Kind.CHECK_POWER: Ata.CHECK_POWER,
}


@pytest.mark.parametrize(
    ("opcode", "status", "error"),
    [
        *[(Ata.FLUSH, 0x00, error) for error in (0x00, 0x04, 0x10, 0xFF)],
        *[(Ata.FLUSH, 0xE7, 0x00), (Ata.FLUSH_EXT, 0xEA, 0x04), (Ata.FLUSH, 0x40, 0x00), (Ata.FLUSH, 0x50, 0x00)],
    ],
)
def test_flushes_that_are_acknowledged(opcode: int, status: int, error: int) -> None:
    assert ata_verdict(Kind.FLUSH, opcode, status, error) == OK


@pytest.mark.parametrize(
    ("opcode", "status", "error"),
    [
        (Ata.FLUSH, 0x41, 0x04),
        (Ata.FLUSH, 0xEA, 0),
        (Ata.FLUSH_EXT, 0xE7, 0),
        (Ata.FLUSH, 0x61, 0x44),
        (Ata.FLUSH, 0x80, 0),
    ],
)
def test_flushes_that_are_not(opcode: int, status: int, error: int) -> None:
    assert ata_verdict(Kind.FLUSH, opcode, status, error).error == errno.EIO


@pytest.mark.parametrize("kind", OPCODE)
@pytest.mark.parametrize("status", range(256))
def test_every_status(kind: Kind, status: int) -> None:
    """BSY, DF, DRQ or ERR is a failure and nothing else is, but for a flush whose status is its opcode."""
    verdict = ata_verdict(kind, OPCODE[kind], status, 0)
    failed = bool(status & 0xA9) and not (kind is Kind.FLUSH and status == OPCODE[kind])
    assert bool(verdict.error) == failed
    assert bool(verdict.reason) == failed
    if kind is not Kind.FLUSH and status == OPCODE[kind]:
        assert bool(verdict.error) == bool(status & 0xA9)


def test_the_error_register_counts_only_with_err() -> None:
    for register in range(256):
        assert ata_verdict(Kind.READ, Ata.READ_EXT, 0x40, register) == OK
        assert ata_verdict(Kind.READ, Ata.READ_EXT, 0x60, register).error == errno.EIO
        assert "0x60" in ata_verdict(Kind.READ, Ata.READ_EXT, 0x60, register).reason


@pytest.mark.parametrize(
    ("kind", "register", "code", "phrase"),
    [
        (Kind.WRITE, 0x04, errno.EPERM, "probably read-only"),
        (Kind.TRIM, 0x04, errno.EPERM, "probably read-only"),
        (Kind.READ, 0x04, errno.EIO, "aborts ATA command 0x24"),
        (Kind.READ, 0x10, errno.EIO, "has its export shrunk?"),
        (Kind.WRITE, 0x10, errno.EIO, "has its export shrunk?"),
        (Kind.READ, 0x40, errno.EIO, "uncorrectable data"),
        (Kind.WRITE, 0x80, errno.EIO, "status 0x41, error 0x80"),
    ],
)
def test_ata_errors(kind: Kind, register: int, code: int, phrase: str) -> None:
    verdict = ata_verdict(kind, OPCODE[kind], 0x41, register)
    assert verdict.error == code
    assert phrase in verdict.reason


@pytest.mark.parametrize("code", range(256))
def test_aoe_errors(code: int) -> None:
    verdict = aoe_refusal(code)
    assert verdict.error == {2: errno.EINVAL, 6: errno.EPERM}.get(code, errno.EIO)
    assert verdict.reason.startswith("target refuses: ")
    assert verdict.error in (errno.EIO, errno.EPERM, errno.EINVAL)  # the only ones that NBD passes on
