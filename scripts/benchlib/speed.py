# SPDX-License-Identifier: BSD-3-Clause
"""How fast it is: against the least that can be done in C, against its peers, with many LUNs, and as users meet it.

Every row runs the things that it compares in turn, on veth pairs between network namespaces, the disk's file in memory,
and shows medians with the least and the most. At the end: what must be shown, and whether it is. The same goes to
speed.json (every run), speed.md and a plot a row.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console

from lab import MIB, write_random

from . import common, report
from .measure import FAILURES, Failed, compile_tools
from .rows import Bench
from .stacks import Places

HELP = "throughput, CPU time, latency, memory and start, as ratios to a C floor and to peers"
ROWS = ("floor", "targets", "peers", "luns", "tools", "startup")
SIZE = 256 * MIB
QUIET = "repeat rounds in which other programs had more than this share of the CPUs, 0 to 1, up to 3 times (default 1: never)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("rows", nargs="*", metavar="ROW", help=f"which rows (default all): {', '.join(ROWS)}")
    add("--quick", action="store_true", help="a minute: shorter and fewer runs, fewer depths and LUNs")
    add("--rounds", type=_at_least_one, help="runs of each side of a ratio (default 5, quick 2)")
    add("--seconds", type=_positive, help="of each run (default 1, quick 0.3)")
    add("--quiet", type=_share, default=1.0, metavar="SHARE", help=QUIET)
    add("--pin", action="store_true", help="initiators and clients on CPU 0, targets on CPU 1 (default: anywhere)")
    add("--no-plots", action="store_true", help="tables, JSON and Markdown only")
    add("--document", action="store_true", help="put the tables into docs/performance.md as well")
    add("--out", type=Path, default=common.OUT, help="where the results go (default build/bench)")


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of runs: give 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share: give 0 to 1")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 600:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds: give more than 0, at most 600")
    return value


def chosen(names: list[str]) -> list[str]:
    """The rows to run, in their order here. Raises ValueError."""
    for name in names:
        if name not in ROWS:
            raise ValueError(f"there is no row {name}: the rows are {', '.join(ROWS)}")
    return [name for name in ROWS if name in names or not names]


def run(args: argparse.Namespace) -> None:
    try:
        names = chosen(args.rows)
    except ValueError as error:
        sys.exit(f"scripts/bench: {error}")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    rounds = args.rounds or (2 if args.quick else 5)
    seconds = args.seconds or (0.3 if args.quick else 1.0)
    command = common.command(sys.argv[1:])
    results: dict[str, Any] = {"benchmark": "speed", "command": command, **common.circumstances()}
    results |= {
        "rounds": rounds,
        "seconds": seconds,
        "pinned": args.pin,
        "quiet": args.quiet,
        "rows": {},
        "it must show": [],
    }
    sections: list[report.Section] = []
    failures: list[str] = []
    with common.workspace() as folder:
        compile_tools(folder)
        disk = folder / "disk"
        write_random(disk, SIZE, seed=1)
        bench = Bench(Places(folder, args.pin), disk, SIZE, seconds, rounds, args.quiet, args.quick, _say)
        for name in names:
            row: ModuleType = importlib.import_module(f"benchlib.rows.{name}")
            try:
                section: report.Section = row.measure(bench)
            except FAILURES as error:  # the other rows go on
                failures.append(f"row {name} gave nothing: {error}")
                _say(failures[-1])
                continue
            except KeyboardInterrupt:
                failures.append(f"row {name} was interrupted, and what follows it was not run")
                break
            sections.append(section)
            results["rows"][name] = section.runs
            report.show(console, section)
    results["load at end"] = os.getloadavg()[0]
    claims = [claim for section in sections for claim in section.claims]
    results["it must show"] = [dict(zip(report.CLAIM_COLUMNS, claim.words(), strict=True)) for claim in claims]
    report.show_claims(console, claims)
    print(common.save("speed", args.out, results))
    text = args.out / "speed.md"
    text.write_text(report.markdown(_preamble(results), claims, sections))
    if args.document:
        report.put(common.DOCUMENT, "speed", text.read_text())
    for path in (text, *([] if args.no_plots else report.plot(sections, args.out))):
        print(path)
    if failures:
        raise Failed("; ".join(failures))


def _preamble(results: dict[str, Any]) -> list[str]:
    where = "initiators and clients on CPU 0, targets on CPU 1" if results["pinned"] else "no program pinned to a CPU"
    again = (
        "" if results["quiet"] >= 1 else f", rounds with more than {results['quiet']:.0%} for other programs repeated"
    )
    made, machine = common.head(results)
    return [
        made,
        f"{machine} at the start and {results['load at end']:.1f} at the end, net.core.rmem_max {results['rmem_max']}",
        f"{results['rounds']} rounds of {results['seconds']:g} s a run, sides in alternating order{again}, {where};"
        " figures are medians, those of ratios with (least to most)",
    ]


def _say(what: str) -> None:
    print(f"... {what}", file=sys.stderr, flush=True)
