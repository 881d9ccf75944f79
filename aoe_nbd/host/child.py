# SPDX-License-Identifier: BSD-3-Clause
"""The bridge as a process: started, listened to, ended; and found again by whoever comes after its parent."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger("aoe_nbd")

PROC = Path("/proc")
_OURS = ("nbdkit: aoe: ", "nbdkit: error: ", "nbdkit: ")  # what its last word may begin with
_LINE_MOST = 2000  # bytes of a line that are logged


class Child:
    """A running bridge. `fileno` is readable once it has ended."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd="/",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._said = ""
        # A thread of its own, so that the bridge never waits for whatever we are busy with
        self._listener = threading.Thread(target=self._listen, name="aoe-bridge-log", daemon=True)
        self._listener.start()

    def fileno(self) -> int:
        return self._pidfd

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self._process.poll() is not None

    @property
    def last_word(self) -> str:
        """Why it ended, once it has: what it said itself, or else how."""
        self._listener.join(1.0)
        if self._said:
            return self._said
        code = self._process.returncode
        if code is not None and code < 0:
            return f"the bridge was ended by {signal.Signals(-code).name}"
        return f"the bridge ended with status {code}"

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for raw in iter(lambda: lines.readline(_LINE_MOST), b""):
                line = raw.decode("utf-8", "replace").rstrip()
                start = next((start for start in _OURS if line.startswith(start)), None)
                if start:
                    self._said = line.removeprefix(start)
                elif line:
                    log.info("%s", line.removeprefix("aoe-nbd: "))

    def end(self, patience: float = 5.0) -> None:
        """End it: politely, and after `patience` s for certain."""
        self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Let go of what is left of it."""
        os.close(self._pidfd)


def _stat(pid: int, proc: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none if there is no such process."""
    try:
        return (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def parent(pid: int, proc: Path = PROC) -> int:
    """A process's parent; 0 if it has gone."""
    found = _stat(pid, proc)
    return int(found[1]) if found else 0


def began(pid: int, proc: Path = PROC) -> int:
    """When a process was started, in clock ticks since boot: with its pid, what no other process has. 0 if it has gone."""
    found = _stat(pid, proc)
    return int(found[19]) if found else 0


def end_orphan(pid: int, start: int) -> bool:
    """Kill a bridge that is no Child of ours, and wait until it has gone. False if there is none."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not start or began(pid) != start:
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # after an exec it may be our child all the same
        return True
    finally:
        os.close(pidfd)
