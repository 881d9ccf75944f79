# SPDX-License-Identifier: BSD-3-Clause
"""On which CPU the bridge runs: on one, and on another when that one has more room.

Python's lock lets one thread run at a time. Where it passes from CPU to CPU with every request, and what the threads share
with it, a request costs up to twice the CPU time, however large it is. The kernel moves others away from a CPU that is
busy, but not two bridges from each other: so look from time to time how much of each CPU others have.
"""

from __future__ import annotations

import ctypes
import logging
import os
import random
import time
from pathlib import Path
from typing import Literal

from .core.flight import FOREVER

log = logging.getLogger("aoe_nbd")

STAT = Path("/proc/stat")
_EVERY = 1.0  # s from one look to the next, more or less: bridges that begin together must not move together
_ROOM = 0.25  # of a CPU: how much more of ours than of another's others must have, for us to move there


class Affinity:
    """`start` it where the threads are about to be made, and have it `look` at every request."""

    def __init__(self, cpu: int | Literal["auto", "one", "all"]) -> None:
        self._choice = cpu
        self._allowed = os.sched_getaffinity(0)
        self._cpu = -1
        self._next = FOREVER
        self._seen: tuple[float, float, dict[int, float]] | None = None  # when, our CPU time, every CPU's

    def start(self) -> None:
        """Choose the CPU: that which was asked for, or that which the scheduler has put us on."""
        if self._choice == "all":
            return
        self._cpu = ctypes.CDLL(None).sched_getcpu() if isinstance(self._choice, str) else self._choice
        try:
            os.sched_setaffinity(0, {self._cpu})
        except OSError as error:
            log.warning("cpu=%s cannot be used: %s", self._cpu, error.strerror)
            return
        if self._choice == "auto" and len(self._allowed) > 1:
            self._next = 0.0

    def look(self, now: float) -> None:
        """Move to another CPU, if it is time to look and that one has more room. `now` is monotonic."""
        if now >= self._next:
            self._next = now + _EVERY * random.uniform(0.5, 1.5)
            self._look(now)

    def _look(self, now: float) -> None:
        mine, busy = time.process_time(), busy_seconds()
        before, self._seen = self._seen, (now, mine, busy)
        if before is None:
            return
        then, mine_then, busy_then = before
        span = now - then
        if span > 4 * _EVERY:
            return  # nobody has asked for so long that it says nothing of now
        others = {cpu: (busy[cpu] - busy_then[cpu]) / span for cpu in self._allowed & busy.keys() & busy_then.keys()}
        if self._cpu in others:
            others[self._cpu] -= (mine - mine_then) / span
        best = min(others, key=lambda cpu: others[cpu], default=self._cpu)
        if others.get(self._cpu, FOREVER) > others.get(best, FOREVER) + _ROOM:
            self._move(best)

    def _move(self, cpu: int) -> None:
        self._cpu, self._seen = cpu, None
        for thread in os.listdir("/proc/self/task"):
            try:
                os.sched_setaffinity(int(thread), {cpu})
            except OSError:
                continue  # it has ended, or the CPU is gone


def busy_seconds() -> dict[int, float]:
    """For how many seconds each CPU has been busy so far, for us or for others; nothing if the kernel does not tell."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return {}
    tick = os.sysconf("SC_CLK_TCK")
    found = {}
    for name, *ticks in (line.split() for line in lines if line.startswith("cpu") and line[3:4].isdigit()):
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, ticks[:8])
        found[int(name[3:])] = (user + nice + system + irq + softirq + steal) / tick
    return found
