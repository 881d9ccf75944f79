# SPDX-License-Identifier: BSD-3-Clause
"""Make a disk this host's own, whose owner is dead, or has it being moved and died before it had written.

Only for a disk that is guarded by fence=. If it is attached here, and waits for the host that has taken it over, its requests
go on in place. If not, it can be attached here afterwards. The other host gets no I/O any more, should it come back.

Do not take a disk over from a host that is alive: its guest would lose it in the middle of what it does.
"""

from __future__ import annotations

import argparse
import errno
from typing import Any

from ..bridge import choose_interfaces, open_links
from ..core.fence import NOBODY, Fence, Phase, Record
from ..core.policy import Fencing
from ..device import Device
from ..engine import Engine
from ..host import control, owner, state, table
from ..options import OptionError, Options
from ..wire.address import Address
from . import show
from .failure import Failure
from .words import add_interface, address, interfaces, number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument("address", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    add_interface(parser)
    parser.add_argument("--fence", choices=[str(mode) for mode in Fencing if mode is not Fencing.OFF], default=None,
                        help="as of attach (default auto)")  # fmt: skip
    parser.add_argument("--owner", metavar="NAME", help="as of attach (default: this host's name and machine-id)")
    parser.add_argument("--timeout", default="30", metavar="SECS", help="give up after this (default 30)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Take it over, and say what that means."""
    which, limit = address(args.address), number("--timeout", args.timeout, 1, 600)
    with show.waiting(f"taking {which} over"):
        found = _in_place(which, limit) or _afresh(which, args, limit)
    if args.json:
        show.dump({"address": str(which), **found})
        return 0
    before = f", which was held by {found['before']}" if found["before"] else ""
    print(f"{which} is this host's ({found['owner']}, epoch {found['epoch']}){before}")
    if not found["reserves"]:
        show.warn("takeover", "the target refuses nobody (fence=warn): make sure that no other host writes to the disk")
    return 0


def _in_place(which: Address, limit: float) -> dict[str, Any] | None:
    """By the bridge of this host that has it attached; None if there is none."""
    folder = state.Folder(which)
    try:
        client = control.Client(folder.control, f"bridge of {which}")
        before = client.ask("status", address=str(which))["luns"][0]["fence"]
        (after,) = client.ask("takeover", address=str(which), timeout=limit)["luns"]
    except control.ControlError as error:
        if error.errno == errno.ENOENT and folder.running() is None:
            return None
        raise
    return {
        "before": before.get("above", ""),
        "owner": after["host"],
        "epoch": after["epoch"],
        "reserves": after["reserves"],
    }


def _options(which: Address, args: argparse.Namespace) -> Options:
    """Those of the disk's line in the table, but for what was given."""
    options = Options(interfaces=interfaces(args))
    entry = table.find(which)
    for key, value in entry.options if entry is not None else ():
        if key not in ("interface", "netif") or not args.interface:
            options.set(key, value)
    try:
        if args.owner:
            options.set("owner", args.owner)
    except OptionError as error:
        raise Failure(str(error)) from None
    if args.fence:
        options.fence = Fencing(args.fence)
    elif options.fence is Fencing.OFF:
        options.fence = Fencing.AUTO
    return options


def _afresh(which: Address, args: argparse.Namespace, limit: float) -> dict[str, Any]:
    """It is not attached here."""
    options = _options(which, args)
    fence = Fence(options.fence, options.owner or owner.host_name(), NOBODY, by_force=True)
    engine = Engine(open_links(choose_interfaces(options.interfaces, "-i"), which))
    try:
        device = Device(engine, which, macs=options.macs, fence=fence)
        device.open(limit)
    finally:
        engine.stop()
    if device.initiator.fence is None:
        raise Failure(f"{which} is read-only: there is no owner of it")
    record = fence.record
    if fence.phase is not Phase.HOLDING or record is None:
        raise Failure(f"{which} has no record of an owner: {fence.why}")
    found: Record | None = fence.found
    return {
        "before": "" if found is None or found.owner == fence.host else str(found),
        "owner": fence.host,
        "epoch": record.epoch,
        "reserves": fence.enforcing,
    }
