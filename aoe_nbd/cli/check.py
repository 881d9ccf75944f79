# SPDX-License-Identifier: BSD-3-Clause
"""Check the storage's network: what each interface carries, which frame sizes really get through to each disk and back.

Every path of every disk is tried with an IDENTIFY that is padded in steps of a sector (towards the disk), and with READs of
as many sectors (from it), from the largest that both ends allow downwards. Nothing is written. What should be mended is
said in one sentence each. Exit status 0 if there is nothing, 3 if there is something, 1 if no disk answers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as File
from typing import Any

from ..bridge import choose_interfaces
from ..core.exchange import Exchange
from ..core.flight import FOREVER
from ..core.reply import ata_verdict
from ..core.request import Kind
from ..engine import Engine
from ..link import Interface
from ..link import interfaces as all_interfaces
from ..wire.address import format_mac
from ..wire.codes import SECTOR, Ata
from ..wire.frames import ATA_SIZE, FrameError, mtu_sectors, parse_ata, sectors_per_frame, taskfile
from . import show
from .asking import Disk, asking, conflict, identify, nobody, paths, question
from .failure import Failure
from .words import add_interface, add_time, addresses, interfaces, seconds

_SOME = 3  # exit status if something should be mended
_PATIENCE = 1.0  # s for the answer to a size; repeated meanwhile, so that a mere loss does not count
_TOGETHER = 8  # sizes tried at once
_GOOD = 16  # sectors of a frame at an MTU of 9000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument("address", nargs="?", default="all", metavar="ADDRESS", help="e<shelf>.<slot>; default all")
    add_interface(parser)
    add_time(parser, "1", "how long to look for disks")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Look, try, print, and return the exit status."""
    which, timeout = addresses(args.address), seconds(args)
    nics = examine(choose_interfaces(interfaces(args), "-i"))
    usable = [nic.name for nic in nics if nic.up]
    if not usable:
        raise Failure("; ".join(problem for nic in nics for problem in nic.problems()))
    with asking(usable) as engine:
        with show.waiting(f"looking for disks on {', '.join(usable)}"):
            disks = identify(engine, paths(engine, which, timeout, grace=None))
        silence = "" if disks else nobody(engine, which, timeout)
        with show.waiting(f"trying frame sizes by {len(disks)} paths"):
            routes = try_sizes(engine, disks)
    nics = examine([nic.name for nic in nics])  # the kernel tells of carrier up to a second late
    warnings = [*of_nics(nics), *of_routes(nics, routes), *of_disks(disks)]
    if args.json:
        found = {"interfaces": [asdict(nic) for nic in nics], "paths": [route.facts() for route in routes]}
        show.dump({**found, "warnings": warnings, "error": silence or None})
    else:
        _print(nics, routes)
        for warning in warnings:
            show.warn("check", warning)
    if silence:
        if args.json:
            return 1
        raise Failure(silence)
    return _SOME if warnings else 0


# -- interfaces --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nic:
    """One interface of ours. `speed` in Mbit/s, 0 if it does not say; `pci` is vendor:device, "" if it is none."""

    name: str
    state: str  # up, no carrier, down, missing, not Ethernet
    mtu: int = 0
    mac: str = ""
    speed: int = 0
    pci: str = ""

    @property
    def up(self) -> bool:
        return self.state in ("up", "no carrier")

    def problems(self) -> list[str]:
        """What is wrong with it by itself."""
        if self.state != "up":
            what = {"missing": "does not exist", "no carrier": "has no carrier"}.get(self.state, f"is {self.state}")
            return [f"interface {self.name} {what}"]
        if mtu_sectors(self.mtu) < _GOOD:
            carried = sectors_per_frame(255, self.mtu)
            return [
                f"interface {self.name} has an MTU of {self.mtu}, for frames of {carried} sectors: with 9000, on the target "
                f"and on every switch of the way too, they carry {_GOOD}"
            ]
        return []


def examine(names: Sequence[str]) -> list[Nic]:
    """What these interfaces are."""
    present = {found.name: found for found in all_interfaces()}
    return [_nic(name, present.get(name)) for name in names]


