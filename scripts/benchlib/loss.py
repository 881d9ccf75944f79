# SPDX-License-Identifier: BSD-3-Clause
"""How fast it stays in trouble: on a cable that loses frames, when one path of two is cut, and when the target restarts.

A loss rate of p means that each frame, in either direction, is lost with probability p: a command and its answer both get
through with (1 - p) squared. Every figure is a ratio to the same run without loss a moment before or after, for the machine
has other things to do; the median over the rounds is given with the least and the most.
"""

from __future__ import annotations

import argparse
import itertools
import random
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd

from lab import MIB, Bridge, Host, Process, write_random
from relay import Trouble

from . import common, report

HELP = "throughput and latency against loss, a cut path, a restarted target"
RATES = (0.0, 0.001, 0.005, 0.01, 0.05)
WORKLOADS = {
    "sequential read 128k, 16 at a time": ("--rw=read", "--bs=128k", "--iodepth=16"),
    "random read 4k, 1 at a time": ("--rw=randread", "--bs=4k", "--iodepth=1"),
    "random read 4k, 16 at a time": ("--rw=randread", "--bs=4k", "--iodepth=16"),
}
SIZE = 256 * MIB
FIGURES = ("MiB/s", "CPU ms/MiB", "mean", "p50", "p99", "p99.9", "max")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--quick", action="store_true", help="shorter and fewer runs")
    add("--target", choices=("vblade", "ours"), default="vblade", help="who answers (default: Debian's vblade)")
    add("--rounds", type=int, help="runs of each kind (default 5, quick 2)")
    add("--seconds", type=float, help="of each run under loss (default 4, quick 2)")
    add("--document", action="store_true", help="put the tables into docs/performance.md as well")
    add("--out", type=Path, default=common.OUT, help="where loss.json and loss.png go (default build/bench)")


def run(args: argparse.Namespace) -> None:
    rounds = args.rounds or (2 if args.quick else 5)
    seconds = args.seconds or (2.0 if args.quick else 4.0)
    command = common.command(sys.argv[1:])
    results: dict[str, Any] = {"benchmark": "loss", "command": command, "target": args.target, **common.circumstances()}
    results |= {"rounds": rounds, "seconds": seconds}
    with common.workspace() as folder:
        disk = folder / "disk"
        write_random(disk, SIZE, seed=1)
        results["loss"] = loss(args.target, folder, disk, rounds, seconds)
        results["path cut, ms without progress"] = cuts(args.target, folder, disk, 5 * rounds)
        results["restart, ms from its first answer to the first request done"] = restarts(
            args.target, folder, disk, rounds
        )
    text = "\n".join([*loss_lines(results["loss"]), *gap_lines(results)])
    print(text)
    if args.document:
        preamble = [*common.head(results), f"target: {results['target']}"]
        report.put(common.DOCUMENT, "loss", report.markdown(preamble, [], []) + f"\n```\n{text.strip()}\n```\n")
    print(f"\n{common.save('loss', args.out, results)}")
    print(plot(results, args.out / "loss.png"))


# -- loss ------------------------------------------------------------------------------------------------------------


