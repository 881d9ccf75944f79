# SPDX-License-Identifier: BSD-3-Clause
"""fio as a client whose data are verified, and waiting for what it does."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

from lab import MIB, PATIENCE, Bridge, Process, run
from relay import Cable

SIZE = 16 * MIB


class Load:
    """fio, writing the whole disk in mixed blocks in random order, and reading back what it wrote a little later."""

    def __init__(self, bridge: Bridge, folder: Path, rate: str = "4m") -> None:
        self._folder = folder
        self._job = [
            *("fio", "--name=load", "--ioengine=nbd", f"--uri={bridge.uri()}", f"--size={SIZE}", "--iodepth=16"),
            *("--rw=randwrite", "--bssplit=4k/60:32k/20:128k/20", "--blockalign=4k", "--randrepeat=1"),
            *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--verify_state_save=0"),
        ]
        command = [
            "setpriv",
            "--pdeathsig=KILL",
            "env",
            "-C",
            str(folder),
            *self._job,
            "--verify_backlog=32",
            f"--rate={rate}",
        ]
        self._fio = Process("fio", command, folder / "fio.log")

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *problem: object) -> None:
        self._fio.stop(signal.SIGKILL)

    def running(self) -> bool:
        return self._fio.popen.poll() is None

    def finish(self) -> None:
        """It ended without an error, and at the very end everything is still there."""
        try:
            status = self._fio.popen.wait(120)
        finally:
            self._fio.stop(signal.SIGKILL)
        assert status == 0, f"fio: status {status}\n{self._fio.output()}"
        assert "err= 0" in self._fio.output()
        run(*self._job, "--verify_only=1", cwd=self._folder, timeout=120)


def until(true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"after {patience:.0f} s still not: {what}"
        time.sleep(0.01)


def flows(cable: Cable, frames: int = 20) -> None:
    """Until so many more frames have come back through the cable."""
    before = cable.stats()["from.passed"]
    until(lambda: cable.stats()["from.passed"] >= before + frames, f"{frames} frames through {cable.name}")
