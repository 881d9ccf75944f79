# SPDX-License-Identifier: BSD-3-Clause
"""Show the disks that are attached to this host: their devices, who holds them, and how they do.

`up`: it serves. `held`: the target is silent, and requests wait for it. `paused`: it has no bridge at the moment, and
requests wait. `stale`: nobody looks after it; `aoe-nbd attach` goes on with it. `unknown`: only root may ask.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from . import guests, show

if TYPE_CHECKING:
    from ..host.state import Folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list; none is no failure."""
    from ..host import state

    found = [each for folder in state.folders() if (each := _one(folder)) is not None]
    if args.json:
        show.dump(found)
        return 0
    rows = [
        [
            each["address"],
            each["device"] or "",
            show.size(each["size_bytes"]) if each["size_bytes"] else "",
            "ro" if each["read_only"] else "rw",
            each["state"],
            _held_by(each),
            _age(each["since"]),
            each["problem"],
        ]
        for each in found
    ]
    show.table(
        ["DISK", "DEVICE", "SIZE", "MODE", "STATE", "HELD BY", "SINCE", "PROBLEM"], rows, fold=["HELD BY", "PROBLEM"]
    )
    return 0


def _one(folder: Folder) -> dict[str, Any] | None:
    """What is known of one disk; None if it is not attached."""
    from ..host import control, disks, xen

    holders = folder.holders()
    pid = folder.running()
    if pid is not None:
        try:
            answer = control.Client(folder.supervisor).ask("status")
        except control.ControlError as error:
            answer = {"state": "unknown", "problem": error.strerror or str(error)}
    else:
        answer = {"state": "stale", "problem": folder.failure()}
    known = folder.state()
    device = disks.holding(str(folder.address)) if known is None else [known.index]
    if pid is None and not device and not holders:
        return None
    return {
        "address": str(folder.address),
        "device": f"/dev/nbd{device[0]}" if device else None,
        "size_bytes": disks.size_of(device[0]) if device else 0,
        "read_only": bool(device) and disks.read_only(device[0]),
        "state": answer["state"],
        "problem": answer["problem"],
        "holders": holders,
        "guests": xen.guests(list(holders)),
        "since": 0.0 if known is None else known.since,
        "supervisor": pid,
        "bridge": answer.get("bridge"),
        "starts": 0 if known is None else known.starts,
        "options": [] if known is None else known.options,
    }


def _held_by(each: dict[str, Any]) -> list[str]:
    """The holders: domains by name, others with how many times they hold it."""
    names = {name: f"{name} ({count})" if count > 1 else name for name, count in each["holders"].items()}
    return list({**names, **{guest["holder"]: guests.name_of(guest) for guest in each["guests"]}}.values())


def _age(since: float) -> str:
    """When it was attached, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(since)) if since else ""