def loss(who: str, folder: Path, disk: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """By workload and rate: the spread of each figure, and of its ratio to the lossless run of the same round."""
    found: dict[str, dict[float, list[dict[str, float]]]] = {w: {r: [] for r in RATES} for w in WORKLOADS}
    trouble, target, bridge = None, None, None
    try:
        trouble = Trouble(folder)
        target = common.start_target(who, trouble.far[0], disk, folder / "target.log")
        bridge = common.start_bridge(trouble.near[0], folder, "eth0")
        for turn in range(rounds):
            order = list(RATES)
            random.Random(turn).shuffle(order)
            for name, job in WORKLOADS.items():
                for rate in order:
                    trouble.cables[0].seed(turn + 1)
                    trouble.cables[0].line("both", loss=rate)
                    found[name][rate].append(common.fio(bridge, folder, seconds, SIZE, *job))
                    print(f"round {turn + 1} of {rounds}: {name}, {rate:.1%} lost", flush=True)
    finally:
        end(bridge, target, trouble)
    table: dict[str, Any] = {}
    for name, by_rate in found.items():
        table[name] = {}
        for rate, runs in by_rate.items():
            row = {figure: common.spread([one[figure] for one in runs]) for figure in FIGURES}
            for figure in FIGURES:
                pairs = zip(runs, by_rate[0.0], strict=True)
                row[f"{figure} ratio"] = common.spread([one[figure] / clean[figure] for one, clean in pairs])
            table[name][f"{rate:.1%}"] = row
    return table


def loss_lines(table: dict[str, Any]) -> Iterator[str]:
    for name, rows in table.items():
        yield f"\n{name}"
        yield (
            f"{'loss':>6} {'MiB/s':>8}  {'ratio to lossless':<22} {'mean ratio':<22} {'p50':>7} {'p99':>8}"
            f" {'p99.9 ms':>22} {'CPU ms/MiB':>20}"
        )
        for rate, row in rows.items():
            yield (
                f"{rate:>6} {row['MiB/s']['median']:8.1f}  {common.text(row['MiB/s ratio']):<22} "
                f"{common.text(row['mean ratio']):<22} {row['p50']['median']:7.2f} {row['p99']['median']:8.2f} "
                f"{common.text(row['p99.9']):>22} {common.text(row['CPU ms/MiB']):>20}"
            )


# -- gaps ------------------------------------------------------------------------------------------------------------


class Client:
    """16 reads of 64 KiB at a time, and when each was done."""

    def __init__(self, bridge: Bridge) -> None:
        self._handle = nbd.NBD()
        self._handle.connect_uri(bridge.uri())
        self.done: list[float] = []
        self._next = 0
        # The same ones for ever: libnbd's binding keeps each that it was ever given, gigabytes a minute.
        self._free = [nbd.Buffer(65536) for _ in range(16)]
        self._fill()

    def _fill(self) -> None:
        while self._free:
            self._go(self._free.pop())

    def _go(self, buffer: nbd.Buffer) -> None:
        self._next = (self._next + 65536) % SIZE

        def completion(error: Any) -> int:
            self.done.append(time.monotonic())
            self._free.append(buffer)
            assert not error.value, f"read failed: errno {error.value}"
            return 1

        self._handle.aio_pread(buffer, self._next, completion)

    def turn(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        """Keep going until that time."""
        while time.monotonic() < until and not enough():
            self._handle.poll(1)
            self._fill()

    def gap(self, since: float) -> float:
        """The longest time without a request done since then, in ms; what began before that counts from then."""
        times = [since, *(when for when in self.done if when > since), time.monotonic()]
        return 1e3 * max(b - a for a, b in itertools.pairwise(times))


def cuts(who: str, folder: Path, disk: Path, rounds: int) -> dict[str, dict[str, float]]:
    trouble, bridge, targets = None, None, []
    found: dict[str, list[float]] = {"nothing (for comparison)": [], "carrier lost": [], "silent": []}
    try:
        trouble = Trouble(folder, cables=2)
        if who == "vblade":
            targets = [common.start_target(who, h, disk, folder / f"two-{h.interface}.log") for h in trouble.far]
        else:
            targets = [common.start_target(who, trouble.far[0], disk, folder / "two.log", "--interface", "eth1")]
        bridge = common.start_bridge(trouble.near[0], folder, "eth0,eth1")
        client = Client(bridge)
        client.turn(time.monotonic() + 1)
        for turn in range(rounds):
            cable = trouble.cables[turn % 2]
            for how, gaps in found.items():
                client.turn(time.monotonic() + 0.3)
                cut = time.monotonic()
                if how == "carrier lost":
                    trouble.near[turn % 2].ip("link", "show")  # so that the program is in memory, and the cut is quick
                    cut = time.monotonic()
                    cable.inside.ip("link", "set", "near", "down")
                elif how == "silent":
                    cable.cut()
                client.turn(cut + 0.6)
                gaps.append(client.gap(cut))
                if how == "carrier lost":
                    cable.inside.ip("link", "set", "near", "up")
                elif how == "silent":
                    cable.mend()
                before = cable.stats()["from.passed"]
                client.turn(time.monotonic() + 5, lambda: cable.stats()["from.passed"] > before + 200)  # noqa: B023
    finally:
        end(bridge, *targets, trouble)
    return {how: common.spread(gaps) for how, gaps in found.items()}


def restarts(who: str, folder: Path, disk: Path, rounds: int) -> dict[str, dict[str, float]]:
    trouble, bridge, target, listener = None, None, None, None
    found: dict[str, list[float]] = {}
    try:
        trouble = Trouble(folder)
        near, far, cable = trouble.near[0], trouble.far[0], trouble.cables[0]
        target = common.start_target(who, far, disk, folder / "again.log")
        bridge = common.start_bridge(near, folder, "eth0")
        listener = listen(near)
        client = Client(bridge)
        for _ in range(rounds):
            for outage in (1.0, 8.0):
                client.turn(time.monotonic() + 0.5)
                target.stop(9)
                client.turn(time.monotonic() + outage)
                answers(listener)
                target = common.start_target(who, far, disk, folder / "again.log")
                found.setdefault(f"killed for {outage:g} s", []).append(resumed(client, listener))
                client.turn(time.monotonic() + 0.5)
                cable.cut()
                client.turn(time.monotonic() + outage)
                answers(listener)
                back = time.monotonic()
                cable.mend()
                found.setdefault(f"cable cut for {outage:g} s, from its mending", []).append(
                    resumed(client, None, back)
                )
    finally:
        end(bridge, target, trouble)
        if listener is not None:
            listener.close()
    return {how: common.spread(times) for how, times in found.items()}


def listen(host: Host) -> socket.socket:
    with host.entered():
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        listener.setsockopt(socket.SOL_SOCKET, 33, 64 * MIB)  # SO_RCVBUFFORCE
        listener.bind((host.interface, 0x88A2))
    return listener


def answers(listener: socket.socket) -> bool:
    """Whether a response has come in; takes in all that waits."""
    found = False
    while select.select([listener], [], [], 0)[0]:
        found |= bool(listener.recv(64)[14] & 8)
    return found


def resumed(client: Client, listener: socket.socket | None, back: float = 0.0) -> float:
    """ms from the target's first frame (or from `back`) to the first request done."""
    count = len(client.done)
    deadline = time.monotonic() + 30
    while len(client.done) == count:
        if listener is not None and not back and answers(listener):
            back = time.monotonic()
        if time.monotonic() > deadline:
            raise RuntimeError("no request was done within 30 s after the target came back")
        client.turn(time.monotonic() + 0.001)
    return 1e3 * max(0.0, client.done[count] - back)


def gap_lines(results: dict[str, Any]) -> Iterator[str]:
    for title in ("path cut, ms without progress", "restart, ms from its first answer to the first request done"):
        yield f"\n{title}"
        for how, found in results[title].items():
            yield f"  {how:<42} {common.text(found, 1)}"


def end(*started: Process | Trouble | None) -> None:
    for one in started:
        if isinstance(one, Trouble):
            one.close()
        elif one is not None:
            one.popen.kill()
            one.stop()


# -- the plot --------------------------------------------------------------------------------------------------------


def plot(results: dict[str, Any], path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(WORKLOADS), figsize=(5 * len(WORKLOADS), 7), sharex=True, squeeze=False)
    ticks = range(len(RATES))
    labels = [f"{rate:.1%}" for rate in RATES]
    for column, (name, rows) in enumerate(results["loss"].items()):
        speed, latency = axes[0][column], axes[1][column]
        ratios = [rows[label]["MiB/s ratio"] for label in labels]
        middle = [ratio["median"] for ratio in ratios]
        below = [ratio["median"] - ratio["least"] for ratio in ratios]
        above = [ratio["most"] - ratio["median"] for ratio in ratios]
        speed.errorbar(ticks, middle, yerr=[below, above], marker="o", capsize=3)
        speed.set(title=name, ylim=(0, max(1.1, *(r["most"] for r in ratios))), ylabel="throughput, ratio to lossless")
        for figure_name in ("p50", "p99", "p99.9"):
            latency.plot(ticks, [rows[label][figure_name]["median"] for label in labels], marker="o", label=figure_name)
        latency.set(yscale="log", xlabel="frames lost, each way", ylabel="latency, ms")
        latency.set_xticks(ticks, labels)
        latency.legend()
        for axis in (speed, latency):
            axis.grid(alpha=0.3)
    figure.suptitle(
        f"aoe-nbd {results['commit']} with {results['target']}, MTU 9000, {results['cpus']} CPUs for both ends"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    return path
