# SPDX-License-Identifier: BSD-3-Clause
"""What an answer means: success, or which errno for which reason. Two layers can say no, AoE and ATA.

errno values are those that survive nbdkit's translation to NBD: EIO, EPERM, EINVAL, ENOSPC and few others.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from ..wire.codes import FAILED, AoeError, AtaError, Status, aoe_error_text
from .request import CHANGES, Kind


class Verdict(NamedTuple):
    """errno (0 is success) and one phrase."""

    error: int
    reason: str


OK = Verdict(0, "")

_AOE = {
    AoeError.BAD_ARGUMENT: errno.EINVAL,
    AoeError.DEVICE_UNAVAILABLE: errno.EIO,
    AoeError.TARGET_RESERVED: errno.EPERM,
}


def aoe_refusal(code: int) -> Verdict:
    """The E flag was set: a failure whatever the code (qaoed sends 0)."""
    return Verdict(_AOE.get(code, errno.EIO), f"target refuses: {aoe_error_text(code)}")  # type: ignore[call-overload]


def ata_verdict(kind: Kind, opcode: int, status: int, error: int) -> Verdict:
    """Read the ATA registers of a reply whose E flag is clear.

    DRDY need not be set, nor the error register be clean: vblade answers a flush with status 0 and a random error byte.
    ggaoed does not fill in the status of a flush, which then is the opcode that was sent.
    """
    if not status & FAILED or (kind is Kind.FLUSH and status == opcode):
        return OK
    if not status & Status.ERR:
        return Verdict(errno.EIO, f"target reports ATA status {status:#04x}")
    if error & AtaError.ABRT and kind in CHANGES:
        return Verdict(errno.EPERM, "target aborts the write: its export is probably read-only")
    if error & AtaError.ABRT:
        return Verdict(errno.EIO, f"target aborts ATA command {opcode:#04x}")
    if error & AtaError.IDNF:
        return Verdict(errno.EIO, "target knows no such sector: has its export shrunk?")
    if error & AtaError.UNC:
        return Verdict(errno.EIO, "target cannot read or write its disk: uncorrectable data")
    return Verdict(errno.EIO, f"target reports ATA status {status:#04x}, error {error:#04x}")
