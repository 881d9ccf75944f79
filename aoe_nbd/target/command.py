# SPDX-License-Identifier: BSD-3-Clause
"""`aoe-nbd target`: the options of the command line, checked, and the life of the process."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import NamedTuple, NoReturn

from ..link import LinkError
from ..wire.address import Address, parse_address, parse_mac, parse_shelf, parse_slot
from ..wire.codes import MAX_STRING
from .backend import Backend, BackendError
from .faults import Faults
from .lun import Lun
from .personality import OURS, PERSONALITIES
from .server import Target, TargetError
from .state import State, StateError


class _Export(NamedTuple):
    address: Address
    path: str
    read_only: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    add = parser.add_argument
    add("path", nargs="?", metavar="FILE-OR-BLOCK-DEVICE", help="what to export at --shelf and --slot")
    add("--shelf", default="0", help="shelf (major) of the export, 0 to 65534 (default 0)")
    add("--slot", default="0", help="slot (minor) of the export, 0 to 254 (default 0)")
    add("--export", action="append", default=[], metavar="e1.1=PATH[,ro]", help="one more export (repeatable)")
    add("--interface", action="append", default=[], metavar="NAME", help="Ethernet interface to serve on (repeatable)")
    add("--read-only", action="store_true", help="refuse writes to every export")
    add("--sync", action="store_true", help="answer a write only when it is on stable storage (O_DSYNC)")
    add("--direct", action="store_true", help="read and write past the page cache (O_DIRECT)")
    add("--buffers", metavar="N", help="requests that clients may have outstanding (default 64)")
    add("--config-string", metavar="TEXT", help="config string of every export, in place of a saved one")
    add("--mask", action="append", default=[], metavar="MAC", help="serve this client and no others (repeatable)")
    add(
        "--serial", metavar="TEXT", help="serial number, at most 20 characters (default: made from address and storage)"
    )
    add(
        "--physical-block-size", metavar="BYTES", help="as reported to clients (default: the device's, 4096 for a file)"
    )
    add("--state-dir", metavar="FOLDER", help="keep config strings, masks and reservations here over a restart")
    add("--like", metavar="|".join(PERSONALITIES), help="behave like another target, quirks and all: for tests")
    add(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=VALUE[,...]",
        help="for tests: loss, dup, dupdelay, reorder, hold, delay, jitter, truncate, mtu, each with in. or out. before"
        " it for one direction; aoe=CODE or ata=CODE with op, every, p, times, status; seed (repeatable)",
    )
    add("--verbose", action="store_true", help="print at the end what was served and dropped, by reason")


def _number(option: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text) <= most:
        raise ValueError(f"{option}={text} is not usable: give a number from {least} to {most}")
    return int(text)


def _exports(args: argparse.Namespace) -> list[_Export]:
    exports = []
    if args.path is not None:
        address = Address(parse_shelf(str(args.shelf)), parse_slot(str(args.slot)))
        exports.append(_Export(address, args.path, args.read_only))
    for text in args.export:
        where, equals, path = text.partition("=")
        read_only = args.read_only or path.endswith(",ro")
        path = path.removesuffix(",ro")
        if not equals or not path:
            raise ValueError(f"--export {text} is not usable: give e<shelf>.<slot>=PATH, such as e1.1=/srv/disk")
        exports.append(_Export(parse_address(where), path, read_only))
    if not exports:
        raise ValueError("nothing to export: give a file or block device, or --export e1.1=PATH")
    seen = set()
    for export in exports:
        if export.address in seen:
            raise ValueError(f"{export.address} is exported twice: give each export its own shelf and slot")
        seen.add(export.address)
    return exports


def build(args: argparse.Namespace) -> Target:
    """The target that the options describe, not open yet. Raises ValueError, BackendError, StateError, TargetError."""
    exports = _exports(args)
    if not args.interface:
        raise ValueError("no interface: name at least one with --interface, `ip link` lists them")
    if args.like is not None and args.like not in PERSONALITIES:
        raise ValueError(f"--like={args.like} is no target that we know: give {', '.join(PERSONALITIES)}")
    like = PERSONALITIES[args.like] if args.like else OURS
    buffers = None if args.buffers is None else _number("--buffers", args.buffers, 0, 65535)
    physical = 0
    if args.physical_block_size is not None:
        physical = _number("--physical-block-size", args.physical_block_size, 512, 1 << 20)
        if physical & physical - 1:
            raise ValueError(f"--physical-block-size={physical} is no power of two: give 512, 4096 or the like")
    if args.serial is not None and not (
        0 < len(args.serial) <= 20 and args.serial.isascii() and args.serial.isprintable()
    ):
        raise ValueError(f"--serial={args.serial} is not usable: give 1 to 20 printable ASCII characters")
    if args.serial is not None and len(exports) > 1:
        raise ValueError(f"--serial={args.serial} would be the same for {len(exports)} exports: serve each on its own")
    config = None if args.config_string is None else os.fsencode(args.config_string)
    if config is not None and len(config) > MAX_STRING:
        raise ValueError(f"--config-string has {len(config)} bytes: give at most {MAX_STRING}")
    if len(args.mask) > 255:
        raise ValueError(f"--mask is given {len(args.mask)} times: at most 255")
    masks = [parse_mac(text) for text in args.mask]
    faults = Faults.parse(args.fault) if args.fault else None
    luns = []
    for address, path, read_only in exports:
        state = State.load(args.state_dir, address)
        state.config = state.config if config is None else config
        state.mask = list(dict.fromkeys(masks)) or state.mask
        try:
            state.save()
        except OSError as error:
            raise StateError(
                f"state file {state.path} cannot be kept ({error.strerror}): give another --state-dir"
            ) from None
        backend = Backend(path, read_only, args.sync, physical, args.direct)
        luns.append(Lun(address, backend, state, buffers, args.serial, like))
    return Target(luns, args.interface, faults)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit status."""
    try:
        target = build(args)
        target.open()
    except (ValueError, BackendError, StateError, TargetError) as error:
        print(f"aoe-nbd target: {error}", file=sys.stderr)
        return 1
    except LinkError as error:
        print(f"aoe-nbd target: {error.strerror}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: target.stop())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    what = ", ".join(
        f"{lun.address} ({lun.backend.sectors} sectors{', read-only' if lun.backend.read_only else ''})"
        for lun in target.exports
    )
    for sentence in target.clipped():
        print(f"aoe-nbd target: {sentence}", file=sys.stderr)
    print(f"aoe-nbd target: serving {what} on {', '.join(target.names)}", flush=True)
    status = 0
    try:
        target.run()
    except OSError as error:
        print(f"aoe-nbd target: ended like {args.like}: {error.strerror or error}", file=sys.stderr)
        status = 1
    if args.verbose:
        counted = {"links": target.counters} | {str(lun.address): lun.counters for lun in target.exports}
        for title, counters in counted.items():
            counts = ", ".join(f"{name} {count}" for name, count in sorted(counters.items()))
            print(f"aoe-nbd target: {title}: {counts or 'nothing'}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(1, f"aoe-nbd target: {message}: --help lists the options\n")


def main(argv: list[str] | None = None) -> int:
    """The verb as a program of its own."""
    parser = _Parser(
        prog="aoe-nbd target", description="Export files and block devices by ATA over Ethernet.", allow_abbrev=False
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))