def _nic(name: str, found: Interface | None) -> Nic:
    if found is None:
        return Nic(name, "missing")
    state = "up" if found.running else "no carrier" if found.up else "down"
    if not found.ethernet or found.loopback:
        state = "not Ethernet"
    folder = File("/sys/class/net") / name
    speed = _read(folder / "speed")
    pci = [_read(folder / "device" / part).removeprefix("0x") for part in ("vendor", "device")]
    return Nic(
        name,
        state,
        found.mtu,
        format_mac(found.mac),
        int(speed) if speed.isdecimal() else 0,
        ":".join(pci) if all(pci) else "",
    )


def _read(file: File) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""  # such as the speed of an interface that is down


# -- sizes -------------------------------------------------------------------------------------------------------------


class Search:
    """For the most sectors that get through one way, tried from the largest downwards, then by halves."""

    def __init__(self, most: int) -> None:
        self.through, self._beyond = 0, most + 1
        self._first = True

    @property
    def over(self) -> bool:
        return self.through + 1 >= self._beyond

    @property
    def next(self) -> int:
        """The size to try."""
        return self._beyond - 1 if self._first else (self.through + self._beyond) // 2

    def take(self, size: int, passed: bool) -> None:
        """That size got through, or did not."""
        self._first = False
        if passed:
            self.through = max(self.through, size)
        else:
            self._beyond = min(self._beyond, size)


@dataclass
class Route:
    """One path of one disk. Sizes in sectors: what either end allows, and what gets through to the target and from it."""

    address: str
    interface: str
    mac: str
    ours: int = 0  # by our MTU
    theirs: int = 0  # as the target says
    to_target: int = 0
    from_target: int = 0
    buffers: int = 0
    note: str = ""  # why nothing was tried

    @property
    def allowed(self) -> int:
        return min(self.ours, self.theirs)

    @property
    def used(self) -> int:
        """What frames of a bridge would carry."""
        return sectors_per_frame(min(self.to_target, self.from_target), 1 << 16) if self.to_target else 0

    def facts(self) -> dict[str, Any]:
        """The JSON."""
        return {**asdict(self), "allowed": self.allowed, "payload_bytes": self.used * SECTOR}

    def __str__(self) -> str:
        return f"{self.address} at {self.mac} on {self.interface}"


def try_sizes(engine: Engine, disks: Sequence[Disk]) -> list[Route]:
    """What gets through by each path of these disks, both ways, all at the same time."""
    routes: list[Route] = []
    open_searches: list[tuple[Disk, Kind, Search]] = []
    found: list[tuple[Route, Search, Search]] = []
    for disk in disks:
        path, config = disk.path, disk.path.config
        route = Route(str(path.address), path.link, format_mac(path.mac), note=path.refusal or disk.note)
        routes.append(route)
        if config is None or disk.identify is None:
            continue
        route.ours, route.theirs = mtu_sectors(engine.links[path.link].mtu), config.sector_count or 2
        route.buffers = config.buffer_count
        there, back = Search(route.allowed), Search(min(route.allowed, disk.identify.sectors))
        open_searches += [(disk, Kind.PROBE_REQUEST, there), (disk, Kind.PROBE_REPLY, back)]
        found.append((route, there, back))
    while open_searches:
        for start in range(0, len(open_searches), _TOGETHER):
            _round(engine, open_searches[start : start + _TOGETHER])
        open_searches = [each for each in open_searches if not each[2].over]
    for route, there, back in found:
        route.to_target, route.from_target = there.through, back.through
    return routes


def _round(engine: Engine, searches: Iterable[tuple[Disk, Kind, Search]]) -> None:
    """Try the next size of each of these."""
    tried: list[tuple[Search, int, Kind, Exchange]] = []
    for disk, kind, search in searches:
        size = search.next
        if kind is Kind.PROBE_REQUEST:
            arg, data = taskfile(Ata.IDENTIFY), bytes(size * SECTOR)
        else:
            lba48 = disk.identify is None or disk.identify.lba48
            arg, data = taskfile(Ata.READ_EXT if lba48 else Ata.READ, 0, size), b""
        tried.append((search, size, kind, question(engine, disk.path, arg, _PATIENCE, data=data)))
        engine.begin(tried[-1][3])
    engine.wait(lambda: all(exchange.done(time.monotonic()) for *_, exchange in tried), FOREVER)
    for search, size, kind, exchange in tried:
        engine.end(exchange)
        search.take(size, _passed(kind, size, exchange))


