# SPDX-License-Identifier: BSD-3-Clause
"""Read, test and set the string that a target keeps, as aoecfg does.

read prints it; test and prefix print it if it is, or begins with, STRING, and otherwise the target keeps silent
(exit status 1); set takes STRING if there is none yet; fset overwrites. ADDRESS may be a wildcard for read, test and
prefix: all, e1.255 (a whole shelf), e65535.255.
"""

from __future__ import annotations

import argparse
import os
import time

from ..core.exchange import Exchange
from ..device import config_of
from ..engine import Engine
from ..wire.address import Address, format_mac
from ..wire.codes import MAX_STRING, AoeError, ConfigCommand, aoe_error_text
from ..wire.frames import Config
from . import show
from .asking import GRACE, PATIENCE, Path, ask, asking, by_mac, check_fits, nobody, reach, refusal
from .failure import Failure
from .words import add_interface, add_time, addresses, interfaces, is_wild, seconds, shown

_ACTIONS = {
    "read": ConfigCommand.READ,
    "test": ConfigCommand.TEST,
    "prefix": ConfigCommand.TEST_PREFIX,
    "set": ConfigCommand.SET,
    "fset": ConfigCommand.FORCE_SET,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.usage = f"{parser.prog} [read|test|prefix|set|fset] ADDRESS [STRING] [-i IF] [-t SECS]"
    parser.add_argument("words", nargs="+", metavar="[ACTION] ADDRESS [STRING]", help="the action is read if not given")
    add_interface(parser)
    add_time(parser, "1", "how long to listen for answers")


def request(words: list[str]) -> tuple[ConfigCommand, Address, bytes]:
    """What the words ask for. Raises Failure."""
    action, rest = (words[0], words[1:]) if words[0] in _ACTIONS else ("read", words)
    if not rest:
        raise Failure(f"{action} needs an ADDRESS, such as e1.0")
    which, needed = addresses(rest[0]), action != "read"
    if len(rest) != 1 + needed:
        many = "no STRING" if not needed else "one STRING (in quotes if it has spaces, '' if it is empty)"
        raise Failure(f"{action} takes an ADDRESS and {many}, not {' '.join(rest)!r}")
    if is_wild(which) and action in ("set", "fset"):
        raise Failure(f"{rest[0]} means many targets: {action} takes the address of one, such as e1.0")
    string = os.fsencode(rest[1]) if needed else b""
    if len(string) > MAX_STRING:
        raise Failure(f"a config string of {len(string)} bytes is too long: at most {MAX_STRING}")
    return _ACTIONS[action], which, string


def run(args: argparse.Namespace) -> int:
    """Ask, print, and return the exit status."""
    command, which, string = request(args.words)
    timeout = seconds(args)
    with asking(interfaces(args)) as engine:
        check_fits(engine, Config(command, string))
        if command in (ConfigCommand.SET, ConfigCommand.FORCE_SET):
            change(engine, command, which, string, timeout)
        else:
            look(engine, command, which, string, timeout)
    return 0


def look(engine: Engine, command: ConfigCommand, which: Address, string: bytes, timeout: float) -> None:
    """Print the strings of all that answer a read, test or prefix. Raises Failure if none does."""
    exchange = Exchange(
        engine.addresses(),
        Config(command, string),
        seed=engine.seed(),
        now=time.monotonic(),
        timeout=timeout,
        shelf=which.shelf,
        slot=which.slot,
    )
    with show.waiting(f"listening {timeout:g} s on {', '.join(engine.links)}"):
        answers = engine.ask(exchange, None if is_wild(which) else GRACE).answers
    found: dict[tuple[Address, bytes], str] = {}
    refused = 0
    for answer in sorted(answers, key=lambda a: (a.address, a.mac)):
        config = config_of(answer)
        refused += config is None
        text = f"({refusal(answer)})" if config is None else show.text(config.string)
        found.setdefault((answer.address, answer.mac), text)
    if not found and command is ConfigCommand.READ:
        raise Failure(nobody(engine, which, timeout))
    if not found:
        raise Failure(_no_match(engine, command, which, string, timeout))
    if not is_wild(which) and len(set(found.values())) == 1:
        text = next(iter(found.values()))
        if refused:
            raise Failure(f"{which} does not tell: {text.strip('()')}")
        print(text)
        return
    several = len({address for address, _ in found}) < len(found)  # some address has more than one MAC
    for (address, mac), text in found.items():
        print(f"{address}\t{text}" + (f"\t{format_mac(mac)}" if several else ""))


def _no_match(engine: Engine, command: ConfigCommand, which: Address, string: bytes, timeout: float) -> str:
    """Silence means "no match", unless there is nobody to keep silent: look which it is."""
    what = "is" if command is ConfigCommand.TEST else "begins with"
    if is_wild(which):
        return f"no match: no config string of {shown(which)} {what} {show.text(string)!r}"
    for path in reach(engine, which, timeout):
        if path.config is not None:
            has = path.config.string
            same = has == string if command is ConfigCommand.TEST else has.startswith(string)
            if same:
                return (
                    f"no match, says {which}, although its config string {what} {show.text(string)!r} (qaoed does that)"
                )
            return f"no match: the config string of {which} is {show.text(has)!r}"
    return f"no match: {which} keeps silent, and does not tell its config string"


def change(engine: Engine, command: ConfigCommand, which: Address, string: bytes, timeout: float) -> None:
    """Set or overwrite the string, on every MAC that serves the disk. Raises Failure."""
    for path in by_mac(reach(engine, which, max(timeout, PATIENCE))):
        _change(engine, command, path, string)


def _change(engine: Engine, command: ConfigCommand, path: Path, string: bytes) -> None:
    name = f"{path.address} ({path})"
    answer = ask(engine, path, Config(command, string))
    if answer is not None and answer.header.failed and answer.header.error != AoeError.CONFIG_STRING_PRESENT:
        raise Failure(f"{name} refuses to set its config string: {aoe_error_text(answer.header.error)}")
    # Look, whatever it answered: qaoed does not show what it has set, and the answer to the first copy of a set may be
    # lost, so that "present" is the answer to the second copy and means our own string.
    again = ask(engine, path, Config())
    if again is None:
        said = "does not answer the set" if answer is None else "answered the set, but not when read back"
        raise Failure(f"{name} {said}: try again, and see what it has with `aoe-nbd config {path.address}`")
    now = config_of(again)
    if now is not None and now.string == string:
        return
    has = f"it is {show.text(now.string)!r}" if now is not None else refusal(again)
    if answer is None:
        raise Failure(f"{name} keeps silent on the set, and its config string is another: {has}")
    if answer.header.failed:
        raise Failure(f"{name} has a config string already, so set is refused: {has}; fset overwrites it")
    raise Failure(f"{name} accepted the config string, but has another now: {has}")
