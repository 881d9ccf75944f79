# SPDX-License-Identifier: BSD-3-Clause
"""The name that a bridge takes on this host while it serves a LUN read-write: an abstract Unix socket, `@aoe-nbd/e1.0`.

It vanishes with the process. A bridge that finds it taken serves all the same, for some users know what they do; only
`attach` takes it for what it mostly is, two disks that are one.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from ..wire.address import Address

PROC = Path("/proc")


def _name(address: Address) -> str:
    return f"aoe-nbd/{address}"


def take(address: Address) -> socket.socket | None:
    """Take the name, as long as the socket is open; None if somebody has it."""
    # Not a stream socket, so that nobody takes it for a client's connection
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        end.bind("\0" + _name(address))
    except OSError:
        end.close()
        return None
    return end


def holder(address: Address, proc: Path = PROC) -> str | None:
    """Who has the name: "nbdkit (1234)", or "somebody" if that cannot be found out. None if it is free."""
    for line in (proc / "net" / "unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[-1] == "@" + _name(address):
            return _owner(words[6], proc)
    return None


def _owner(inode: str, proc: Path) -> str:
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) == f"socket:[{inode}]" for fd in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text().strip()} ({folder.name})"
    return "somebody"
