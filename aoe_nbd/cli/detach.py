# SPDX-License-Identifier: BSD-3-Clause
"""Give a disk back: what one attach has made. The last one for it flushes the device, waits until no copy of any write can
still land (as quiesce does), gives up the ownership of a disk that is guarded, disconnects the device and leaves nothing.

A device that is in use is not detached, and who uses it is said. --force is for a target that does not come back: whatever
has not been written is lost, and whoever uses the device gets I/O errors.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING

from . import words
from .attach import OPERATOR, holder_of
from .failure import Failure
from .show import waiting, warn

if TYPE_CHECKING:
    from ..host.state import Folder
    from ..wire.address import Address

_PATIENCE = 60.0  # s for the supervisor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    add = parser.add_argument
    add("address", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    add("--holder", metavar="NAME", help=f"who has attached it (default: {OPERATOR})")
    add("--all-holders", action="store_true", help="detach it for all who hold it")
    add("--force", action="store_true", help="detach it for all, even if it is in use or its target is dead")


def run(args: argparse.Namespace) -> int:
    """Detach one disk."""
    address = words.address(args.address)
    holder = None if args.all_holders or args.force else holder_of(args.holder)
    with waiting(f"detaching {address} …"):
        left = detach(address, holder, args.force)
    if left:
        held = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in left.items())
        warn("detach", f"{address} stays attached: held by {held}")
    return 0


def detach(address: Address, holder: str | None, force: bool = False) -> dict[str, int]:
    """Drop what `holder` (None: everybody) has attached. Returns who holds it still. Raises Failure and OSError."""
    from ..host import disks
    from ..host.state import Folder

    folder = Folder(address)
    with folder.changing():
        holders = folder.holders()
        device = disks.holding(str(address))
        if folder.state() is None and not device and folder.running() is None and not holders:
            raise Failure(f"{address} is not attached")
        left = _without(address, holders, holder)
        if left:
            folder.hold(left)
        else:
            _end(folder, force)
        return left


def _without(address: Address, holders: dict[str, int], holder: str | None) -> dict[str, int]:
    """Who holds it once `holder` has dropped it once."""
    if holder is None or not holders:
        return {}
    if holder not in holders:
        raise Failure(
            f"{address} is not held by {holder} but by {', '.join(holders)}: give that as --holder, or --all-holders"
        )
    left = dict(holders)
    left[holder] -= 1
    return {name: count for name, count in left.items() if count > 0}


def _end(folder: Folder, force: bool) -> None:
    """Detach it for good, with its supervisor's help or without."""
    from ..host import control, disks, holders, parting, service

    address = folder.address
    devices = disks.holding(str(address))
    if not force:
        if parting.parted(folder) not in ("yielded", "lost", "left"):
            _refuse_unserved(folder)
        for index in devices:
            users = parting.users(folder, index)
            if users:
                raise Failure(
                    f"{address} is in use: {holders.sentence(users)}; end that first (--force would make it fail)"
                )
            why = parting.obstacle(folder, index)
            if why:
                raise Failure(f"{why}; or give up what is not written by --force")
    if folder.running() is not None:
        try:
            client = control.Client(folder.supervisor, f"supervisor of {address}")
            client.ask("detach", force=force, timeout=_PATIENCE)
        except control.ControlError as error:
            if not force and folder.running() is not None:
                raise Failure(error.strerror) from None
    with contextlib.suppress(service.ServiceError):
        service.stop(folder)
    _sweep(folder)


def _refuse_unserved(folder: Folder) -> None:
    """Raise Failure if the device cannot be flushed for want of somebody who serves it: who tried would hang."""
    from ..host import control

    address = folder.address
    if folder.running() is None:
        raise Failure(
            f"{address} has no supervisor: `aoe-nbd attach {address}` goes on with it, --force gives up what is not written"
        )
    status = control.Client(folder.supervisor, f"supervisor of {address}").ask("status")
    if status["state"] != "up":
        problem = f" ({status['problem']})" if status["problem"] else ""
        raise Failure(
            f"{address} is not served just now{problem}: wait until `aoe-nbd list` shows it up, "
            f"or give up what is not written by --force"
        )


def _sweep(folder: Folder) -> None:
    """What the supervisor has not done, because there was none or it did not answer."""
    from ..host import child, disks, names, queue, state, sysfsview

    known = folder.state()
    if known is not None and known.bridge:
        child.end_orphan(known.bridge, known.bridge_began)
    devices = disks.holding(str(folder.address))
    if devices:
        from ..host import nbd

        kernel = nbd.Kernel()
        for index in devices:
            with contextlib.suppress(nbd.NbdError):  # disconnected already, and only open still
                kernel.disconnect(index)
            if known is not None and known.index == index:
                queue.restore(index, known.queue)
        kernel.close()
    with contextlib.suppress(OSError):
        names.remove(folder.address, devices[0] if devices else None)
    with contextlib.suppress(OSError):
        sysfsview.remove(folder.address, state.root() / "sysfs")
    folder.remove()
