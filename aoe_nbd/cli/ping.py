# SPDX-License-Identifier: BSD-3-Clause
"""Measure round trips and loss: one probe an interval to each path of a disk, each sent once and never again.

A probe is Query Config, answered without touching the disk. With -s it is IDENTIFY, padded by that many bytes, to see
whether large requests get through; with --read it is a READ from sector 0, to see whether large answers do. A disk
that has not been found yet is probed with Query Config by broadcast.
Ctrl-C ends it with the summary. Exit status 0 if there was any answer, 1 if there was none.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core.exchange import Answer, Exchange
from ..core.reply import ata_verdict
from ..core.request import Kind
from ..engine import Engine
from ..wire.address import Address, format_mac
from ..wire.codes import SECTOR, Ata
from ..wire.frames import ATA_SIZE, Config, FrameError, Taskfile, parse_ata, taskfile
from . import show
from .asking import ETHERNET, Path, asking, paths, question, refusal
from .failure import Failure
from .words import add_interface, address, interfaces, macs, number, whole

_FIND = 1.0  # s to look for the disk's paths before the first probe
_SAMPLES = 100_000  # round trips that percentiles are taken from
_OPEN = 64  # answered probes that still listen for duplicates


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument("address", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    add_interface(parser)
    parser.add_argument("--mac", action="append", default=[], help="probe this MAC only, repeatable or a comma list")
    parser.add_argument("-c", "--count", metavar="COUNT", help="probes for each path (default: until Ctrl-C)")
    parser.add_argument("--interval", default="1", metavar="SECS", help="time between probes (default 1)")
    parser.add_argument("-W", "--timeout", default="2", metavar="SECS", help="a probe is lost after this (default 2)")
    parser.add_argument("-s", "--size", metavar="BYTES", help="probe with IDENTIFY, padded by so many bytes")
    parser.add_argument("--read", metavar="SECTORS", help="probe with a READ of so many sectors")
    parser.add_argument("--json", action="store_true", help="print JSON at the end, and nothing before")


def run(args: argparse.Namespace) -> int:
    """Probe, print, and return the exit status."""
    which, only = address(args.address), macs(args.mac)
    count = None if args.count is None else whole("-c", args.count, 1, 1 << 31)
    interval, timeout = number("--interval", args.interval, 0.002, 86400), number("-W", args.timeout, 0.01, 3600)
    probe = Probe.of(args.size, args.read)
    talk = show.on_terminal() and not args.json
    with asking(interfaces(args)) as engine:
        probe.check(engine)
        if talk:
            print(f"{which} on {', '.join(engine.links)}: {probe.name}", flush=True)
        found = paths(engine, which, _FIND, only)
        prober = Prober(engine, which, probe, timeout, print_now if talk else lambda line: None)
        for path in found or [Path(which, "", mac, None, "") for mac in only]:
            prober.add(path)
        try:
            prober.run(count, interval)
        except KeyboardInterrupt:
            prober.interrupted()
        unsent = {name: n for name, n in engine.counters.items() if name.startswith("send_failed_")}
    if args.json:
        show.dump({"address": str(which), "probe": probe.name, **prober.total().facts(), "paths": prober.facts()})
    else:
        print("\n".join(prober.summary()))
    for name, times in sorted(unsent.items()):
        show.warn("ping", f"{times} probes could not be sent ({name[len('send_failed_') :]}): check the interface")
    return 0 if prober.total().received else 1


def print_now(line: str) -> None:
    """Print a line that is not to wait for others."""
    print(line, flush=True)


@dataclass(frozen=True)
class Probe:
    """What is asked: Query Config, or an ATA command with so much data either way."""

    name: str
    arg: Config | Taskfile
    data: bytes = b""
    answer: int = 0  # bytes that the answer must have
    kind: Kind | None = None

    @classmethod
    def of(cls, size: str | None, read: str | None) -> Probe:
        """By the values of -s and --read."""
        if size is not None and read is not None:
            raise Failure("-s and --read are two kinds of probe: give one of them")
        if size is not None:
            padding = whole("-s", size, 0, 65000)
            name = f"IDENTIFY, padded by {padding} bytes"
            return cls(name, taskfile(Ata.IDENTIFY), bytes(padding), ATA_SIZE + SECTOR, Kind.IDENTIFY)
        if read is not None:
            sectors = whole("--read", read, 1, 255)
            arg = taskfile(Ata.READ, 0, sectors)
            return cls(f"READ of {sectors} sectors", arg, b"", ATA_SIZE + sectors * SECTOR, Kind.READ)
        return cls("Query Config", Config())

    def check(self, engine: Engine) -> None:
        """Raise Failure if probe or answer do not fit the frames of an interface."""
        largest = max(self.answer, ATA_SIZE + len(self.data))
        for link in engine.links.values():
            if largest > link.mtu + ETHERNET:
                least = largest - ETHERNET
                raise Failure(f"{self.name}: does not fit interface {link.name}, whose MTU is {link.mtu}, not {least}")

    def verdict(self, answer: Answer) -> str:
        """What is wrong with an answer, in one phrase; empty if nothing is."""
        if answer.header.failed:
            return refusal(answer)
        if self.kind is None:
            return ""
        try:
            registers = parse_ata(answer.frame)
        except FrameError as error:
            return str(error)
        assert isinstance(self.arg, Taskfile)
        verdict = ata_verdict(self.kind, self.arg.command, registers.command_status, registers.error_feature)
        if verdict.error:
            return verdict.reason
        return "" if len(answer.frame) >= self.answer else f"cut short: {len(answer.frame)} of {self.answer} bytes"


def percentile(ordered: Sequence[float], percent: float) -> float:
    """By nearest rank."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass
