# SPDX-License-Identifier: BSD-3-Clause
"""What sysfs says of the kernel's nbd devices, and how one is flushed."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ..wire.codes import SECTOR

SYS = Path("/sys")
_LOOK = 0.5  # s between looks whether a flush is in vain


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


def flush(index: int, patience: float = 30.0, in_vain: Callable[[], bool] = lambda: False) -> bool:
    """Have what is dirty written and the target's cache flushed; whether that was done within `patience` s.

    It is given up as soon as it is known to be `in_vain`.

    By a process of its own: one that waits for a dead target cannot be ended by anybody, and is left to its fate.
    """
    process = subprocess.Popen(["sync", f"/dev/nbd{index}"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    limit = time.monotonic() + patience
    while time.monotonic() < limit:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(_LOOK, patience)) == 0
        if in_vain():
            break
    process.returncode = 0  # or its end would be waited for
    return False
