# SPDX-License-Identifier: BSD-3-Clause
"""How an attached disk is given back: flushed, then quiet, then no longer this host's. Or at once, if it is so no more.

A bridge that is quiesced, or whose disk another host has taken over, carries nothing out: who flushed its device would wait
for ever, and need not: for a device that nobody has open has nothing that is not written, but for what waits in the bridge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import control, disks, holders
from .state import Folder

LEAVE = 20.0  # s for what is under way, for copies that may still land, and for giving up the ownership
_AT_ONCE = 2.0  # s for the ownership of a disk that cannot be attached after all


def client(folder: Folder) -> control.Client:
    """The bridge of that disk."""
    return control.Client(folder.control, f"bridge of {folder.address}")


def parted(folder: Folder) -> str:
    """Why nothing is written any more: the disk is "quiesced", "yielded", "lost", "left", or not (""), or nobody knows ("")."""
    return _parted(_asked(folder))


def lun(status: Mapping[str, Any]) -> dict[str, Any]:
    """The one LUN of a bridge's status."""
    luns = status.get("luns") or [{}]
    return dict(luns[0])


def _asked(folder: Folder) -> dict[str, Any]:
    try:
        return lun(client(folder).ask("status"))
    except control.ControlError:
        return {}


def _parted(lun: Mapping[str, Any]) -> str:
    fence = lun.get("fence") or {}
    if fence.get("taken_over") or fence.get("state") == "left":
        return str(fence["state"])
    return "quiesced" if lun.get("quiesced") else ""


def obstacle(folder: Folder, index: int) -> str:
    """Have /dev/nbd<index> flushed if that can be. Returns why the disk cannot be given back yet; "" if it can."""
    found = _asked(folder)
    why = _parted(found)
    if not why and not disks.flush(index, in_vain=lambda: bool(parted(folder))):
        found = _asked(folder)
        why = _parted(found)
        if not why:
            return (
                f"/dev/nbd{index} could not be flushed: its target may be dead, see `aoe-nbd status {folder.address}`"
            )
    if why == "quiesced" and found.get("withheld"):
        return f"{found['withheld']} writes wait in the quiesced bridge: `aoe-nbd resume {folder.address}` first"
    return ""


def users(folder: Folder, index: int) -> list[str]:
    """Who has /dev/nbd<index> in use.

    While nothing is carried out, not those who look at every disk, and wait for this one as long as it is there.
    """
    disk = f"nbd{index}"
    if not parted(folder):
        return holders.lasting(disk)
    return [user for user in holders.users(disk) if not holders.is_onlooker(user)]


def leave(folder: Folder) -> None:
    """Have the bridge let nothing more out, wait until nothing can land, and give up the ownership. Raises ControlError."""
    client(folder).ask("leave", timeout=LEAVE)
