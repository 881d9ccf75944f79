# SPDX-License-Identifier: BSD-3-Clause
"""Make a disk a block device of this host, and print it: /dev/nbd0. /dev/etherd/e1.0 points to it, e1.0p1 to its partition.

It stays, whatever happens to this terminal, to the processes behind it or to the target, until it is detached as many times
as it was attached: each attach counts for its holder, but one that is named by --holder counts once. A disk that is attached
already is the same device. Without options, those of its line in /etc/aoe-nbd/aoetab hold.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from ..options import OptionError, Options
from . import parameters
from .failure import Failure
from .show import waiting, warn

if TYPE_CHECKING:
    from ..host.state import Folder, Pairs
    from ..host.table import Entry
    from ..wire.address import Address

OPERATOR, TABLE = "operator", "aoetab"
_OURS = ("control", "lock-memory", "on-end")  # parameters that the supervisor sets
_PATIENCE = 300.0  # s on top of connect-timeout for all that starting takes on a busy machine
_FIRST_READ = 10.0  # s for the first sector
_TOGETHER = 16  # disks of the table at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.usage = f"{parser.prog} ADDRESS|--all [--holder NAME] [options]"
    add = parser.add_argument
    add("address", nargs="?", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    add("--all", action="store_true", help="attach every disk of the table, at the same time")
    add(
        "--holder", metavar="NAME", help=f"for whom: counts once, however often (default: {OPERATOR}, counts each time)"
    )
    parameters.declare(parser, without=_OURS)


def holder_of(text: str | None) -> str:
    """The holder of that name. Raises Failure."""
    if text is None:
        return OPERATOR
    if not re.fullmatch(r"[\w.:@/+-]{1,200}", text, re.ASCII):
        raise Failure(f"--holder {text!r} is not usable: give letters, digits and . : @ / + - _ only")
    return text


def run(args: argparse.Namespace) -> int:
    """Attach one disk, or those of the table."""
    pairs = parameters.given(args)
    if args.all:
        if args.address is not None or pairs:
            raise Failure(
                "--all takes the disks and their options from the table: give no ADDRESS and no options with it"
            )
        return _all(args.holder)
    if args.address is None:
        raise Failure("which disk? give its ADDRESS, such as e1.0, or --all for those of the table")
    address, _ = parameters.check(args.address, pairs)
    assert address is not None
    holder = holder_of(args.holder)
    with waiting(f"attaching {address} …"):
        device = attach(address, pairs, holder, once=args.holder is not None)
    print(device)
    return 0


def _all(name: str | None) -> int:
    """Attach the table's disks. One that fails does not hinder the others."""
    from ..host import table

    holder = TABLE if name is None else holder_of(name)
    found = table.scan()
    for error in found.errors:
        warn("attach", str(error))

    def one(entry: Entry) -> bool:
        try:
            device = attach(entry.address, [], holder, once=True, persist=True)
        except (Failure, OSError) as error:
            warn("attach", str(error) if isinstance(error, Failure) else error.strerror or str(error))
            return False
        print(f"{entry.address} {device}", flush=True)
        return True

    entries = [entry for entry in found.entries.values() if entry.auto]
    with ThreadPoolExecutor(_TOGETHER) as pool:
        good = list(pool.map(one, entries))
    return 0 if all(good) and not found.errors else 1


def attach(
    address: Address,
    given: Pairs,
    holder: str,
    *,
    once: bool,
    persist: bool = False,
    admit: Callable[[Folder], None] = lambda folder: None,
) -> str:
    """Have the disk attached for `holder`. Returns the device. Raises Failure and OSError; then nothing has changed.

    With `persist`, a service that cannot start now goes on trying. `admit` may raise if it does not go with who is there.
    """
    from ..host.state import Folder

    folder = Folder(address)
    with folder.changing():
        before = folder.holders()
        status = _running(folder)
        admit(folder)
        if status is not None:
            _agree(folder, given, status)
        folder.hold({**before, holder: 1 if once else before.get(holder, 0) + 1})
        try:
            if status is None:
                status = _begin(folder, given)
        except BaseException:
            _undo(folder, before, persist)
            raise
    with contextlib.suppress(OSError):
        _see(status)
    return str(status["device"])