class Tally:
    """What became of the probes of one path. Of the round trips it keeps a fair sample, however long it runs."""

    sent: int = 0
    received: int = 0
    lost: int = 0
    refused: int = 0
    duplicates: int = 0
    least: float = math.inf
    most: float = 0.0
    sum: float = 0.0
    samples: list[float] = field(default_factory=list)

    def take(self, rtt: float) -> None:
        """Count an answer."""
        self.received += 1
        self.least, self.most, self.sum = min(self.least, rtt), max(self.most, rtt), self.sum + rtt
        if len(self.samples) < _SAMPLES:
            self.samples.append(rtt)
        elif (at := random.randrange(self.received)) < _SAMPLES:
            self.samples[at] = rtt

    def add(self, other: Tally) -> None:
        """Count all of another's."""
        self.sent, self.received, self.lost = (
            self.sent + other.sent,
            self.received + other.received,
            self.lost + other.lost,
        )
        self.refused, self.duplicates = self.refused + other.refused, self.duplicates + other.duplicates
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.sum += other.sum
        self.samples += other.samples

    @property
    def loss(self) -> float:
        """Share of the probes whose fate is known that got no answer, 0 to 1."""
        return self.lost / (self.lost + self.received) if self.lost else 0.0

    def rtt(self) -> dict[str, float]:
        """min, avg, p50, p95, p99, max in seconds; empty without answers."""
        if not self.received:
            return {}
        ordered = sorted(self.samples)
        ranks = {f"p{percent}": percentile(ordered, percent) for percent in (50, 95, 99)}
        return {"min": self.least, "avg": self.sum / self.received, **ranks, "max": self.most}

    def facts(self) -> dict[str, Any]:
        """The JSON, round trips in milliseconds."""
        return {
            "sent": self.sent,
            "received": self.received,
            "lost": self.lost,
            "loss": self.loss,
            "refused": self.refused,
            "duplicates": self.duplicates,
            "rtt_ms": {name: round(value * 1000, 6) for name, value in self.rtt().items()},
        }

    def lines(self, name: str) -> list[str]:
        """The summary for a person."""
        line = f"{name}: {self.sent} sent, {self.received} received, {self.loss * 100:.4g} % loss"
        if under_way := self.sent - self.received - self.lost:
            line += f", {under_way} under way"
        for count, what in ((self.refused, "refused"), (self.duplicates, "duplicates")):
            line += f", {count} {what}" if count else ""
        rtt = self.rtt()
        if not rtt:
            return [line]
        values = "/".join(f"{value * 1000:.3f}" for value in rtt.values())
        return [line, f"  round trip {'/'.join(rtt)} = {values} ms"]


@dataclass
class _Open:
    """One probe that may still be answered."""

    number: int
    exchange: Exchange
    key: str
    seen: int = 0


