# SPDX-License-Identifier: BSD-3-Clause
"""The bridge's parameters as options of a command: one for each, of the same name."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from ..options import PARAMETERS, OptionError, Options
from ..wire.address import Address
from .failure import Failure
from .words import add_interface

_ADDRESS = ("target", "shelf", "slot")  # the command's own word says it
_LISTS = ("interface", "netif", "mac")  # repeatable, with options of their own kind
_SPELLINGS = {"readonly": ("--readonly", "--read-only")}


def declare(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Declare the options on `parser`, but for the parameters in `without`."""
    add_interface(parser)
    parser.add_argument(
        "--mac", action="append", default=[], help="use these MACs of the target only, repeatable or a comma list"
    )
    for parameter in PARAMETERS:
        name = parameter.name
        if name in (*_ADDRESS, *_LISTS, *without):
            continue
        default = f" (default {parameter.default})" if parameter.default else ""
        words = _SPELLINGS.get(name, (f"--{name}",))
        if parameter.default in ("true", "false"):
            option = argparse.BooleanOptionalAction
            parser.add_argument(*words, action=option, help=parameter.meaning + default)
        else:
            parser.add_argument(*words, metavar="VALUE", help=parameter.meaning + default)


def given(args: argparse.Namespace) -> list[tuple[str, str]]:
    """What was given, as pairs for `Options.set`."""
    pairs = [("interface", value) for value in args.interface] + [("mac", value) for value in args.mac]
    for parameter in PARAMETERS:
        if parameter.name in (*_ADDRESS, *_LISTS):
            continue
        value = getattr(args, parameter.name.replace("-", "_"), None)
        if value is not None:
            pairs.append((parameter.name, str(value).lower() if isinstance(value, bool) else value))
    return pairs


def check(address: str | None, pairs: list[tuple[str, str]]) -> tuple[Address | None, list[tuple[str, str]]]:
    """The address, and all pairs with it before them. Raises Failure if the bridge would not take them."""
    pairs = [("target", address), *pairs] if address is not None else pairs
    options = Options()
    try:
        for key, value in pairs:
            options.set(key, value)
        options.complete()
    except OptionError as error:
        raise Failure(str(error)) from None
    return options.address, pairs
