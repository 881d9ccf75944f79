# SPDX-License-Identifier: BSD-3-Clause
"""Show the disks that answer: Query Config by broadcast, then IDENTIFY to each MAC that answered.

BUF is how many requests the target queues (all its clients together), SEC how many sectors go into one frame.
Exit status 0 if one answered; 1 if none did, or if different disks answer for one address.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

from ..engine import Engine
from ..wire.address import Address, format_mac
from ..wire.codes import SECTOR
from ..wire.frames import sectors_per_frame
from . import show
from .asking import Disk, asking, conflict, identify, nobody, paths
from .failure import Failure
from .words import add_interface, add_time, addresses, interfaces, seconds

# In a pipe each fact has its column; a terminal has not the width for that.
_PLAIN = ("ADDRESS", "SIZE", "MODEL", "SERIAL", "CONFIG", "BUF", "SEC", "MAC", "IF", "NOTE")
_TERMINAL = ("ADDRESS", "SIZE", "BUF", "SEC", "PATHS", "MODEL, SERIAL", "CONFIG", "NOTE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument(
        "address", nargs="?", default="all", metavar="ADDRESS", help="e1.0, e1.255 or all (default all)"
    )
    add_interface(parser)
    add_time(parser, "1", "how long to listen for answers")
    parser.add_argument("--json", action="store_true", help="print JSON, with every path's facts for itself")


def run(args: argparse.Namespace) -> int:
    """Ask, print, and return the exit status."""
    which, timeout = addresses(args.address), seconds(args)
    with asking(interfaces(args)) as engine:
        with show.waiting(f"listening {timeout:g} s on {', '.join(engine.links)}"):
            disks = identify(engine, paths(engine, which, timeout, grace=None))
        if args.json:
            show.dump([described(engine, group, fight) for group, fight in grouped(disks)])
        if not disks:
            raise Failure(nobody(engine, which, timeout))
        if not args.json:
            head = _TERMINAL if show.on_terminal() else _PLAIN
            rows = [_row(engine, group, fight) for group, fight in grouped(disks)]
            show.table(head, [[row[title] for title in head] for row in rows], _TERMINAL[5:])
    status = 0
    for _, same in itertools.groupby(disks, lambda disk: disk.path.address):
        if sentence := conflict(list(same)):
            show.warn("discover", sentence)
            status = 1
    return status


def grouped(disks: Sequence[Disk]) -> list[tuple[list[Disk], bool]]:
    """(paths of one disk, whether another disk answers for its address too), by address.

    A path that does not say who it is stands for itself.
    """
    groups: dict[tuple[Address, object], list[Disk]] = {}
    for disk in disks:
        key: object = disk.identity or (disk.path.mac, disk.note)
        groups.setdefault((disk.path.address, key), []).append(disk)
    return [
        (
            group,
            sum(other == address and there[0].identify is not None for (other, _), there in groups.items()) > 1,
        )
        for (address, _), group in groups.items()
    ]


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _row(engine: Engine, group: Sequence[Disk], fight: bool) -> dict[str, show.Cell]:
    disk = group[0].identify
    configs = [(d.path, d.path.config) for d in group if d.path.config is not None]
    notes = [*(["ANOTHER DISK HAS THIS ADDRESS TOO"] if fight else []), *(d.path.refusal or d.note for d in group)]
    model, serial = (show.text(disk.model), show.text(disk.serial)) if disk else ("", "")
    return {
        "ADDRESS": str(group[0].path.address),
        "SIZE": show.size(disk.sectors * SECTOR) if disk else "",
        "MODEL": model,
        "SERIAL": serial,
        "MODEL, SERIAL": [text for text in (model, serial) if text],
        "CONFIG": _unique([show.text(config.string) for _, config in configs]),
        "BUF": _unique([str(config.buffer_count) for _, config in configs]),
        "SEC": _unique([str(sectors_per_frame(c.sector_count, engine.links[path.link].mtu)) for path, c in configs]),
        "MAC": [format_mac(d.path.mac) for d in group],
        "IF": [d.path.link for d in group],
        "PATHS": [f"{format_mac(d.path.mac)} {d.path.link}" for d in group],
        "NOTE": _unique([note for note in notes if note]),
    }


def path_facts(engine: Engine, disk: Disk) -> dict[str, Any]:
    """The JSON of one path."""
    path, config = disk.path, disk.path.config
    mtu = engine.links[path.link].mtu
    return {
        "mac": format_mac(path.mac),
        "interface": path.link,
        "mtu": mtu,
        "config_string": show.text(config.string) if config else None,
        "buffer_count": config.buffer_count if config else None,
        "firmware_version": config.firmware if config else None,
        "sector_count": config.sector_count if config else None,
        "sectors_per_frame": sectors_per_frame(config.sector_count, mtu) if config else None,
        "error": path.refusal or disk.note or None,
    }


def described(engine: Engine, group: Sequence[Disk], fight: bool) -> dict[str, Any]:
    """The JSON of one disk: its facts, those of its first path, and all its paths."""
    disk = group[0].identify
    found = [path_facts(engine, one) for one in group]
    return {
        "address": str(group[0].path.address),
        "size": disk.sectors * SECTOR if disk else None,
        "model": disk.model if disk else None,
        "serial": disk.serial if disk else None,
        "macs": _unique([path["mac"] for path in found]),
        "interfaces": _unique([path["interface"] for path in found]),
        "config_string": found[0]["config_string"],
        "buffer_count": found[0]["buffer_count"],
        "sectors_per_frame": found[0]["sectors_per_frame"],
        "conflict": fight,
        "paths": found,
    }