class Prober:
    """Sends the probes and counts what comes back. `tell` takes a line for each answer and each loss."""

    def __init__(
        self, engine: Engine, which: Address, probe: Probe, timeout: float, tell: Callable[[str], None]
    ) -> None:
        self.engine, self.which, self.probe, self.timeout, self.tell = engine, which, probe, timeout, tell
        self.paths: dict[str, Path] = {}
        self.tallies: dict[str, Tally] = {}
        self._open: list[_Open] = []

    def add(self, path: Path) -> None:
        """Probe this path too. One without a link is that MAC by whatever interface."""
        for link in [path.link] if path.link else self.engine.links:
            one = path._replace(link=link)
            if str(one) not in self.paths:
                self.paths[str(one)] = one
                self.tallies.setdefault(str(one), Tally())

    def run(self, count: int | None, interval: float) -> None:
        """Send `count` probes (None: for ever) and wait for the last of them."""
        number, at = 0, time.monotonic()
        while True:
            now = time.monotonic()
            if number != count and now >= at:
                number += 1
                self._send(number, now)
                at = max(at + interval, now)
            self._harvest(now)
            if number == count and all(probe.seen for probe in self._open):
                return
            ends = [probe.exchange.deadline for probe in self._open if not probe.seen]
            self.engine.wait(self._news, min([at] * (number != count) + ends))

    def interrupted(self) -> None:
        """Count what is under way no further."""
        for probe in self._open:
            if not probe.exchange.copies:
                self.tallies[probe.key].sent -= 1
        self._open.clear()

    def _send(self, number: int, now: float) -> None:
        for key, path in self.paths.items():
            arg, data = self.probe.arg, self.probe.data
            exchange = question(self.engine, path, arg, self.timeout, data=data, want=None, once=True)
            self._begin(number, exchange, key)
        if not self.paths:
            shelf, slot = self.which
            links = self.engine.addresses()
            seed, timeout = self.engine.seed(), self.timeout
            self._begin(
                number,
                Exchange(links, Config(), seed=seed, now=now, timeout=timeout, shelf=shelf, slot=slot, once=True),
                "by broadcast",
            )

    def _begin(self, number: int, exchange: Exchange, key: str) -> None:
        self.tallies.setdefault(key, Tally()).sent += 1
        self._open.append(_Open(number, exchange, key))
        self.engine.begin(exchange)

    def _news(self) -> bool:
        return any(len(probe.exchange.answers) > probe.seen for probe in self._open)

    def _harvest(self, now: float) -> None:
        """Count new answers and losses; let go of probes that are over."""
        answered = sum(bool(probe.seen) for probe in self._open)
        kept = []
        for probe in self._open:
            for answer in probe.exchange.answers[probe.seen :]:
                self._answered(probe, answer)
                probe.seen += 1
            over = probe.exchange.done(now)
            if probe.seen and answered > _OPEN:
                over, answered = True, answered - 1
            if not over:
                kept.append(probe)
                continue
            self.engine.end(probe.exchange)
            if not probe.seen:
                self.tallies[probe.key].lost += 1
                self.tell(f"probe {probe.number}: no answer from {self.which} ({probe.key}) within {self.timeout:g} s")
        self._open = kept

    def _answered(self, probe: _Open, answer: Answer) -> None:
        broadcast = probe.key not in self.paths
        path = Path(self.which, answer.link, answer.mac, None, "")
        if broadcast:
            self.add(path)
        tally = self.tallies[probe.key]
        if probe.seen:
            if not broadcast:
                tally.duplicates += 1
                self.tell(f"probe {probe.number}: {path}: {show.milliseconds(answer.rtt)} (duplicate)")
            return
        tally.take(answer.rtt)
        wrong = "" if broadcast else self.probe.verdict(answer)
        tally.refused += bool(wrong)
        self.tell(f"probe {probe.number}: {path}: {show.milliseconds(answer.rtt)}{f' ({wrong})' if wrong else ''}")

    def total(self) -> Tally:
        """All paths together."""
        total = Tally()
        for tally in self.tallies.values():
            total.add(tally)
        return total

    def facts(self) -> list[dict[str, Any]]:
        """The JSON of each path."""
        return [
            {"mac": format_mac(path.mac), "interface": path.link, **self.tallies[key].facts()}
            for key, path in self.paths.items()
        ]

    def summary(self) -> list[str]:
        """What a person reads at the end."""
        several = {key: tally for key, tally in self.tallies.items() if tally.sent}
        lines = [line for key, tally in several.items() for line in tally.lines(f"{self.which} {key}")]
        return lines if len(several) < 2 else lines + self.total().lines(f"{self.which} in all")
