# SPDX-License-Identifier: BSD-3-Clause
"""The parameters of a bridge, as `key=value` on nbdkit's command line: their names, defaults and meaning, and their parser."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from .core.policy import FAIL, HOLD, Fencing, OnDead
from .wire.address import Address, parse_address, parse_mac, parse_shelf, parse_slot


class Parameter(NamedTuple):
    """One row of the table that README and --dump-plugin show."""

    name: str
    default: str
    meaning: str


PARAMETERS = (
    Parameter(
        "target", "", "address of the LUN, e<shelf>.<slot>; without it (and shelf, slot) the NBD export name chooses"
    ),
    Parameter("shelf", "", "shelf (major), 0 to 65534; goes with slot"),
    Parameter("slot", "", "slot (minor), 0 to 254; goes with shelf"),
    Parameter(
        "mac", "", "MAC of the target, repeatable or a comma list: the LUN's paths; found by Query Config if not given"
    ),
    Parameter(
        "interface", "", "Ethernet interface to use, repeatable or a comma list; needed unless exactly one is up"
    ),
    Parameter("netif", "", "the same as interface"),
    Parameter("sectors", "255", "most sectors in one frame; the target's limit and the MTU count too"),
    Parameter("readonly", "false", "serve the LUN read-only"),
    Parameter("on-dead", "hold", "when the target does not answer: hold, fail (after 5 s), or fail-after=SECONDS"),
    Parameter("connect-timeout", "10", "seconds to wait for the target when attaching"),
    Parameter("control", "", "Unix socket to make for `aoe-nbd status`, `quiesce` and the like; none if not given"),
    Parameter(
        "fence",
        "off",
        "guard against a second host: off; warn keeps a record of who owns the LUN on the target; enforce reserves it too; "
        "auto is enforce if the target can, else warn",
    ),
    Parameter("owner", "", "what this host is called in that record; if not given, by its name and machine-id"),
    Parameter("owner-tag", "-", "for whom: a host that gives the same tag (a Xen domain's UUID) may take the LUN over"),
    Parameter(
        "on-end",
        "fail",
        "when the bridge is told to end, requests that wait fail, or, with hang-up, are left to a client that connects anew",
    ),
    Parameter(
        "lock-memory",
        "false",
        "for disks of this host itself: stay resident, never wait for memory that is being written out, drop privileges",
    ),
    Parameter(
        "cpu",
        "auto",
        "CPUs to run on: a number, one (that which it starts on), all, or auto: one, and another when others crowd it there",
    ),
    Parameter(
        "busy-poll",
        "100",
        "microseconds for which a request that is alone looks for its answer before it sleeps, while that is of use; 0: never",
    ),
    Parameter(
        "pin-threads", "true", "keep Python's thread states alive between requests (an off switch for a fast path)"
    ),
    Parameter("debug", "false", "log more"),
)
_ALIASES = {"netif": "interface", "fail-after": "on-dead"}
_TRUE, _FALSE = ("1", "true", "yes", "on", "t", "y"), ("0", "false", "no", "off", "f", "n")


class OptionError(ValueError):
    """A parameter that cannot be used; the message is one sentence."""


def _boolean(name: str, text: str) -> bool:
    value = text.lower()
    if value in _TRUE:
        return True
    if value in _FALSE:
        return False
    raise OptionError(f"{name}={text} is neither true nor false: give true or false")


def _number(name: str, text: str, low: float, high: float) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not low <= float(text) <= high:
        raise OptionError(f"{name}={text} is not a number from {low:g} to {high:g}")
    return float(text)


def _fencing(text: str) -> Fencing:
    try:
        return Fencing(text)
    except ValueError:
        raise OptionError(f"fence={text} is unknown: give {', '.join(Fencing)}") from None


def _word(name: str, text: str) -> str:
    if not re.fullmatch(r"[\w.:@+-]{1,64}", text, re.ASCII):
        raise OptionError(f"{name}={text} is not usable: give 1 to 64 letters, digits and . : @ + - _ only")
    return text


def _cpu(name: str, text: str) -> int | Literal["auto", "one", "all"]:
    match text:
        case "auto" | "one" | "all":
            return text
    try:
        return _count(name, text, 0, 4095)
    except OptionError as error:
        raise OptionError(f"{error}, auto, one or all") from None


def _count(name: str, text: str, low: int, high: int) -> int:
    if "." in text:
        raise OptionError(f"{name}={text} is not a whole number from {low} to {high}")
    return int(_number(name, text, low, high))


def parse_on_dead(text: str) -> OnDead:
    """`hold`, `fail` or `fail-after=SECONDS`. Raises OptionError."""
    if text == "hold":
        return HOLD
    if text == "fail":
        return FAIL
    match = re.fullmatch(r"fail-after[=:](.*)", text)
    if not match:
        raise OptionError(f"on-dead={text} is unknown: give hold, fail, or fail-after=SECONDS")
    return OnDead(_number("fail-after", match[1], 0.1, 1e6))


@dataclass
class Options:
    """Parsed parameters. `address` is None if the NBD export name is to choose."""

    address: Address | None = None
    macs: list[bytes] = field(default_factory=list)
    interfaces: list[str] = field(default_factory=list)
    sectors: int = 255
    readonly: bool = False
    on_dead: OnDead = HOLD
    connect_timeout: float = 10.0
    control: str = ""
    fence: Fencing = Fencing.OFF
    owner: str = ""
    owner_tag: str = "-"
    hang_up: bool = False
    lock_memory: bool = False
    cpu: int | Literal["auto", "one", "all"] = "auto"
    busy_poll: int = 100
    pin_threads: bool = True
    debug: bool = False
    _shelf: int | None = None
    _slot: int | None = None

    def set(self, key: str, value: str) -> None:
        """Take one `key=value`. Underscores and hyphens are the same in keys. Raises OptionError."""
        name = key.replace("_", "-").lower()
        if name not in {p.name for p in PARAMETERS} and name != "fail-after":
            known = ", ".join(p.name for p in PARAMETERS)
            raise OptionError(f"unknown parameter {key}={value}: the parameters are {known}")
        value = value.strip()
        try:
            self._set(name, value)
        except OptionError:
            raise
        except ValueError as error:
            raise OptionError(str(error)) from None

    def _set(self, name: str, value: str) -> None:
        match _ALIASES.get(name, name):
            case "target":
                self.address = parse_address(value)
            case "shelf":
                self._shelf = parse_shelf(value)
            case "slot":
                self._slot = parse_slot(value)
            case "mac":
                for mac in map(parse_mac, value.split(",")):
                    if mac not in self.macs:
                        self.macs.append(mac)
            case "interface":
                for interface in value.split(","):
                    if not interface.strip():
                        raise OptionError(f"{name}={value} names no interface: `ip link` lists them")
                    if interface.strip() not in self.interfaces:
                        self.interfaces.append(interface.strip())
            case "sectors":
                self.sectors = _count(name, value, 1, 255)
            case "readonly":
                self.readonly = _boolean(name, value)
            case "on-dead":
                self.on_dead = parse_on_dead(f"fail-after={value}" if name == "fail-after" else value)
            case "connect-timeout":
                self.connect_timeout = _number(name, value, 0.1, 86400)
            case "control":
                self.control = os.path.abspath(value) if value else ""  # now, for a daemon's working directory is /
            case "fence":
                self.fence = _fencing(value)
            case "owner":
                self.owner = _word(name, value)
            case "owner-tag":
                self.owner_tag = _word(name, value)
            case "on-end":
                if value not in ("fail", "hang-up"):
                    raise OptionError(f"{name}={value} is unknown: give fail or hang-up")
                self.hang_up = value == "hang-up"
            case "lock-memory":
                self.lock_memory = _boolean(name, value)
            case "cpu":
                self.cpu = _cpu(name, value)
            case "busy-poll":
                self.busy_poll = _count(name, value, 0, 10000)
            case "pin-threads":
                self.pin_threads = _boolean(name, value)
            case "debug":
                self.debug = _boolean(name, value)

    def complete(self) -> None:
        """Check what only the whole can show. Raises OptionError."""
        if (self._shelf is None) != (self._slot is None):
            have, lack = ("shelf", "slot") if self._slot is None else ("slot", "shelf")
            raise OptionError(f"{have} is given without {lack}: give both, or target=e<shelf>.<slot>")
        if self._shelf is not None and self._slot is not None:
            address = Address(self._shelf, self._slot)
            if self.address not in (None, address):
                raise OptionError(
                    f"target={self.address} and shelf={self._shelf} slot={self._slot} disagree: give one of them"
                )
            self.address = address
        if self.macs and self.address is None:
            raise OptionError("mac is given without an address: give shelf and slot, or target=e<shelf>.<slot>")
