# SPDX-License-Identifier: BSD-3-Clause
"""What sysfs says of the kernel's nbd devices, and how one is flushed."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from ..wire.codes import SECTOR

SYS = Path("/sys")


def holding(backend: str, sys: Path = SYS) -> list[int]:
    """The indices of the devices that hold `backend`."""
    found = []
    for path in (sys / "block").glob("nbd*/backend"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == backend:
                found.append(int(path.parent.name[3:]))
    return sorted(found)


def size_of(index: int, sys: Path = SYS) -> int:
    """Capacity in bytes; 0 if it is not connected, or not there."""
    try:
        return int((sys / "block" / f"nbd{index}" / "size").read_text()) * SECTOR
    except (OSError, ValueError):
        return 0


def read_only(index: int, sys: Path = SYS) -> bool:
    """Whether the kernel takes no writes for it."""
    try:
        return (sys / "block" / f"nbd{index}" / "ro").read_text().strip() == "1"
    except OSError:
        return False


def flush(index: int, patience: float = 30.0) -> bool:
    """Have what is dirty written and the target's cache flushed; whether that was done within `patience` s.

    By a process of its own: one that waits for a dead target cannot be ended by anybody, and is left to its fate.
    """
    process = subprocess.Popen(["sync", f"/dev/nbd{index}"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return process.wait(patience) == 0
    except subprocess.TimeoutExpired:
        process.returncode = 0  # or its end would be waited for
        return False
