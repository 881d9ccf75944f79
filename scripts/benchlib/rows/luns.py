# SPDX-License-Identifier: BSD-3-Clause
"""Many LUNs at once, each with a bridge of its own: throughput of all together, memory of each, and how long they start."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path

from ..measure import Spread, median, plain, ratio
from ..report import Claim, Section
from ..stacks import AT_ONCE, Aoe
from . import Bench, others

TITLE = "Many LUNs, a bridge for each"
MTU, REQUEST, DEPTH = 9000, 128 << 10, 4
COLUMNS = (
    "LUNs",
    "MB/s, all",
    "all / 1 LUN",
    "CPU s/GiB, bridges",
    "target",
    "RSS MB each",
    "PSS MB each",
    "start of all, s",
)


def measure(bench: Bench) -> Section:
    section = Section("luns", TITLE, COLUMNS)
    counts = (1, 4) if bench.quick else (1, 4, 16, 64)
    started: dict[int, float] = {}
    memory: dict[int, list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as ends:
        stacks: dict[int, Aoe] = {}
        for n in counts:
            bench.say(f"luns: starting {n}")
            stacks[n] = ends.enter_context(Aoe(bench.places, MTU, "ours", bench.disk, bridges=0, exports=n))
            begin = time.monotonic()
            stacks[n].bridges(n)
            started[n] = time.monotonic() - begin
        runs = bench.interleave(
            "luns: sequential read",
            {str(n): partial(stacks[n].load, "read", bench.seconds, REQUEST, DEPTH, size=bench.size) for n in counts},
        )
        for n, stack in stacks.items():
            memory[n] = [_memory(pid) for name, pid in stack.processes.items() if name.startswith("bridge")]
    for n in counts:
        found = runs[str(n)]
        together = ratio(found, runs["1"], lambda run: run.rate)
        bridges = [name for name in found[0].cpu if name.startswith("bridge")]
        section.lines.append(
            [
                str(n),
                median([run.rate for run in found]),
                together.text(),
                median([run.cpu_per_gib(*bridges) for run in found], 2),
                median([run.cpu_per_gib("target") for run in found], 2),
                Spread.of([rss for rss, _ in memory[n]]).text(0),
                Spread.of([pss for _, pss in memory[n]]).text(0),
                f"{started[n]:.2f}",
            ]
        )
        section.bars.append((f"{n} LUNs / 1 LUN", together))
    section.claims = [
        Claim(
            "resident memory of a LUN's bridge",
            80,
            Spread.of([rss for several in memory.values() for rss, _ in several]),
            most=True,
            unit="MB",
            digits=0,
        ),
        Claim(f"{n} LUNs, total throughput / 1 LUN", 0.9, together),
    ]
    section.runs = plain(runs) | {"memory, MB (RSS, PSS)": memory, "started, s": started}
    section.notes = [
        f"each count on a LAN of its own: one target of ours with so many exports of one file, MTU {MTU};"
        f" {DEPTH} reads of {REQUEST >> 10} KiB under way at each LUN, by one client process for all of them",
        f"memory after that; start: {AT_ONCE} bridges at a time, until the last of them serves",
        others(runs),
    ]
    return section


def _memory(pid: int) -> tuple[float, float]:
    """(RSS, PSS) in MB: resident memory, and the same with what is shared divided among its sharers."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        found[key] = int(value.split()[0]) * 1024 / 1e6
    return found["Rss"], found["Pss"]
