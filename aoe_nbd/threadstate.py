# SPDX-License-Identifier: BSD-3-Clause
"""Keep Python's state of nbdkit's worker threads alive between requests.

nbdkit's threads are foreign to Python: each callback makes a thread state and destroys it again, which costs more than
the callback's own work. An outer PyGILState_Ensure that stays outstanding, as CPython documents, ends that. The states of
threads that have ended are then ours to delete.

And who waits for Python's lock wakes again and again, to ask for it: the more threads, the less often they may.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from typing import Final

_SWITCH: Final = 1e-3  # s a client


def share_lock(clients: int) -> None:
    """Settle how long a thread waits for Python's lock until it asks its holder for it (Python's switch interval).

    A short wait is good where something computes in this process. But nbdkit has 16 threads a client, and to wake hundreds of
    them every 100 us left the holder no CPU to be done with it: a bridge of 64 LUNs stood still for seconds. In proportion,
    all of them together wake no more often than those of one client.
    """
    sys.setswitchinterval(_SWITCH * max(1, clients))


class Pins:
    """The pinned thread states of this process. Call `pin` at the start of every callback, `reap` when a client goes."""

    def __init__(self, enabled: bool = True) -> None:
        """With `enabled` false, or on an interpreter that is not CPython with a GIL, both calls do nothing."""
        gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        self.enabled = enabled and sys.implementation.name == "cpython" and gil and hasattr(ctypes, "pythonapi")
        self._local = threading.local()
        self._pins: dict[int, list[int]] = {}
        self._reaping = threading.Lock()
        if not self.enabled:
            return
        api = ctypes.pythonapi
        self._ensure, self._current = api.PyGILState_Ensure, api.PyThreadState_Get
        self._clear, self._delete = api.PyThreadState_Clear, api.PyThreadState_Delete
        self._ensure.argtypes, self._ensure.restype = [], ctypes.c_int
        self._current.argtypes, self._current.restype = [], ctypes.c_void_p
        for call in (self._clear, self._delete):
            call.argtypes, call.restype = [ctypes.c_void_p], None

    def pin(self) -> None:
        """Keep the calling thread's state from now on."""
        try:
            self._local.pinned  # noqa: B018
        except AttributeError:
            if self.enabled:
                self._pin()

    def _pin(self) -> None:
        thread = threading.get_native_id()
        self._ensure()
        state = [self._current()]
        before = self._pins.get(thread)
        self._pins[thread] = state
        if before:  # the kernel has used its number again
            self._drop(before)
        self._local.pinned = True

    def _drop(self, state: list[int]) -> None:
        self._clear(state[0])
        self._delete(state[0])

    def reap(self) -> None:
        """Delete the states of threads that have ended."""
        if not self.enabled or not self._reaping.acquire(blocking=False):
            return
        with contextlib.ExitStack() as stack:
            stack.callback(self._reaping.release)
            # The table first and the living threads second: a thread pinned in between is then not taken for dead.
            candidates = list(self._pins.items())
            living = set(os.listdir("/proc/self/task"))
            for thread, state in candidates:
                if str(thread) not in living and self._pins.get(thread) is state:
                    del self._pins[thread]
                    self._drop(state)
