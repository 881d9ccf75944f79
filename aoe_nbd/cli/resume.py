# SPDX-License-Identifier: BSD-3-Clause
"""Let the requests of a quiesced disk go on, in the order in which they came. Harmless if it was not quiesced."""

from __future__ import annotations

import argparse

from . import show
from .bridges import add_arguments as add_bridge
from .bridges import chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    add_bridge(parser, several=False)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Ask."""
    (bridge,) = chosen(args)
    resumed = bool(bridge.ask("resume")["resumed"])
    if args.json:
        show.dump({"address": bridge.name, "resumed": resumed})
    else:
        print(f"{bridge.name} {'goes on' if resumed else 'was not quiesced'}")
    return 0
