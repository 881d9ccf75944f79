# SPDX-License-Identifier: BSD-3-Clause
"""Show all that one disk says of itself, by each path that leads to it, and what is durable on it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..device import durability
from ..engine import Engine
from ..wire.codes import SECTOR
from ..wire.identify import Identify
from . import show
from .asking import Disk, asking, conflict, identify, reach
from .discover import path_facts
from .failure import Failure
from .words import add_interface, add_time, address, interfaces, macs, seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument("address", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    add_interface(parser)
    parser.add_argument("--mac", action="append", default=[], help="ask this MAC only, repeatable or a comma list")
    add_time(parser, "3", "how long to wait for an answer")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Ask, print, and return the exit status."""
    which, timeout, only = address(args.address), seconds(args), macs(args.mac)
    with asking(interfaces(args)) as engine:
        with show.waiting(f"asking {which} on {', '.join(engine.links)}"):
            disks = identify(engine, reach(engine, which, timeout, only))
        facts = [described(engine, disk) for disk in disks]
    if args.json:
        show.dump(facts)
    else:
        print("\n\n".join("\n".join(lines(disk, fact)) for disk, fact in zip(disks, facts, strict=True)))
    if sentence := conflict(disks):
        raise Failure(sentence)
    silent = [disk for disk in disks if disk.identify is None]
    if silent:
        raise Failure(f"{which} by {silent[0].path} does not say what it is: {silent[0].note}")
    return 0


def described(engine: Engine, disk: Disk) -> dict[str, Any]:
    """The JSON of one path and its disk."""
    facts: dict[str, Any] = {"address": str(disk.path.address), **path_facts(engine, disk)}
    if disk.identify is not None:
        facts["size"] = disk.identify.sectors * SECTOR
        facts |= dataclasses.asdict(disk.identify)
        facts["wwn"] = f"{disk.identify.wwn:016x}" if disk.identify.wwn else None
        facts["durability"] = durability(disk.identify)
    return facts


def lines(disk: Disk, facts: dict[str, Any]) -> list[str]:
    """What a person reads about one path and its disk."""
    config = disk.path.config
    rows = [("path", f"{disk.path}, MTU {facts['mtu']}")]
    if config is None:
        rows.append(("config", disk.path.refusal))
    else:
        rows += [
            ("config string", show.text(config.string) or "(empty)"),
            ("buffers", f"{config.buffer_count} requests may be outstanding"),
            ("frame", f"{facts['sectors_per_frame']} sectors; the target takes {config.sector_count or 2}"),
            ("firmware", f"{config.firmware:#06x} by Query Config"),
        ]
    rows += [("disk", disk.note)] if disk.identify is None else _about(disk.identify)
    return [str(disk.path.address), *(f"  {name + ':':<15}{value}" for name, value in rows)]


def _about(disk: Identify) -> list[tuple[str, str]]:
    flushes = [name for name, there in (("FLUSH CACHE", disk.flush), ("FLUSH CACHE EXT", disk.flush_ext)) if there]
    trim = f"yes, {disk.trim_blocks} blocks of ranges a command" if disk.trim else "no"
    if disk.trim and disk.trim_zeroes:
        trim += ", trimmed sectors read as zeroes"
    # No standard word says it: only our own target does.
    access = ("read-only" if disk.read_only else "read and write") if disk.vendor_known else "not told by this target"
    return [
        ("model", show.text(disk.model)),
        ("revision", show.text(disk.firmware)),
        ("serial", show.text(disk.serial)),
        ("WWN", f"{disk.wwn:016x}" if disk.wwn else "none"),
        ("size", f"{show.size(disk.sectors * SECTOR)}: {disk.sectors * SECTOR} bytes, {disk.sectors} sectors"),
        ("sector", f"{disk.logical_size} bytes logical, {disk.physical_size} physical"),
        ("addresses", "48 bits" if disk.lba48 else "28 bits"),
        ("access", access),
        ("flush", ", ".join(flushes) or "none"),
        ("FUA writes", "yes" if disk.fua else "no"),
        ("trim", trim),
        ("rotating", "yes, or not told" if disk.rotating else "no"),
        ("durability", durability(disk)),
    ]
