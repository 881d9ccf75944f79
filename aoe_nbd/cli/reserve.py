# SPDX-License-Identifier: BSD-3-Clause
"""Read which hosts hold a target, take it for some, or release it.

--set and --release work on a free target and on one that this host holds; --force and --force-release always do. A
target refuses reads and writes of hosts that do not hold it. After every change the reservation is read back.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..engine import Engine
from ..wire.address import format_mac
from ..wire.codes import AoeError, ReserveCommand, aoe_error_text
from ..wire.frames import FrameError, Reserve
from .asking import Path, ask, asking, by_mac, check_fits, reach
from .failure import Failure
from .words import add_interface, add_time, address, interfaces, macs, seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument("address", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--set", metavar="MAC,...", help="have these hosts hold the target")
    change.add_argument("--release", action="store_true", help="have no host hold it")
    change.add_argument("--force", metavar="MAC,...", help="as --set, whoever holds it now")
    change.add_argument("--force-release", action="store_true", help="as --release, whoever holds it now")
    add_interface(parser)
    add_time(parser, "3", "how long to wait for an answer")


def request(args: argparse.Namespace) -> Reserve | None:
    """The change that the options ask for, if any. Raises Failure."""
    forced = args.force is not None or args.force_release
    command = ReserveCommand.FORCE_SET if forced else ReserveCommand.SET
    hosts = args.set if args.set is not None else args.force
    if hosts is not None:
        found = macs([hosts])
        if len(found) > 255:
            raise Failure(f"{len(found)} MACs in a reservation: at most 255")
        return Reserve(command, tuple(found))
    return Reserve(command) if args.release or args.force_release else None


def run(args: argparse.Namespace) -> int:
    """Ask, change, print, and return the exit status."""
    which, timeout, wanted = address(args.address), seconds(args), request(args)
    with asking(interfaces(args)) as engine:
        check_fits(engine, wanted or Reserve())
        found = by_mac(reach(engine, which, timeout))
        for path in found:
            hosts = read(engine, path) if wanted is None else change(engine, path, wanted)
            before = f"{format_mac(path.mac)}: " if len(found) > 1 else ""
            print("\n".join(before + format_mac(host) for host in hosts) or f"{before}(free: no host holds it)")
    return 0


def read(engine: Engine, path: Path) -> tuple[bytes, ...]:
    """The hosts that hold it. Raises Failure."""
    answer = ask(engine, path, Reserve())
    if answer is None:
        raise Failure(f"{path.address} ({path}) cannot be reserved: it answers Query Config, but not Reserve/Release")
    if answer.header.failed:
        raise Failure(f"{path.address} ({path}) refuses Reserve/Release: {aoe_error_text(answer.header.error)}")
    try:
        return Reserve.parse(answer.frame).macs
    except FrameError as error:
        raise Failure(f"{path.address} ({path}) gives an unreadable reservation: {error}") from None


def change(engine: Engine, path: Path, wanted: Reserve) -> tuple[bytes, ...]:
    """Change the reservation and return it as read back, which alone counts. Raises Failure if it is another.

    What the change itself was answered may be about a second copy of it, or come by the second of two paths to a target
    that the first path has changed already.
    """
    answer = ask(engine, path, wanted)
    now = read(engine, path)
    if sorted(now) == sorted(wanted.macs):
        return now
    if answer is None:
        raise Failure(f"{path.address} ({path}) keeps silent on the change: {_holders(now)}")
    if not answer.header.failed:
        raise Failure(f"{path.address} ({path}) accepted the change, but {_holders(now)}")
    code = answer.header.error
    if code != AoeError.TARGET_RESERVED:
        raise Failure(f"{path.address} ({path}) refuses the change: {aoe_error_text(code)}; {_holders(now)}")
    option = f"--force {','.join(map(format_mac, wanted.macs))}" if wanted.macs else "--force-release"
    ours = engine.links[path.link].mac
    if ours in now:
        raise Failure(
            f"{path.address} ({path}) refuses the change ({aoe_error_text(code)}), although this host ({format_mac(ours)}) "
            f"holds it, as ggaoed does: use {option}"
        )
    raise Failure(f"{path.address} ({path}) refuses the change: {_holders(now)}; {option} takes it from them")


def _holders(hosts: Sequence[bytes]) -> str:
    return (
        f"{', '.join(map(format_mac, hosts))} hold{'' if len(hosts) > 1 else 's'} it" if hosts else "no host holds it"
    )
