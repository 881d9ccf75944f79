# SPDX-License-Identifier: BSD-3-Clause
"""The persistent table of LUNs, /etc/aoe-nbd/aoetab and /etc/aoe-nbd/aoetab.d/*.conf: one line a LUN.

    # address  options, named as on the command line
    e1.0       interface=eth1 on-dead=hold
    e1.1       interface=eth1,eth2 readonly noauto

A `#` at the start of a word begins a comment. An option that is true or false needs no value to be true. `noauto`, as in
fstab(5), leaves a LUN out of `attach --all` (the boot); its options hold when it is attached by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..options import PARAMETERS, OptionError, Options
from ..wire.address import Address, parse_address

_ADDRESSES = ("target", "shelf", "slot")  # the first word of the line says it
_SUPERVISORS = ("control", "lock-memory", "on-end")  # the same for every attached disk
_REPEATABLE = ("interface", "netif", "mac")
_SWITCHES = tuple(p.name for p in PARAMETERS if p.default in ("true", "false"))
_NAMES = (*(p.name for p in PARAMETERS if p.name not in _ADDRESSES + _SUPERVISORS), "fail-after")


class TableError(ValueError):
    """A line that cannot be used; the message is one sentence with the file, the line and the field.

    `address` is the LUN that the line is about, if that much of it can be read.
    """

    def __init__(self, where: str, field: str, what: str, address: Address | None = None) -> None:
        super().__init__(f"{where}, field {field!r}: {what}")
        self.address = address


@dataclass(frozen=True)
class Entry:
    """One line: `options` are pairs for `Options.set`, without the address; `where` is for messages."""

    address: Address
    options: list[tuple[str, str]]
    auto: bool
    where: str


@dataclass
class Table:
    """What all files say: the lines that can be used, by address in the order of the files, and what is wrong with the others."""

    entries: dict[Address, Entry] = field(default_factory=dict)
    errors: list[TableError] = field(default_factory=list)


def folder() -> Path:
    """Where the table lies: /etc/aoe-nbd, or $AOE_NBD_ETC."""
    return Path(os.environ.get("AOE_NBD_ETC") or "/etc/aoe-nbd")


def files() -> list[Path]:
    """The files of the table that there are: aoetab, then those of aoetab.d that end in .conf, by name."""
    main = folder() / "aoetab"
    return [*([main] if main.exists() else []), *sorted((folder() / "aoetab.d").glob("[!.]*.conf"))]


def _word(where: str, address: Address, word: str) -> tuple[str, str]:
    """An option's (name, value). Raises TableError."""
    key, equals, value = word.partition("=")
    name = key.replace("_", "-").lower()
    if name in _ADDRESSES:
        raise TableError(where, word, "the line's first word is the address, which is enough", address)
    if name not in _NAMES:
        raise TableError(where, word, f"there is no such option: there are {', '.join(_NAMES)}, noauto", address)
    if not equals:
        if name not in _SWITCHES:
            raise TableError(where, word, f"the option needs a value: give {name}=VALUE", address)
        value = "true"
    return name, value


def parse(where: str, words: list[str]) -> Entry:
    """The words of one line; `where` is what messages call it. Raises TableError."""
    try:
        address = parse_address(words[0])
    except ValueError as error:
        raise TableError(where, words[0], str(error)) from None
    options = Options()
    options.set("target", str(address))
    pairs: list[tuple[str, str]] = []
    auto = True
    for word in words[1:]:
        if word == "noauto":
            auto = False
            continue
        name, value = _word(where, address, word)
        if name not in _REPEATABLE and any(name == before for before, _ in pairs):
            raise TableError(where, word, f"{name} is given twice: give it once", address)
        pairs.append((name, value))
        try:
            options.set(name, value)
            options.complete()
        except OptionError as error:
            raise TableError(where, word, str(error), address) from None
    return Entry(address, pairs, auto, where)


def scan(paths: Iterable[Path] | None = None) -> Table:
    """The table in `paths`, by default in `files()`. Raises OSError, but nothing for what is wrong in a line."""
    table = Table()
    for path in files() if paths is None else paths:
        for number, line in enumerate(path.read_text(errors="backslashreplace").splitlines(), 1):
            words = re.sub(r"(^|\s)#.*", "", line).split()
            if not words:
                continue
            try:
                entry = parse(f"{path}, line {number}", words)
                if entry.address in table.entries:
                    first = table.entries[entry.address].where
                    what = f"{entry.address} is in the table already ({first}): leave one of the two"
                    raise TableError(entry.where, words[0], what, entry.address)
                table.entries[entry.address] = entry
            except TableError as error:
                table.errors.append(error)
    return table


def read(*paths: Path) -> dict[Address, Entry]:
    """The whole table, by default from `files()`. Raises TableError for the first line that is wrong, and OSError."""
    table = scan(paths or None)
    if table.errors:
        raise table.errors[0]
    return table.entries


def find(address: Address, *paths: Path) -> Entry | None:
    """The line of one LUN, whatever is wrong with the others': a running disk does not depend on its neighbours' typing.

    Raises TableError if its own line is wrong, or may be the one whose address cannot be read; and OSError.
    """
    table = scan(paths or None)
    for error in table.errors:
        if error.address == address:
            raise error
    entry = table.entries.get(address)
    if entry is None:
        for error in table.errors:
            if error.address is None:
                raise error
    return entry
