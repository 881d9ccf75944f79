# SPDX-License-Identifier: BSD-3-Clause
"""Read the list of hosts that a target serves, or edit it: +MAC adds a host, -MAC takes one off.

An empty list serves every host. All edits of one command go out together and the list is read back afterwards. A list
that would lock this host out (nothing but a restart of the target lets it in again) takes --force.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence

from ..core.exchange import Answer
from ..engine import Engine
from ..wire.address import format_mac
from ..wire.codes import MaskCommand, MaskDirectiveCommand, MaskError, aoe_error_text
from ..wire.frames import FrameError, MaskList
from .asking import Path, ask, asking, by_mac, check_fits, reach
from .failure import Failure
from .words import add_interface, add_time, address, interfaces, mac, seconds

_MARK = "del:"  # stands for the hyphen, which argparse would take for an option's
_ERRORS = {
    MaskError.UNSPECIFIED: "unspecified error",
    MaskError.BAD_DIRECTIVE: "bad directive",
    MaskError.LIST_FULL: "the list is full",
}
Directives = Sequence[tuple[MaskDirectiveCommand, bytes]]


def prepare(words: list[str]) -> list[str]:
    """Have argparse leave -MAC alone."""
    return [_MARK + word[1:] if re.match("-[0-9A-Fa-f]", word) else word for word in words]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.usage = f"{parser.prog} ADDRESS [+MAC|-MAC]... [--force] [-i IF] [-t SECS]"
    parser.add_argument("address", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    parser.add_argument("edits", nargs="*", metavar="+MAC|-MAC", help="host to add to the list, or to take off it")
    parser.add_argument("--force", action="store_true", help="edit even if that locks this host out")
    add_interface(parser)
    add_time(parser, "3", "how long to wait for an answer")


def directive(word: str) -> tuple[MaskDirectiveCommand, bytes]:
    """One edit. Raises Failure."""
    for prefix, command in (("+", MaskDirectiveCommand.ADD), (_MARK, MaskDirectiveCommand.DELETE)):
        if word.startswith(prefix):
            return command, mac(word[len(prefix) :])
    raise Failure(f"{word!r} is no edit: give +MAC to add a host or -MAC to take one off")


def edited(before: Iterable[bytes], edits: Directives) -> list[bytes]:
    """The list that these edits lead to."""
    after = list(before)
    for command, one in edits:
        if command is MaskDirectiveCommand.ADD and one not in after:
            after.append(one)
        elif command is MaskDirectiveCommand.DELETE and one in after:
            after.remove(one)
    return after


def run(args: argparse.Namespace) -> int:
    """Ask, edit, print, and return the exit status."""
    which, timeout = address(args.address), seconds(args)
    edits = [directive(word) for word in args.edits]
    if len(edits) > 255:
        raise Failure(f"{len(edits)} edits in one command: at most 255")
    with asking(interfaces(args)) as engine:
        check_fits(engine, MaskList(MaskCommand.EDIT, tuple(edits)))
        found = reach(engine, which, timeout)
        ours = [] if args.force else list(dict.fromkeys(engine.links[path.link].mac for path in found))
        lists = [(path, read(engine, path)) for path in by_mac(found)]  # all of them, before an edit may lock us out
        for path, hosts in lists:
            after = edit(engine, path, hosts, edits, ours) if edits else hosts
            print("\n".join(lines(path, after, several=len(lists) > 1)))
    return 0


def lines(path: Path, hosts: Sequence[bytes], several: bool) -> list[str]:
    """A list for a person: one MAC a line."""
    before = f"{format_mac(path.mac)}: " if several else ""
    return [before + format_mac(host) for host in hosts] or [f"{before}(empty: every host is served)"]


def edit(engine: Engine, path: Path, before: Sequence[bytes], edits: Directives, ours: Sequence[bytes]) -> list[bytes]:
    """Edit the list and return it as read back. Raises Failure if it is not what it should be.

    `ours` are the MACs that must not be locked out.
    """
    wanted = edited(before, edits)
    if wanted and (out := [one for one in ours if one not in wanted]):
        names = ", ".join(map(format_mac, out))
        raise Failure(
            f"the list would be {_names(wanted)}, without this host's {names}, which {path.address} would never answer "
            f"again: add it by +{format_mac(out[0])}, or give --force"
        )
    lets_us_in = engine.links[path.link].mac in wanted or not wanted
    answer = ask(engine, path, MaskList(MaskCommand.EDIT, tuple(edits)))
    if answer is None and not lets_us_in:
        return wanted  # the edit was carried out, or an earlier one by another path, and locked us out as was asked for
    now = _read_answer(path, answer)
    if now.merror:
        number = now.count or 0
        failing = f" at edit {number + 1} ({_edit(edits[number])})" if number < len(edits) else ""
        what = _ERRORS.get(MaskError(now.merror), "") if now.merror in set(MaskError) else f"error {now.merror}"
        raise Failure(f"{path.address} ({path}) refuses{failing}: {what}; the edits before that one are made")
    try:
        after = read(engine, path)
    except Failure:
        if lets_us_in:
            raise Failure(
                f"{path.address} ({path}) does not answer any more: its list should be {_names(wanted)}, but it is "
                f"probably another and locks this host out, until the target is restarted"
            ) from None
        return wanted
    if sorted(after) != sorted(wanted):
        raise Failure(
            f"{path.address} ({path}) has made another list of it: {_names(after)} instead of {_names(wanted)}; vblade "
            f"corrupts lists of three and more: restart it with -m and the whole list"
        )
    return after


def _edit(one: tuple[MaskDirectiveCommand, bytes]) -> str:
    return ("+" if one[0] is MaskDirectiveCommand.ADD else "-") + format_mac(one[1])


def _names(hosts: Sequence[bytes]) -> str:
    return ", ".join(map(format_mac, hosts)) or "empty"


def read(engine: Engine, path: Path) -> list[bytes]:
    """The list as it is. Raises Failure."""
    return [host for _, host in _read_answer(path, ask(engine, path, MaskList())).directives]


def _read_answer(path: Path, answer: Answer | None) -> MaskList:
    if answer is None:
        raise Failure(f"{path.address} ({path}) keeps no list of hosts: it answers Query Config, but not MAC Mask List")
    if answer.header.failed:
        raise Failure(f"{path.address} ({path}) refuses MAC Mask List: {aoe_error_text(answer.header.error)}")
    try:
        return MaskList.parse(answer.frame)
    except FrameError as error:
        raise Failure(f"{path.address} ({path}) gives an unreadable list of hosts: {error}") from None
