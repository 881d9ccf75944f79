# SPDX-License-Identifier: BSD-3-Clause
"""On which CPUs the bridge runs: on one while its requests are small, on all while they are large.

A small request is mostly Python, whose lock lets one thread run at a time; where that lock moves between CPUs, each
request costs up to twice the time. A large one is mostly copying by the kernel, which CPUs do side by side.
"""

from __future__ import annotations

import ctypes
import logging
import os
import time
from typing import Literal

log = logging.getLogger("aoe_nbd")

_LARGE, _SMALL = 96 << 10, 48 << 10  # bytes of the mean request, above and below which it changes
_WEIGHT = 1 / 32  # of the latest request in the mean
_CALM = 0.1  # s from one change to the next, at least


class Affinity:
    """`start` it where the threads are about to be made, and tell it of every request."""

    def __init__(self, cpu: int | Literal["auto", "one", "all"]) -> None:
        self._choice = cpu
        self._all = os.sched_getaffinity(0)
        self._one = self._all
        self._mean = 0.0  # bytes of a request, lately
        self._narrow = True
        self._changed = float("-inf")

    def start(self) -> None:
        """Choose the CPU: that which was asked for, or that which the scheduler has put us on."""
        if self._choice == "all":
            return
        chosen = ctypes.CDLL(None).sched_getcpu() if isinstance(self._choice, str) else self._choice
        try:
            os.sched_setaffinity(0, {chosen})
        except OSError as error:
            log.warning("cpu=%s cannot be used: %s", chosen, error.strerror)
            self._choice = "all"
        self._one = {chosen}

    def request(self, size: int) -> None:
        """A request of `size` bytes has come."""
        self._mean += (size - self._mean) * _WEIGHT
        if self._choice == "auto" and (self._mean > _LARGE if self._narrow else self._mean < _SMALL):
            self._change()

    def _change(self) -> None:
        now = time.monotonic()
        if now < self._changed + _CALM:
            return
        self._changed, self._narrow = now, not self._narrow
        for thread in os.listdir("/proc/self/task"):
            try:
                os.sched_setaffinity(int(thread), self._one if self._narrow else self._all)
            except OSError:
                continue  # it has ended
