# SPDX-License-Identifier: BSD-3-Clause
"""Many LUNs at once, each with a bridge of its own, or all by one bridge: throughput of all together, memory, and start."""

from __future__ import annotations

import contextlib
import time
from functools import partial
from pathlib import Path

from ..measure import Spread, median, plain, ratio
from ..report import Claim, Section
from ..stacks import AT_ONCE, Aoe
from . import Bench, others

TITLE = "Many LUNs"
MTU, REQUEST, DEPTH = 9000, 128 << 10, 4
EACH, ALL = "a bridge each", "one bridge"
COLUMNS = (
    "LUNs",
    "MB/s, all",
    "all / 1 LUN",
    "CPU s/GiB, bridges",
    "target",
    "RSS MB a LUN",
    "PSS MB a LUN",
    "start of all, s",
)


def measure(bench: Bench) -> Section:
    section = Section("luns", TITLE, COLUMNS)
    counts = (1, 4) if bench.quick else (1, 4, 16, 64)
    kinds = [(n, how) for how in (EACH, ALL) for n in counts]
    started: dict[str, float] = {}
    memory: dict[str, list[tuple[float, float]]] = {}
    with contextlib.ExitStack() as ends:
        stacks: dict[str, Aoe] = {}
        for n, how in kinds:
            name = f"{n}, {how}"
            bench.say(f"luns: starting {name}")
            stacks[name] = stack = ends.enter_context(Aoe(bench.places, MTU, "ours", bench.disk, bridges=0, exports=n))
            begin = time.monotonic()
            if how == EACH:
                stack.bridges(n)
            else:
                stack.bridge_for_all(n)
            started[name] = time.monotonic() - begin
        for stack in stacks.values():  # a LUN is attached, and threads are made, when its first client comes
            stack.load("read", 0.1, REQUEST, DEPTH, size=bench.size)
        runs = bench.interleave(
            "luns: sequential read",
            {
                name: partial(stack.load, "read", bench.seconds, REQUEST, DEPTH, size=bench.size)
                for name, stack in stacks.items()
            },
        )
        for (n, how), (name, stack) in zip(kinds, stacks.items(), strict=True):
            share = 1 if how == EACH else n
            found = [_memory(pid) for label, pid in stack.processes.items() if label.startswith("bridge")]
            memory[name] = [(rss / share, pss / share) for rss, pss in found]
    together = {}
    for n, how in kinds:
        name = f"{n}, {how}"
        found = runs[name]
        together[how] = ratio(found, runs[f"1, {how}"], lambda run: run.rate)
        bridges = [label for label in found[0].cpu if label.startswith("bridge")]
        section.lines.append(
            [
                name,
                median([run.rate for run in found]),
                together[how].text(),
                median([run.cpu_per_gib(*bridges) for run in found], 2),
                median([run.cpu_per_gib("target") for run in found], 2),
                Spread.of([rss for rss, _ in memory[name]]).text(0),
                Spread.of([pss for _, pss in memory[name]]).text(0),
                f"{started[name]:.2f}",
            ]
        )
        section.bars.append((f"{name} / 1 LUN", together[how]))
    section.claims = [
        Claim(
            "resident memory of a LUN's bridge",
            80,
            Spread.of([rss for several in memory.values() for rss, _ in several]),
            most=True,
            unit="MB",
            digits=0,
        ),
        *(Claim(f"{counts[-1]} LUNs, {how}, total throughput / 1 LUN", 0.9, together[how]) for how in (EACH, ALL)),
    ]
    section.runs = plain(runs) | {"memory, MB (RSS, PSS)": memory, "started, s": started}
    section.notes = [
        f"each on a LAN of its own: one target of ours with so many exports of one file, MTU {MTU};"
        f" {DEPTH} reads of {REQUEST >> 10} KiB under way at each LUN, by one client process for all of them",
        f"memory after that; start: {AT_ONCE} bridges at a time, until the last of them serves; the one bridge attaches a"
        " LUN when its first client comes",
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
