# SPDX-License-Identifier: BSD-3-Clause
"""The request queue of a /dev/nbdN, tuned for a bridge in /sys/block/nbdN/queue, and put back afterwards."""

from __future__ import annotations

import contextlib
from pathlib import Path

SYS = Path("/sys")

REQUEST_MOST = 256  # KiB in one request: as many buffers of that as there are threads are got ahead (`command`)
READ_AHEAD = 2048  # KiB: eight such requests
TIMEOUT = 5  # s after which the kernel looks for a request whose connection has died, to have it sent again

_WANTED = {
    "scheduler": "none",  # the order of requests is the target's business, which sees those of all hosts
    "max_sectors_kb": str(REQUEST_MOST),
    "read_ahead_kb": str(READ_AHEAD),
    "io_timeout": str(TIMEOUT * 1000),
}


def _current(path: Path) -> str:
    text = path.read_text().strip()
    return text[text.index("[") + 1 : text.index("]")] if "[" in text else text


def tune(index: int, sys: Path = SYS) -> dict[str, str]:
    """Set what suits a bridge. Returns what there was before, for `restore`; whatever this kernel lacks is left out."""
    before: dict[str, str] = {}
    folder = sys / "block" / f"nbd{index}" / "queue"
    for name, value in _WANTED.items():
        with contextlib.suppress(OSError, ValueError):
            now = _current(folder / name)
            if now != value:
                (folder / name).write_text(value)
                before[name] = now
    return before


def restore(index: int, before: dict[str, str], sys: Path = SYS) -> None:
    """Put back what `tune` found, for whoever gets the device next."""
    for name, value in before.items():
        with contextlib.suppress(OSError):
            (sys / "block" / f"nbd{index}" / "queue" / name).write_text(value)
