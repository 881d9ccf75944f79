# SPDX-License-Identifier: BSD-3-Clause
"""The whole bridge against the C floor: sequential streams, both MTUs, both targets."""

from __future__ import annotations

from functools import partial

from ..measure import Run, Spread, median, plain, ratio
from ..report import Claim, Section
from ..stacks import WINDOW, Aoe, sectors_of
from . import Bench, others

TITLE = "Bridge / C floor, sequential"
REQUEST, DEPTH = 256 << 10, 16  # nbdcopy's request size, nbdkit's threads
LEAST = {"read": 0.9, "write": 0.85}
COLUMNS = (
    "target, MTU, direction", "floor MB/s", "bridge MB/s", "bridge / floor", "CPU s/GiB: floor", "bridge",
    "bridge / floor (CPU)", "client", "target under floor, bridge",
)  # fmt: skip


def measure(bench: Bench) -> Section:
    section = Section("floor", TITLE, COLUMNS)
    everything: dict[str, list[Run]] = {}
    for mtu in (9000, 1500):
        for who in ("ours",) if bench.quick else ("vblade", "ours"):
            with (  # a LAN each: on the floor's, a bridge would be woken by every frame that it gets
                Aoe(bench.places, mtu, who, bench.disk, bridges=0) as alone,
                Aoe(bench.places, mtu, who, bench.disk) as stack,
            ):
                for way in ("read", "write"):
                    name = f"{who}, {mtu}, {way}"
                    runs = bench.interleave(
                        f"floor: {name}",
                        {
                            "floor": partial(alone.floor, way, bench.seconds, bench.size, sectors_of(mtu)),
                            "bridge": partial(stack.load, way, bench.seconds, REQUEST, DEPTH, size=bench.size),
                        },
                    )
                    _add(section, name, runs)
                    everything |= {f"{name}: {side}": found for side, found in runs.items()}
    section.runs = plain(everything)
    section.notes = [
        f"floor: one process, window {WINDOW} frames of {sectors_of(9000)} or {sectors_of(1500)} sectors, no retransmission",
        f"bridge: {DEPTH} requests of {REQUEST >> 10} KiB under way, from a C client on its Unix socket (nbdload.c)",
        others(everything),
    ]
    return section


def _add(section: Section, name: str, runs: dict[str, list[Run]]) -> None:
    floor, bridge = runs["floor"], runs["bridge"]
    who, mtu, way = name.split(", ")
    target = "vblade" if who == "vblade" else "target"
    speed = ratio(bridge, floor, lambda run: run.rate)
    cpu = Spread.of([b.cpu_per_gib("bridge") / f.cpu_per_gib("floor") for b, f in zip(bridge, floor, strict=True)])
    section.lines.append(
        [
            name,
            median([run.rate for run in floor]),
            median([run.rate for run in bridge]),
            speed.text(),
            median([run.cpu_per_gib("floor") for run in floor], 2),
            median([run.cpu_per_gib("bridge") for run in bridge], 2),
            cpu.text(),
            median([run.cpu_per_gib("client") for run in bridge], 2),
            f"{median([run.cpu_per_gib(target) for run in floor], 2)}, {median([run.cpu_per_gib(target) for run in bridge], 2)}",
        ]
    )
    section.bars.append((name, speed))
    section.claims.append(Claim(f"sequential {way}, bridge / C floor, MTU {mtu}, {who}", LEAST[way], speed))
    if mtu == "9000":
        section.claims.append(
            Claim(f"CPU s/GiB, sequential {way}, bridge / C floor, MTU {mtu}, {who}", 2.0, cpu, most=True)
        )
