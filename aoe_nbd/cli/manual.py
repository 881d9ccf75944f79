# SPDX-License-Identifier: BSD-3-Clause
"""The manual pages: prose by hand in plugin/man, and its tables of verbs, options and parameters from the program itself.

A line `.\\" @VERBS@` or `.\\" @PARAMETERS@` of a page stands for the table. So a page cannot lack what the program has.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from .. import __version__
from ..options import PARAMETERS

PAGES = ("aoe-nbd.8", "aoetab.5", "nbdkit-aoe-plugin.1")


def _roff(text: str) -> str:
    """Plain text as roff shows it literally; what is between backquotes is bold."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]*)`", r"\\fB\1\\fR", text)
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return "\n".join(rf"\&{line}" if line[:1] in (".", "'") else line for line in text.split("\n"))


def _option(action: argparse.Action) -> str:
    """One option or argument of a verb, with its meaning."""
    words = ", ".join(rf"\fB{_roff(name)}\fR" for name in action.option_strings)
    if action.nargs != 0:
        metavar = action.metavar or (action.dest if not words else action.dest.upper())
        value = _roff("|".join(metavar) if isinstance(metavar, tuple) else metavar)
        words += rf"{' ' if words else ''}\fI{value}\fR"
    meaning = (action.help or "").replace("%%", "%")
    return f".TP\n{words}\n{_roff(meaning)}"


def _verb(name: str) -> str:
    """A verb: its usage, what it does, its options."""
    from . import Parser, module_of

    module = module_of(name)
    parser = Parser(f"aoe-nbd {name}", (module.__doc__ or "").strip())
    module.add_arguments(parser)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    shown = [a for a in parser._actions if a.help != argparse.SUPPRESS and not isinstance(a, argparse._HelpAction)]
    prose = _roff(parser.description or "").replace("\n\n", "\n.PP\n")
    return "\n".join([f".SS {name}", ".B", _roff(usage), ".PP", prose, *(_option(action) for action in shown)])


def _verbs() -> str:
    from . import VERBS

    return "\n".join(_verb(name) for name in VERBS)


def _parameters() -> str:
    rows = []
    for parameter in PARAMETERS:
        default = f" (default {parameter.default})" if parameter.default else ""
        rows.append(f".TP\n\\fB{_roff(parameter.name)}=\\fR\n{_roff(parameter.meaning + default)}")
    return "\n".join(rows)


def page(source: Path) -> str:
    """A page of plugin/man, complete."""
    text = source.read_text().replace("@VERSION@", __version__)
    for mark, table in (("VERBS", _verbs), ("PARAMETERS", _parameters)):
        line = f'.\\" @{mark}@'
        if line in text:
            text = text.replace(line, table())
    return text
