# SPDX-License-Identifier: BSD-3-Clause
"""Our target against vblade, with the C floor as the client of both."""

from __future__ import annotations

from functools import partial

from ..measure import Run, Spread, median, plain, ratio
from ..report import Claim, Section
from ..stacks import WINDOW, Aoe, sectors_of
from . import Bench, others

TITLE = "Our target / vblade, client: C floor"
COLUMNS = (
    "MTU, direction",
    "vblade MB/s",
    "ours MB/s",
    "ours / vblade",
    "CPU s/GiB: vblade",
    "ours",
    "ours / vblade (CPU)",
)


def measure(bench: Bench) -> Section:
    section = Section("targets", TITLE, COLUMNS)
    everything: dict[str, list[Run]] = {}
    for mtu in (9000, 1500):
        sectors = sectors_of(mtu)
        with (
            Aoe(bench.places, mtu, "vblade", bench.disk, bridges=0) as vblade,
            Aoe(bench.places, mtu, "ours", bench.disk, bridges=0) as ours,
        ):
            for way in ("read", "write"):
                runs = bench.interleave(
                    f"targets: MTU {mtu}, {way}",
                    {
                        "ours": partial(ours.floor, way, bench.seconds, bench.size, sectors),
                        "vblade": partial(vblade.floor, way, bench.seconds, bench.size, sectors),
                    },
                )
                speed = ratio(runs["ours"], runs["vblade"], lambda run: run.rate)
                a = [run.cpu_per_gib("vblade") for run in runs["vblade"]]
                b = [run.cpu_per_gib("target") for run in runs["ours"]]
                section.lines.append(
                    [
                        f"{mtu}, {way}",
                        median([run.rate for run in runs["vblade"]]),
                        median([run.rate for run in runs["ours"]]),
                        speed.text(),
                        f"{Spread.of(a).median:.2f}",
                        f"{Spread.of(b).median:.2f}",
                        Spread.of([y / x for x, y in zip(a, b, strict=True)]).text(),
                    ]
                )
                section.bars.append((f"MTU {mtu}, {way}", speed))
                section.claims.append(Claim(f"our target / vblade, MTU {mtu}, {way}", 1.0, speed))
                everything |= {f"{mtu}, {way}: {side}": found for side, found in runs.items()}
    section.runs = plain(everything)
    section.notes = [f"window {WINDOW} frames, the file in memory (tmpfs)", others(everything)]
    return section
