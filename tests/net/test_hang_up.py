# SPDX-License-Identifier: BSD-3-Clause
"""A client that hangs up while its requests wait: when they are done after all, that is nobody's business any more."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import nbd
import pytest

from lab import Bridge, Process, write_random

TIMES = 5
REQUESTS = 64


@pytest.fixture
def mtu() -> int:
    return 9000


def test_clients_hang_up_on_a_silent_target(
    folder: Path, vblade: Callable[..., Process], bridge: Callable[..., Bridge]
) -> None:
    """nbdkit before 1.34 ends itself by an assertion if two requests at once return to a client that has gone."""
    write_random(folder / "disk", 1 << 20, seed=1)
    target, nbdkit = vblade(folder / "disk"), bridge("--threads", REQUESTS)
    for _ in range(TIMES):
        handle = nbd.NBD()
        handle.connect_uri(nbdkit.uri())
        os.kill(target.pid, signal.SIGSTOP)
        for i in range(REQUESTS):
            handle.aio_pread(nbd.Buffer(4096), i * 4096)
        limit = time.monotonic() + 4.0
        while time.monotonic() < limit:
            handle.poll(100)
        del handle
        os.kill(target.pid, signal.SIGCONT)
        second = nbd.NBD()
        second.connect_uri(nbdkit.uri())
        assert second.pread(4096, 0) == (folder / "disk").read_bytes()[:4096]
        second.shutdown()
        assert "Assertion" not in nbdkit.output()
