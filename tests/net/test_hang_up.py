# SPDX-License-Identifier: BSD-3-Clause
"""A client that hangs up while its requests wait: when they are done after all, that is nobody's business any more."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbd
import pytest

from lab import PLUGIN, Bridge, Host, Process, write_random

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


@pytest.mark.parametrize("way", ["told to end", "parent killed"])
def test_a_bridge_that_ends_under_load_fails_nothing(
    way: str,
    folder: Path,
    vblade: Callable[..., Process],
    initiator: Host,
    start: Callable[..., Process],
    tmp_path: Path,
) -> None:
    """With on-end=hang-up. nbdkit's own way would be to answer whatever comes in then by an error."""
    write_random(folder / "disk", 1 << 20, seed=1)
    vblade(folder / "disk")
    socket = tmp_path / "nbd.sock"
    command = ["nbdkit", "-f", "--exit-with-parent", "--threads", REQUESTS, "-U", socket, "python", PLUGIN]
    command += [f"interface={initiator.interface}", "target=e1.0", "on-end=hang-up"]
    parent = start(
        Bridge(initiator.command("sh", "-c", '"$@" & echo pid $!; wait', "sh", *command), socket, tmp_path / "log")
    )
    assert isinstance(parent, Bridge)
    parent.wait_for_socket(socket)
    nbdkit = int(parent.output().split()[1])
    handle = nbd.NBD()
    handle.connect_uri(parent.uri())
    errors: list[int] = []
    answered = 0

    def ask(place: int) -> None:
        def done(error: Any) -> int:
            nonlocal answered
            if error.value:
                errors.append(error.value)
            else:
                answered += 1
                again.append(place)
            return 1

        handle.aio_pread(nbd.Buffer(4096), place, completion=done)

    again = [i * 4096 for i in range(REQUESTS)]
    told = False
    limit = time.monotonic() + 60
    while not handle.aio_is_dead() and not handle.aio_is_closed():
        assert time.monotonic() < limit
        while again:
            ask(again.pop())
        if answered > 500 and not told:
            os.kill(nbdkit, signal.SIGHUP)  # a terminal that is closed: nothing
        if answered > 1000 and not told:
            told = True
            os.kill(*((nbdkit, signal.SIGTERM) if way == "told to end" else (parent.pid, signal.SIGKILL)))
        with suppress(nbd.Error):  # the connection ends
            handle.poll(1000)
    assert told and answered > 1000
    assert set(errors) <= {errno.ENOTCONN}, "what libnbd says of requests whose connection has gone"
