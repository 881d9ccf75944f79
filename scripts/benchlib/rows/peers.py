# SPDX-License-Identifier: BSD-3-Clause
"""The bridge against its peers on the same file: qemu-nbd with libiscsi and tgt, and nbdkit's file plugin over TCP."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from ..measure import Run, fio, median, plain, ratio
from ..report import Claim, Section
from ..stacks import Aoe, Iscsi, Stack, Tcp
from . import Bench, others

TITLE = "Bridge / peers, fio's NBD client, MTU 9000"
MTU = 9000
DEPTHS = (1, 4, 16, 32, 64)
COLUMNS = (
    "job", "stack", "MB/s", "operations/s", "bridge / this", "p50 us", "p99", "p99.9", "CPU s/GiB", "s/million", "s/million of",
)  # fmt: skip
REQUIRED = {("randread", 1): 1.2, ("randread", 32): 1.5, ("randwrite", 32): 1.5}


def measure(bench: Bench) -> Section:
    section = Section("peers", TITLE, COLUMNS)
    everything: dict[str, list[Run]] = {}
    depths = (1, 32) if bench.quick else DEPTHS
    jobs = [(way, "4k", depth) for way in ("randread", "randwrite") for depth in depths]
    jobs += [] if bench.quick else [(way, "128k", 16) for way in ("read", "write")]
    with contextlib.ExitStack() as ends:
        ours = ends.enter_context(Aoe(bench.places, MTU, "ours", bench.disk))
        iscsi = ends.enter_context(Iscsi(bench.places, MTU, bench.disk))
        stacks: list[Stack] = [ours, iscsi]
        if not bench.quick:
            stacks.append(ends.enter_context(Tcp(bench.places, MTU, bench.disk)))
            stacks.append(ends.enter_context(Aoe(bench.places, MTU, "vblade", bench.disk)))
        for way, block, depth in jobs:
            words = (f"--rw={way}", f"--bs={block}", f"--iodepth={depth}")
            job = f"{way} {block}, depth {depth}"
            sides = {stack.name: partial(_one, bench, stack, words) for stack in stacks}
            runs = bench.interleave(f"peers: {job}", sides)
            mine = runs[ours.name]
            for stack in stacks:
                speed = ratio(mine, runs[stack.name], lambda run: run.operation_rate)
                section.lines.append(_line(job, stack, runs[stack.name], "" if stack is ours else speed.text()))
                if stack is not ours:
                    section.bars.append((f"{job} / {stack.name}", speed))
            if (way, depth) in REQUIRED:
                for bridge in (stack for stack in stacks if isinstance(stack, Aoe)):
                    speed = ratio(runs[bridge.name], runs[iscsi.name], lambda run: run.operation_rate)
                    what = f"4k random {way.removeprefix('rand')}, depth {depth}, {bridge.name} / libiscsi stack"
                    section.claims.append(Claim(what, REQUIRED[way, depth], speed))
            everything |= {f"{job}: {name}": found for name, found in runs.items()}
    section.runs = plain(everything)
    section.notes = [
        "the same file in memory behind all; qemu-nbd and nbdkit with 16 requests or threads a client, their own defaults",
        "`bridge / this` is aoe-nbd with our target over that stack; CPU is that of all server programs, not fio's",
        others(everything),
    ]
    return section


def _one(bench: Bench, stack: Stack, job: Sequence[str]) -> Run:
    return stack.run(lambda: fio(stack.client(), stack.uri, bench.places.folder, bench.seconds, bench.size, *job))


def _line(job: str, stack: Stack, runs: list[Run], speed: str) -> list[str]:
    servers = tuple(stack.processes)
    parts = [f"{name} {median([run.cpu_per_million(name) for run in runs])}" for name in servers]
    return [
        job,
        stack.name,
        median([run.rate for run in runs]),
        median([run.operation_rate for run in runs]),
        speed,
        *(median([run.figures[figure] for run in runs]) for figure in ("p50_us", "p99_us", "p99.9_us")),
        median([run.cpu_per_gib(*servers) for run in runs], 2),
        median([run.cpu_per_million(*servers) for run in runs], 1),
        ", ".join(parts),
    ]