def _running(folder: Folder) -> dict[str, Any] | None:
    """What the supervisor says, once it has a device; None if there is none that could have one."""
    from ..host import control

    limit = time.monotonic() + _PATIENCE
    while folder.running() is not None:
        with contextlib.suppress(control.ControlError):  # it has only just started, or is just ending
            status = control.Client(folder.supervisor, f"supervisor of {folder.address}").ask("status")
            if status["device"] is not None:
                return status
        if time.monotonic() > limit:
            raise Failure(f"the supervisor of {folder.address} does not get ready: see its log")
        time.sleep(0.1)
    return None


def _options(folder: Folder, given: Pairs) -> Pairs:
    """The parameters of the bridge: those given, or else those of the table. Raises TableError."""
    from ..host import table

    if given:
        return given
    entry = table.find(folder.address)
    return entry.options if entry is not None else []


def _parsed(folder: Folder, pairs: Pairs) -> Options:
    options = Options()
    try:
        for key, value in [("target", str(folder.address)), *pairs]:
            options.set(key, value)
        options.complete()
    except OptionError as error:
        raise Failure(str(error)) from None
    return options


def _agree(folder: Folder, given: Pairs, status: dict[str, Any]) -> None:
    """Raise Failure if the disk is attached in another way than is wanted now."""
    from ..host.state import pair

    if status.get("fenced"):
        raise Failure(f"{folder.address} is attached as {status['device']}, but {status['problem']}")
    wanted = _parsed(folder, _options(folder, given))
    there = _parsed(folder, [pair(text) for text in status["options"]])
    if wanted.readonly != there.readonly:
        how, other = ("read-only", "read-write") if there.readonly else ("read-write", "read-only")
        who = ", ".join(folder.holders()) or "nobody"
        raise Failure(
            f"{folder.address} is attached {how} as {status['device']} (held by {who}): detach it before attaching it {other}"
        )
    if given and wanted != there:
        options = " ".join(status["options"]) or "none"
        warn("attach", f"{folder.address} is attached already, and keeps the options it has: {options}")


def _begin(folder: Folder, given: Pairs) -> dict[str, Any]:
    """Start a supervisor, and wait for its device."""
    from ..host import disks, service

    paused = disks.holding(str(folder.address))
    if paused:
        warn("attach", f"{folder.address} was left without a supervisor: going on with /dev/nbd{paused[0]}")
        if given:
            folder.set_options(given)
    else:
        folder.set_options(given or None)
    parsed = _parsed(folder, _options(folder, given))
    try:
        service.start(folder, parsed.connect_timeout + _PATIENCE)
    except service.ServiceError as error:
        raise Failure(error.strerror) from None
    status = _running(folder)
    if status is None:
        raise Failure(folder.failure() or f"the supervisor of {folder.address} has ended: see its log")
    return status


def _undo(folder: Folder, before: dict[str, int], persist: bool) -> None:
    """Leave nothing of an attach that has failed, but what was there before it."""
    from ..host import disks, service

    if persist and service.managed():
        return
    with contextlib.suppress(OSError):
        service.stop(folder)
    if disks.holding(str(folder.address)):
        folder.hold(before)
    else:
        folder.remove()


def _see(status: dict[str, Any]) -> None:
    """Read the first sector, by which the kernel looks for partitions, and have their names made.

    By a process of its own: one that waits for a target that has just died cannot be ended by anybody.
    """
    from ..host import names
    from ..wire.address import parse_address

    reader = subprocess.Popen(
        ["dd", f"if={status['device']}", "of=/dev/null", "bs=512", "count=1", "status=none"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if reader.wait(_FIRST_READ):
            warn(
                "attach",
                f"the first sector of {status['device']} cannot be read: see `aoe-nbd status {status['address']}`",
            )
    except subprocess.TimeoutExpired:
        reader.returncode = 0  # or its end would be waited for
        warn("attach", f"the target of {status['address']} does not answer just now: {status['device']} waits for it")
    names.refresh(parse_address(status["address"]), status["index"])
    sys.stdout.flush()
