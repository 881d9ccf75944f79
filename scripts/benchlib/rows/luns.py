# SPDX-License-Identifier: BSD-3-Clause
"""Many LUNs at once, each with a bridge of its own: throughput of all together, memory of each, and how long they start."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from ..measure import Spread, median, plain, ratio
from ..report import Claim, Section
from ..stacks import Aoe
from . import Bench, others

TITLE = "Many LUNs, a bridge for each"
MTU, REQUEST, DEPTH = 9000, 128 << 10, 4
COLUMNS = (
    "LUNs at work",
    "MB/s, all",
    "all / 1 LUN",
    "CPU s/GiB, all bridges",
    "RSS MB each",
    "PSS MB each",
    "start, s",
)


def measure(bench: Bench) -> Section:
    section = Section("luns", TITLE, COLUMNS)
    counts = (1, 4) if bench.quick else (1, 4, 16, 64)
    bench.say(f"luns: starting {counts[-1]} bridges")
    started: dict[int, float] = {}
    with Aoe(bench.places, MTU, "ours", bench.disk, bridges=0, exports=counts[-1]) as stack:
        begin = time.monotonic()
        for slot in range(counts[-1]):
            stack.bridge(slot)
            started[slot + 1] = time.monotonic() - begin
        bridges = [name for name in stack.processes if name.startswith("bridge")]
        runs = bench.interleave(
            "luns: sequential read",
            {
                str(n): partial(stack.load, "read", bench.seconds, REQUEST, DEPTH, size=bench.size, luns=n)
                for n in counts
            },
        )
        memory = [_memory(stack.processes[name]) for name in bridges]
    resident = Spread.of([rss for rss, _ in memory])
    for n in counts:
        all_of = ratio(runs[str(n)], runs["1"], lambda run: run.rate)
        mine = memory[:n]
        section.lines.append(
            [
                str(n),
                median([run.rate for run in runs[str(n)]]),
                all_of.text(),
                median([run.cpu_per_gib(*bridges[:n]) for run in runs[str(n)]], 2),
                Spread.of([rss for rss, _ in mine]).text(0),
                Spread.of([pss for _, pss in mine]).text(0),
                f"{started[n]:.2f}",
            ]
        )
        section.bars.append((f"{n} LUNs / 1 LUN", all_of))
    most = counts[-1]
    final = ratio(runs[str(most)], runs["1"], lambda run: run.rate)
    section.claims = [
        Claim("resident memory of a LUN's bridge", 80, resident, most=True, unit="MB", digits=0),
        Claim(f"{most} LUNs, total throughput / 1 LUN", 0.9, final),
    ]
    section.runs = plain(runs) | {"memory, MB (RSS, PSS)": memory, "started, s": started}
    section.notes = [
        f"{most} exports of one file by one target of ours, MTU {MTU}; {DEPTH} reads of {REQUEST >> 10} KiB under way at each"
        " LUN; all bridges run all the time, and one client process drives some of them",
        "memory after that; start: from the first to the last bridge's answer, one after the other",
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
