# SPDX-License-Identifier: BSD-3-Clause
"""The copies of one class of commands that are under way on one path, and when one of them counts as lost.

Four ways, quickest first, all from RFC 8985 (RACK-TLP) and RFC 6298, with a tag per copy in place of a byte stream:

* three copies sent *later* were answered, and the path has not been seen to reorder of late;
* a copy sent later was answered, and more than srtt plus a reorder window has passed (targets may reorder);
* nothing moved for about two round trips: the oldest is sent once more as a probe, whose answer then proves the others,
  and once again after twice that time, for on a bad cable one in some hundred probes gets lost as well;
* nothing moved for the retransmission timeout, doubled each time.
"""

from __future__ import annotations

import enum
import random
from collections import deque
from collections.abc import Iterator
from typing import Final

from .constants import (
    DUPLICATES,
    JITTER,
    PROBE_MIN,
    PROBES,
    REORDER_DECAY,
    REORDER_MEMORY,
    REORDER_MIN,
    RTO_INITIAL,
    RTO_INITIAL_FLUSH,
    RTO_MAX,
    RTO_MAX_FLUSH,
)
from .copies import FLYING, MASK, Copies, Run
from .histogram import percentile
from .rtt import Rtt

FOREVER: Final = float("inf")


class Class(enum.IntEnum):
    """Commands whose times are alike."""

    READ = 0
    WRITE = 1
    FLUSH = 2  # flush and trim
    CONTROL = 3  # identify, check power, query config
    PROBE = 4  # frames sent to see whether their size gets through; many will not


_UNPROBED = (Class.FLUSH, Class.CONTROL, Class.PROBE)  # no tail loss probes of these


