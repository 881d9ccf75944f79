# SPDX-License-Identifier: BSD-3-Clause
"""How long a bridge takes to start, find its target, and end: `nbdkit ... --run true`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ..measure import Run, Spread, plain, timed
from ..report import Claim, Section
from ..stacks import Aoe
from . import Bench, others

TITLE = "Start: nbdkit ... --run true"
COLUMNS = ("what", "seconds", "CPU seconds")


def measure(bench: Bench) -> Section:
    section = Section("startup", TITLE, COLUMNS)
    empty = bench.places.file("empty", "py")
    empty.write_text(
        "def open(readonly): return 1\ndef get_size(h): return 0\ndef pread(h, b, o, f): pass\nAPI_VERSION = 2\n"
    )
    with Aoe(bench.places, 9000, "ours", bench.disk, bridges=0) as stack:
        kinds: dict[str, Sequence[object]] = {
            "nbdkit with its memory plugin": ["memory", "1M"],
            "nbdkit with an empty Python plugin": ["python", empty],
            "the bridge": stack.plugin(),
        }

        def one(words: Sequence[object]) -> Run:
            command = [*stack.client(), "nbdkit", "-U", "-", *words, "--run", "true"]
            return stack.run(lambda: timed(command, 1, "nbdkit"))

        runs = bench.interleave(
            "startup", {name: partial(one, words) for name, words in kinds.items()}, 2 * bench.rounds
        )
    for name, found in runs.items():
        cpu = Spread.of([run.cpu["nbdkit"] for run in found])
        section.lines.append([name, Spread.of([run.seconds for run in found]).text(3), cpu.text(3)])
    took = Spread.of([run.seconds for run in runs["the bridge"]])
    section.claims = [
        Claim("start with a target that answers, `nbdkit ... --run true`", 0.5, took, most=True, unit="s")
    ]
    section.runs = plain(runs)
    section.notes = ["from the start of nbdkit to its end, our target, MTU 9000", others(runs)]
    return section
