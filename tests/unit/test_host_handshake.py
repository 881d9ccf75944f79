# SPDX-License-Identifier: BSD-3-Clause
"""The NBD negotiation with a real server, and what is left for the kernel afterwards: a socket with nothing in it."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("nbd")

from aoe_nbd.host import handshake

Serve = Callable[..., Path]


def _listens(path: Path) -> bool:
    """Whether somebody does: a socket has its name a moment earlier."""
    with socket.socket(socket.AF_UNIX) as end:
        return end.connect_ex(os.fspath(path)) == 0


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """serve("memory", "1M"): nbdkit, on the path that is returned."""
    if shutil.which("nbdkit") is None:
        pytest.skip("nbdkit is not installed")
    running: list[subprocess.Popen[bytes]] = []

    def begin(*words: str) -> Path:
        path = tmp_path / f"{len(running)}.sock"
        running.append(subprocess.Popen(["nbdkit", "-f", "-U", str(path), *words]))
        limit = time.monotonic() + 60
        while not _listens(path):
            assert running[-1].poll() is None and time.monotonic() < limit
            time.sleep(0.02)
        return path

    yield begin
    for process in running:
        process.kill()
        process.wait()


def test_what_the_kernel_gets(serve: Serve) -> None:
    connection = handshake.connect(serve("memory", "1M"))
    assert connection.size == 1 << 20
    assert connection.flags & handshake.HAS_FLAGS and connection.flags & handshake.SEND_TRIM
    assert not connection.flags & handshake.READ_ONLY
    assert os.get_blocking(connection.fd)
    # As the kernel does: a request in the old form, and a simple reply to it.
    with socket.socket(fileno=os.dup(connection.fd)) as end:
        end.settimeout(60)
        request = bytes.fromhex("25609513 0000 0000 1122334455667788 0000000000000000 00000200")
        end.sendall(request)
        answer = b""
        while len(answer) < 16 + 512:
            more = end.recv(4096)
            assert more, "the connection has ended"
            answer += more
    assert answer == bytes.fromhex("67446698 00000000 1122334455667788") + bytes(512)
    connection.close()
    connection.close()


def test_a_read_only_export(serve: Serve) -> None:
    connection = handshake.connect(serve("-r", "memory", "1M"))
    assert connection.flags & handshake.READ_ONLY
    connection.close()


def test_whether_a_socket_is_held(serve: Serve) -> None:
    connection = handshake.connect(serve("memory", "1M"))
    inode, copy = connection.inode, os.dup(connection.fd)
    connection.close()
    assert handshake.held(inode), "as the kernel would hold it"
    os.close(copy)
    limit = time.monotonic() + 60
    while handshake.held(inode):
        assert time.monotonic() < limit


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(handshake.HandshakeError, match="no NBD connection to"):
        handshake.connect(tmp_path / "none")


def test_one_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mute"))
        listener.listen()
        with pytest.raises(handshake.HandshakeError, match=r"has not answered for 0\.2 s"):
            handshake.connect(tmp_path / "mute", patience=0.2)


def test_a_socket_that_nobody_listens_on_yet(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.fspath(tmp_path / "it"))
        with pytest.raises(handshake.HandshakeError, match="Connection refused") as refused:
            handshake.connect(tmp_path / "it")
    assert refused.value.errno == errno.ECONNREFUSED
