# SPDX-License-Identifier: BSD-3-Clause
"""What people type: addresses, wildcards, MACs, numbers, interfaces. Every refusal is one sentence."""

from __future__ import annotations

import argparse
import re

from ..options import OptionError, Options
from ..wire.address import Address, parse_address, parse_mac, parse_shelf, parse_slot
from ..wire.codes import ALL_SHELVES, ALL_SLOTS
from .failure import Failure


def address(text: str) -> Address:
    """One LUN."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise Failure(str(error)) from None


def addresses(text: str) -> Address:
    """One LUN or many: `all`, e65535.255, or half of it (`e7.255` is all slots of shelf 7)."""
    if text == "all":
        return Address(ALL_SHELVES, ALL_SLOTS)
    match = re.fullmatch(r"e?([0-9]+)\.([0-9]+)", text.strip())
    if not match:
        raise Failure(f"{text!r} is not an AoE address: give e<shelf>.<slot>, such as e1.0, or all")
    try:
        shelf = ALL_SHELVES if int(match[1]) == ALL_SHELVES else parse_shelf(match[1])
        return Address(shelf, ALL_SLOTS if int(match[2]) == ALL_SLOTS else parse_slot(match[2]))
    except ValueError as error:
        raise Failure(str(error)) from None


def is_wild(which: Address) -> bool:
    """Whether it means more than one LUN."""
    return which.shelf == ALL_SHELVES or which.slot == ALL_SLOTS


def shown(which: Address) -> str:
    """`e1.0`, `e7.*`, or `any target`."""
    if which == (ALL_SHELVES, ALL_SLOTS):
        return "any target"
    shelf = "*" if which.shelf == ALL_SHELVES else which.shelf
    return f"e{shelf}.{'*' if which.slot == ALL_SLOTS else which.slot}"


def mac(text: str) -> bytes:
    """One unicast MAC."""
    try:
        return parse_mac(text)
    except ValueError as error:
        raise Failure(str(error)) from None


def macs(texts: list[str]) -> list[bytes]:
    """MACs, each text a comma list; every one once."""
    return list(dict.fromkeys(mac(part) for text in texts for part in text.split(",")))


def number(option: str, text: str, low: float, high: float) -> float:
    """A decimal number within bounds."""
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text) or not low <= float(text) <= high:
        raise Failure(f"{option} {text} is not usable: give a number from {low:g} to {high:g}")
    return float(text)


def whole(option: str, text: str, low: int, high: int) -> int:
    """A whole number within bounds."""
    if not re.fullmatch(r"[0-9]+", text) or not low <= int(text) <= high:
        raise Failure(f"{option} {text} is not usable: give a whole number from {low} to {high}")
    return int(text)


def add_interface(parser: argparse.ArgumentParser) -> None:
    """Declare -i."""
    parser.add_argument(
        *("-i", "--interface"),
        action="append",
        default=[],
        metavar="IF",
        help="Ethernet interface to use, repeatable or a comma list; needed unless exactly one is up",
    )


def add_time(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """Declare -t."""
    parser.add_argument("-t", "--time", default=default, metavar="SECS", help=f"{what} (default {default})")


def seconds(args: argparse.Namespace) -> float:
    """The value of -t."""
    return number("-t", args.time, 0.01, 86400)


def interfaces(args: argparse.Namespace) -> list[str]:
    """The values of -i, by the rules of the bridge's interface=."""
    options = Options()
    try:
        for text in args.interface:
            options.set("interface", text)
    except OptionError as error:
        raise Failure(str(error)) from None
    return options.interfaces
