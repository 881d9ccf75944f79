# SPDX-License-Identifier: BSD-3-Clause
"""Show the attached disks in the columns of aoetools' aoe-stat: address, size, interfaces, bytes of a frame, and up or down.

With REGEX only the lines that match it. Exit status 0 if there was a line, 1 if there was none.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

from ..host import state, sysfsview
from ..host.control import Client, ControlError
from .failure import Failure

_LINE = "{:>10} {:>15} {:>10} {:<5} {:<14}"  # of aoe-stat
_NONE = "(NA)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument("regex", nargs="?", default=".", metavar="REGEX", help="only lines that match (default all)")


def size(sectors: str | None) -> str:
    """Sectors of 512 bytes in GB (10^9 bytes), rounded down to three decimals."""
    if sectors is None or not sectors.isdecimal():
        return _NONE
    megabytes = 512 * int(sectors) // 10**6
    return f"{megabytes // 1000}.{megabytes % 1000:03}GB"


def line(address: object, files: Mapping[str, str]) -> str:
    """The line of one disk."""
    rest = (files.get(name) or _NONE for name in ("netif", "payload", "state"))
    return _LINE.format(str(address), size(files.get("size")), *rest)


def disks() -> dict[str, dict[str, str]]:
    """What there is to show of each attached disk: what its bridge says; of one that cannot be asked, what was known last."""
    found = {str(address): files for address, files in sysfsview.read(state.root() / "sysfs").items()}
    for folder in state.folders():
        name = str(folder.address)
        try:
            for lun in Client(folder.control, f"bridge of {name}").ask("status")["luns"]:
                found[lun["address"]] = sysfsview.shown(lun)
        except ControlError:
            found.setdefault(name, {})["state"] = "down"
    return found


def run(args: argparse.Namespace) -> int:
    """Print the lines."""
    try:
        wanted = re.compile(args.regex)
    except re.error as error:
        raise Failure(f"{args.regex!r} is no regular expression: {error}") from None
    lines = sorted(filter(wanted.search, (line(name, files) for name, files in disks().items())))
    for each in lines:
        print(each)
    return 0 if lines else 1
