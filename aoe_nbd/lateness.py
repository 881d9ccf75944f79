# SPDX-License-Identifier: BSD-3-Clause
"""Requests that have waited for long return to nbdkit one after the other, not at once.

Their client may have hung up meanwhile: the kernel does, to have them sent again. The first reply finds that out, and nbdkit
sends no others then. But nbdkit before 1.34 (Debian 12 has 1.32) ends itself by an assertion if another reply is on its way
at that very moment, and all of them would be, when a silent target is back.
"""

from __future__ import annotations

import threading
import time

LATE = 1.0  # s; more than a request takes while all is well, less than any client waits before it hangs up
FIRST = 0.05  # s that the others leave the first, to be replied to
NEXT = 0.002  # s between the others
APART = 1.0  # s after which a late one is a first one again


class Lateness:
    """`settle` each request at its end. From any thread."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._last = self._next = 0.0

    def settle(self, began: float) -> None:
        """Return at once for a request that began (monotonic) not long ago, else when it is its turn."""
        if time.monotonic() - began < LATE:
            return
        with self._turn:
            wait = self._next - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            now = time.monotonic()
            self._next = now + (FIRST if now - self._last > APART else NEXT)
            self._last = now
