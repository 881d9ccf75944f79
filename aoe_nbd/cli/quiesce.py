# SPDX-License-Identifier: BSD-3-Clause
"""Have this host leave a disk alone: returns when no copy of any write from here can still land on it.

New requests wait in the bridge, what is under way is carried out, and copies of writes that may still arrive are waited for,
those of an older bridge too. It stays so until `resume`, whatever becomes of this command; saying it again does no harm.

Where that is not reached in time, because the target does not answer, requests are taken again and the exit status is 1
(a disk that was quiesced before stays so).
"""

from __future__ import annotations

import argparse

from . import show
from .bridges import add_arguments as add_bridge
from .bridges import chosen
from .words import number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    add_bridge(parser, several=False)
    parser.add_argument("--timeout", default="30", metavar="SECS", help="give up after this (default 30)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Ask, and return 0 once it is quiet."""
    limit = number("--timeout", args.timeout, 0, 600)
    (bridge,) = chosen(args)
    try:
        with show.waiting(f"waiting until no write to {bridge.name} is on its way"):
            answer = bridge.ask("quiesce", timeout=limit)
    except KeyboardInterrupt:
        show.warn(
            "quiesce", f"{bridge.name} may be quiesced, or become so: `aoe-nbd resume {bridge.name}` takes it back"
        )
        raise
    if args.json:
        show.dump({"address": bridge.name, "quiet": True, "took_s": answer["took"]})
    else:
        print(f"{bridge.name} is quiet; `aoe-nbd resume {bridge.name}` lets its requests go on")
    return 0
