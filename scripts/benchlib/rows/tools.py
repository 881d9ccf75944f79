# SPDX-License-Identifier: BSD-3-Clause
"""A whole disk copied both ways, as a user would: nbdcopy and qemu-img convert."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from ..measure import Run, median, plain, ratio, timed
from ..report import Section
from ..stacks import Aoe, Iscsi, Stack, Tcp
from . import Bench, others

TITLE = "A whole disk copied, MTU 9000"
MTU = 9000
COLUMNS = ("copy", "stack", "seconds", "MB/s", "bridge / this", "CPU s/GiB", "of which", "and the tool")

Command = Callable[[str], Sequence[object]]  # of an NBD URI


def measure(bench: Bench) -> Section:
    section = Section("tools", TITLE, COLUMNS)
    everything: dict[str, list[Run]] = {}
    with contextlib.ExitStack() as ends:
        ours = ends.enter_context(Aoe(bench.places, MTU, "ours", bench.disk))
        iscsi = ends.enter_context(Iscsi(bench.places, MTU, bench.disk))
        copy = bench.places.folder / "copy"
        copy.write_bytes(bench.disk.read_bytes())
        stacks: list[Stack] = [ours, iscsi]
        if not bench.quick:
            stacks.append(ends.enter_context(Tcp(bench.places, MTU, bench.disk)))
        tools: dict[str, Command] = {
            "nbdcopy, disk to file": lambda uri: ("nbdcopy", uri, copy),
            "nbdcopy, file to disk": lambda uri: ("nbdcopy", copy, uri),
            "qemu-img convert, disk to file": lambda uri: ("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, copy),
            "qemu-img convert, file to disk": lambda uri: (
                "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", copy, uri,
            ),
        }  # fmt: skip
        for what, command in list(tools.items())[: 2 if bench.quick else None]:
            sides = {stack.name: partial(_one, bench, stack, command) for stack in stacks}
            runs = bench.interleave(f"tools: {what}", sides)
            for stack in stacks:
                found = runs[stack.name]
                speed = ratio(runs[ours.name], found, lambda run: run.rate)
                servers = tuple(stack.processes)
                parts = [f"{name} {median([run.cpu_per_gib(name) for run in found], 2)}" for name in servers]
                section.lines.append(
                    [
                        what,
                        stack.name,
                        median([run.seconds for run in found], 2),
                        median([run.rate for run in found]),
                        "" if stack is ours else speed.text(),
                        median([run.cpu_per_gib(*servers) for run in found], 2),
                        ", ".join(parts),
                        median([run.cpu_per_gib("tool") for run in found], 2),
                    ]
                )
                if stack is not ours:
                    section.bars.append((f"{what} / {stack.name}", speed))
            everything |= {f"{what}: {name}": found for name, found in runs.items()}
    section.runs = plain(everything)
    section.notes = [
        f"{bench.size >> 20} MiB of random bytes, files in memory; each command as it stands in README, with its defaults",
        others(everything),
    ]
    return section


def _one(bench: Bench, stack: Stack, command: Command) -> Run:
    return stack.run(lambda: timed([*stack.client(), *command(stack.uri)], bench.size, "tool"))