def _passed(kind: Kind, size: int, exchange: Exchange) -> bool:
    """Whether the answer shows that so many sectors got through. A refusal shows it of a request: it was heard."""
    for answer in exchange.answers:
        if kind is Kind.PROBE_REQUEST:
            return True
        if answer.header.failed or len(answer.frame) < ATA_SIZE + size * SECTOR:
            continue
        try:
            registers = parse_ata(answer.frame)
        except FrameError:
            continue
        if not ata_verdict(Kind.READ, Ata.READ_EXT, registers.command_status, registers.error_feature).error:
            return True
    return False


# -- what should be mended ---------------------------------------------------------------------------------------------


def of_nics(nics: Sequence[Nic]) -> list[str]:
    """Of our interfaces."""
    warnings = [problem for nic in nics for problem in nic.problems()]
    sizes = {nic.mtu for nic in nics if nic.up}
    if len(sizes) > 1:
        each = ", ".join(f"{nic.name} {nic.mtu}" for nic in nics if nic.up)
        warnings.append(f"the interfaces differ in their MTU ({each}): the paths will differ in speed")
    return warnings


def of_routes(nics: Sequence[Nic], routes: Sequence[Route]) -> list[str]:
    """Of paths."""
    warnings: list[str] = []
    for route in routes:
        if route.note:
            warnings.append(f"{route} cannot be used: {route.note}")
            continue
        if route.theirs < route.ours and sectors_per_frame(route.theirs, 1 << 16) < sectors_per_frame(
            255, _mtu(nics, route)
        ):
            warnings.append(
                f"{route} takes frames of {route.theirs} sectors, where our MTU allows {route.ours}: raise the target's MTU"
            )
        for way, through in (("to", route.to_target), ("from", route.from_target)):
            if through < route.allowed:
                warnings.append(
                    f"{route}: frames of at most {through * SECTOR} bytes of data get through {way} the target, where both ends "
                    f"allow {route.allowed * SECTOR}: something on the way, such as a switch, carries smaller frames only"
                )
        if 0 < route.buffers < 2:
            warnings.append(f"{route} takes one request at a time: it has {route.buffers} buffer")
    by_disk: dict[str, list[Route]] = {}
    for route in routes:
        by_disk.setdefault(route.address, []).append(route)
    seen = {route.interface for route in routes}
    for address, its in by_disk.items():
        ours, theirs = {route.interface for route in its}, {route.mac for route in its}
        if len(ours) != len(theirs) and max(len(ours), len(theirs)) > 1:
            warnings.append(
                f"{address} has {_count(theirs, 'MAC')} and is reached by {_count(ours, 'interface')}: "
                f"some of the paths share a cable"
            )
        for name in sorted(seen - ours):
            warnings.append(f"{address} is not reached by {name}, by which others are")
    for nic in nics:
        if routes and nic.state == "up" and nic.name not in seen:
            warnings.append(f"no disk is reached by interface {nic.name}")
    return warnings


def _mtu(nics: Sequence[Nic], route: Route) -> int:
    return next((nic.mtu for nic in nics if nic.name == route.interface), 1500)


def _count(things: set[str], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def of_disks(disks: Sequence[Disk]) -> list[str]:
    """Of disks that share an address."""
    by_address: dict[object, list[Disk]] = {}
    for disk in disks:
        by_address.setdefault(disk.path.address, []).append(disk)
    return [sentence for same in by_address.values() if (sentence := conflict(same))]


# -- tables ------------------------------------------------------------------------------------------------------------


def _print(nics: Sequence[Nic], routes: Sequence[Route]) -> None:
    show.table(
        ("INTERFACE", "STATE", "MTU", "SPEED", "MAC", "PCI"),
        [
            [nic.name, nic.state, str(nic.mtu or ""), f"{nic.speed} Mbit/s" if nic.speed else "", nic.mac, nic.pci]
            for nic in nics
        ],
    )
    if not routes:
        return
    print()
    head = ("ADDRESS", "MAC", "INTERFACE", "ALLOWED", "TO TARGET", "FROM TARGET", "PAYLOAD", "BUFFERS", "NOTE")
    rows = []
    for route in routes:
        sizes = (route.allowed, route.to_target, route.from_target, route.used)
        shown = ["" if route.note else str(size * SECTOR) for size in sizes]
        buffers = "" if route.note else str(route.buffers)
        rows.append([route.address, route.mac, route.interface, *shown, buffers, show.text(route.note)])
    show.table(head, rows, fold=("NOTE",))
