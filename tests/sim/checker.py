# SPDX-License-Identifier: BSD-3-Clause
"""What clients were told, and whether one disk can have told them so.

Each sector is a register whose every write has a value of its own, so linearizability is cheap to decide (Gibbons and
Korach, "Testing shared memories", 1997): the operations of one value span a zone from the first of their ends to the last
of their beginnings. If no two zones that run forward overlap, and none that runs backward lies within one that runs
forward, there is an order that explains everything; otherwise there is none.

A write that failed may have happened, and may yet happen: it counts only if a read saw it. But once a write that was
begun after the failure is acknowledged, the failed one must not come back (a client that was told "failed" and wrote
something else must not find the old attempt there), which is more than linearizability asks.

A power cut divides a sector's history into epochs. What a target keeps over it must be explained by a read that began
when the last acknowledged flush (or the sector's last acknowledged FUA write) did: flushed data survives.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

INFINITY = float("inf")


class Violation(Exception):
    """A rule was broken: `rule` is a fixed word, `detail` a sentence."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule, self.detail = rule, detail


class Value(NamedTuple):
    """What a sector holds: written by operation `op` (0: there from the beginning), in power epoch `epoch`."""

    op: int
    epoch: int


class Write:
    """A write or trim as its client saw it. `end` is infinite until it is known how it went."""

    __slots__ = ("begin", "count", "end", "failed", "lba", "number")

    def __init__(self, number: int, lba: int, count: int, begin: float) -> None:
        self.number, self.lba, self.count, self.begin = number, lba, count, begin
        self.end, self.failed = INFINITY, False


class Read(NamedTuple):
    """One sector of a read."""

    begin: float
    end: float
    value: Value
    by: str


class History:
    """All that clients did and saw, by sector."""

    def __init__(self) -> None:
        self.writes: dict[int, Write] = {}
        self.by_sector: dict[int, list[Write]] = {}
        self.reads: dict[int, list[Read]] = {}
        self.epochs = [0.0]  # when each began
        self.initial: list[dict[int, Value]] = [{}]  # what each found; missing: (0, 0)
        self.flushed = -INFINITY  # when the last acknowledged flush was begun
        self.fua: dict[int, float] = {}  # when a sector's last FUA write was acknowledged

    def write(self, number: int, lba: int, count: int, now: float) -> Write:
        """An operation that changes sectors has begun."""
        write = self.writes[number] = Write(number, lba, count, now)
        for sector in range(lba, lba + count):
            self.by_sector.setdefault(sector, []).append(write)
        return write

    def written(self, write: Write, now: float, failed: bool, fua: bool = False) -> None:
        """It has ended."""
        write.end, write.failed = now, failed
        if fua and not failed:
            for sector in range(write.lba, write.lba + write.count):
                self.fua[sector] = now

    def read(self, sector: int, begin: float, end: float, value: Value, by: str) -> None:
        """A client was told that `sector` holds `value`."""
        self.reads.setdefault(sector, []).append(Read(begin, end, value, by))

    def flush(self, begin: float) -> None:
        """A flush that began at `begin` has been acknowledged."""
        self.flushed = max(self.flushed, begin)

    def power_cut(self, now: float, kept: dict[int, Value], promised: bool) -> None:
        """The target has lost power and is left with `kept`. `promised`: its flushes are true."""
        start = self.epochs[-1]
        for sector, value in kept.items():
            since = max(self.flushed, self.fua.get(sector, -INFINITY), start) if promised else start
            self.read(sector, since, now, value, "the disk after its power cut")
        self.epochs.append(now)
        self.initial.append(dict(kept))
        self.flushed = -INFINITY
        self.fua.clear()

    # -- judgement ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise Violation if no order explains it."""
        for sector, reads in self.reads.items():
            parts: list[list[Read]] = [[] for _ in self.epochs]
            for read in reads:
                parts[self._epoch_of(sector, read)].append(read)
            for epoch, part in enumerate(parts):
                if part:
                    self._check(sector, epoch, part)

    def _epoch_of(self, sector: int, read: Read) -> int:
        last = max(i for i, start in enumerate(self.epochs) if i == 0 or start < read.end)
        first = max(i for i, start in enumerate(self.epochs) if i == 0 or start <= read.begin)
        for epoch in range(last, first, -1):  # it spans a cut: the latest epoch in which its value makes sense
            if read.value.epoch == epoch or self.initial[epoch].get(sector) == read.value:
                return epoch
        return first

    def _check(self, sector: int, epoch: int, reads: list[Read]) -> None:
        start = self.epochs[epoch]
        stop = self.epochs[epoch + 1] if epoch + 1 < len(self.epochs) else INFINITY
        initial = self.initial[epoch].get(sector, Value(0, 0))
        writes = self.by_sector.get(sector, [])
        # value -> [first end, last beginning, name]
        zones: dict[Value, list[float]] = {initial: [start, start - 1.0]}
        for write in writes:
            if not write.failed and write.begin >= start and write.end < stop:
                zones[Value(write.number, epoch)] = [write.end, write.begin]
        for read in reads:
            zone = zones.get(read.value)
            if zone is None:
                origin = self.writes.get(read.value.op)
                if origin is None or read.value.epoch != epoch or not origin.lba <= sector < origin.lba + origin.count:
                    raise Violation("read", f"{read.by} saw {self._name(read.value)} in sector {sector}: never there")
                zone = zones[read.value] = [INFINITY, max(origin.begin, start)]
            origin = self.writes.get(read.value.op)
            if origin is not None and read.value != initial:
                if origin.begin >= read.end:
                    raise Violation(
                        "read", f"{read.by} saw {self._name(read.value)} in sector {sector} before its time"
                    )
                if origin.failed:
                    self._check_failed(sector, origin, read, writes, start)
            zone[0] = min(zone[0], read.end)
            zone[1] = max(zone[1], read.begin)
        forward = sorted((f, s, value) for value, (f, s) in zones.items() if f < s)
        for (f, s, value), (f2, s2, value2) in itertools.pairwise(forward):
            if f2 < s:
                raise Violation(
                    "order",
                    f"sector {sector} held {self._name(value)} at {f:.6f} and at {s:.6f}, "
                    f"and {self._name(value2)} at {f2:.6f} and at {s2:.6f}",
                )
        if not forward:
            return
        for value, (f, s) in zones.items():
            if f < s:
                continue
            for f2, s2, value2 in forward:
                if f2 < s and f < s2:
                    raise Violation(
                        "undone",
                        f"sector {sector} was seen with {self._name(value2)} by {f2:.6f} and from {s2:.6f}, yet "
                        f"{self._name(value)} took place in between, {s:.6f} to {f:.6f}"
                        f"{self._witness(reads, value2, s2)}",
                    )

    def _check_failed(self, sector: int, origin: Write, read: Read, writes: list[Write], start: float) -> None:
        for other in writes:
            if not other.failed and other.begin > max(origin.end, start) and other.end < read.begin:
                raise Violation(
                    "undone",
                    f"{read.by} saw {self._name(read.value)} in sector {sector} at {read.end:.6f}: it had failed at "
                    f"{origin.end:.6f}, and {self._name(Value(other.number, 0))} was written over it by {other.end:.6f}",
                )

    def _name(self, value: Value) -> str:
        if not value.op:
            return "the first content"
        return f"op {value.op}" + (f" (epoch {value.epoch})" if value.epoch else "")

    @staticmethod
    def _witness(reads: list[Read], value: Value, begin: float) -> str:
        for read in reads:
            if read.value == value and read.begin == begin:
                return f" (seen last by {read.by})"
        return ""