class Flight:
    """Under way on one path, in order of sending. Counts only copies in state FLYING."""

    def __init__(self, copies: Copies, kind: Class, rng: random.Random) -> None:
        slow = kind is Class.FLUSH
        self.kind = kind
        self.rtt = Rtt(RTO_INITIAL_FLUSH if slow else RTO_INITIAL, RTO_MAX_FLUSH if slow else RTO_MAX)
        self.count = 0
        self.newest = -1  # highest number that was answered
        self.moved = 0.0  # when something was last sent or answered
        self.heard = 0.0  # when something was last answered
        self.backoff = 0
        self.probes = 0  # sent since something was answered
        self._reorder = 0.0  # what false alarms have added to the reorder window
        self._deceived = float("-inf")  # when the last of them was
        self._calm = 0.0  # the same, or when the window last shrank
        self.gap = False  # whether a copy may have been overtaken, and
        self.overtakers = 0  # how many answers have come since, and
        self.timed = False  # whether who keeps the timer has heard of it
        self._order: deque[Run] = deque()
        self._copies = copies
        self._rng = rng
        self._jitter = 1.0
        self.histogram = [0] * 32  # answers by the number of bits of their round trip in µs
        self.total = 0.0  # s: the sum of all round trips
        self.given_up = 0  # copies that were counted as lost, or replaced by a tail probe
        self.given_up_answered = 0  # of these: were answered after all

    def sent(self, run: Run) -> None:
        """The copies of `run` went out."""
        order = self._order
        while order and not order[0].flying:
            order.popleft()
        order.append(run)
        if not self.count:
            self._jitter = self._rng.uniform(1 - JITTER, 1 + JITTER)
        self.count += run.count
        run.path.outstanding += run.count
        self.moved = run.sent

    def gone(self, run: Run, count: int = 1) -> None:
        """So many copies of `run` are not FLYING any more."""
        run.flying -= count
        self.count -= count
        run.path.outstanding -= count

    def answered(self, run: Run, seq: int, now: float, count: int = 1) -> None:
        """Copy `seq` of `run` was answered in time, and with it the `count` - 1 copies before it."""
        run.flying -= count
        self.count -= count
        run.path.outstanding -= count
        self._sample(now - run.sent, now, count)
        if seq > self.newest:
            self.newest = seq
        if self.gap:
            self.overtakers += count
        self.moved = self.heard = now
        self.backoff = 0
        self.probes = 0
        if self._reorder and now - self._calm > REORDER_DECAY * self.rtt.srtt:
            self._reorder = self._reorder / 2 if self._reorder > REORDER_MIN else 0.0
            self._calm = now

    def late(self, seq: int, sent: float, now: float) -> None:
        """A copy that is no longer counted as under way was answered after all."""
        self.given_up_answered += 1
        self._sample(now - sent, now)
        self.newest = max(self.newest, seq)
        self.moved = self.heard = now
        self.backoff = 0
        self.probes = 0

    def _sample(self, rtt: float, now: float, count: int = 1) -> None:
        self.rtt.sample(rtt, now)
        self.histogram[min(31, int(rtt * 1e6).bit_length())] += count
        self.total += rtt * count

    def percentile(self, share: float) -> float:
        """A round trip, in seconds, that this `share` of all answers did not exceed: see `histogram.percentile`."""
        return percentile(self.histogram, share)

    def false_alarm(self, now: float) -> None:
        """A copy that had been declared lost was only late: be slower to judge."""
        self._reorder = min(self._reorder + max(self.rtt.srtt / 4, REORDER_MIN), max(self.rtt.srtt, RTO_INITIAL))
        self._calm = self._deceived = now

    @property
    def reorder(self) -> float:
        """The reorder window."""
        return max(self.rtt.srtt / 4, REORDER_MIN) + self._reorder

    @property
    def patience(self) -> float:
        """How long after its sending an overtaken copy counts as lost."""
        return self.rtt.srtt + self.reorder

    def _flying(self, run: Run) -> Iterator[int]:
        """The copies of `run` that are under way, oldest first."""
        state, place, first = self._copies.state, self._copies.run, run.seq & MASK
        end = first + run.count
        i = state.find(FLYING, first, end)
        while i >= 0:
            if place[i] is run:
                yield run.seq + i - first
            i = state.find(FLYING, i + 1, end)

    def head(self) -> int:
        """The oldest copy under way, or -1."""
        order = self._order
        while order:
            if order[0].flying:
                return next(self._flying(order[0]))
            order.popleft()
        return -1

    def members(self) -> list[int]:
        """All copies under way, oldest first."""
        return [seq for run in self._order if run.flying for seq in self._flying(run)]

    def passed(self, now: float) -> list[int]:
        """After answers: the copies that are proved lost by how many later ones were answered."""
        if not 0 <= self.head() < self.newest:
            self.gap, self.overtakers, self.timed = False, 0, False
            return []
        last = self.newest - DUPLICATES
        if self.overtakers < DUPLICATES or now < self._deceived + REORDER_MEMORY or self.kind is Class.PROBE:
            return []  # probes differ in size, and so in how long they take
        behind = [seq for run in self._order if run.flying and run.seq < self.newest for seq in self._flying(run)]
        lost = [seq for seq in behind if seq <= last]
        if lost:
            self.overtakers, self.timed = 0, False
            self.gap = any(last < seq < self.newest for seq in behind)
        return lost

    def overtaken(self, now: float) -> list[int]:
        """Copies that later ones overtook by more than the reorder window: lost."""
        lost: list[int] = []
        patience = self.patience
        if self.kind is Class.PROBE:
            return lost  # they differ in size, and so in how long they take
        if self.newest < 0 or self.newest < self.head():
            return lost
        for run in self._order:
            if not run.flying:
                continue
            if run.seq > self.newest or run.sent + patience > now:
                break
            lost += [seq for seq in self._flying(run) if seq <= self.newest]
        return lost

    @property
    def rto(self) -> float:
        """The timeout that is running: backed off, and a little different for each flight."""
        return min(self.rtt.rto * (1 << min(self.backoff, 10)), self.rtt.most) * self._jitter

    @property
    def probe_after(self) -> float:
        """How long nothing moves before a tail loss probe; FOREVER where none is due."""
        if self.probes >= PROBES or self.backoff or self.kind in _UNPROBED or not self.rtt.srtt:
            return FOREVER
        wait = max(2 * self.rtt.srtt + 4 * self.rtt.rttvar, PROBE_MIN) * (1 << self.probes)
        return wait if not self.probes or wait < self.rto else FOREVER

    def timer(self) -> float:
        """When something may have to be done about the oldest copy."""
        head = self.head()
        if head < 0:
            return FOREVER
        wait = self.probe_after
        at = self.moved + (wait if wait < FOREVER else self.rto)
        if head < self.newest and self.kind is not Class.PROBE:
            at = min(at, self._order[0].sent + self.patience)
        return at
