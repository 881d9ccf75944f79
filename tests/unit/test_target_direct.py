# SPDX-License-Identifier: BSD-3-Clause
"""`--direct`: any sector from and to any memory, and a clear sentence where the storage cannot."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest

from aoe_nbd.target import Backend, BackendError
from aoe_nbd.target.command import main

SECTORS = 8000  # more than is copied at a time


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(SECTORS * 512 + 100))
    return path


def test_any_sectors_and_any_memory(disk: Path) -> None:
    backend = Backend(str(disk), direct=True)
    model = bytearray(disk.read_bytes())
    rng = random.Random(2)
    for count in (1, 2, 7, 8, 17, 2048, 2049, 5000):
        for shift in (0, 1, 100):
            offset = 512 * rng.randrange(SECTORS - count + 1)
            data = rng.randbytes(count * 512 + shift)
            backend.write(memoryview(data)[shift:], offset)
            model[offset : offset + count * 512] = data[shift:]
            buffer = memoryview(bytearray(count * 512 + shift))[shift:]
            backend.read_into(buffer, offset)
            assert buffer == data[shift:]
    assert disk.read_bytes() == model


def test_rows(disk: Path) -> None:
    backend = Backend(str(disk), direct=True)
    rows = np.frombuffer(random.Random(3).randbytes(200 * 9000), np.uint8).reshape(200, 9000)[:, 118 : 118 + 8704]
    backend.write_rows(rows, [(0, 0, 100), (5000, 100, 102), (1700, 102, 200)])
    found = disk.read_bytes()
    assert found[: 100 * 8704] == rows[:100].tobytes()
    assert found[5000 * 512 : 5000 * 512 + 2 * 8704] == rows[100:102].tobytes()
    assert found[1700 * 512 : 1700 * 512 + 98 * 8704] == rows[102:].tobytes()


def test_zeros_without_holes(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr("aoe_nbd.target.backend._fallocate", refuse)
    backend = Backend(str(disk), direct=True)
    before = disk.read_bytes()
    backend.zero(3 * 512, 5000 * 512)
    assert disk.read_bytes() == before[: 3 * 512] + bytes(5000 * 512) + before[5003 * 512 :]


def test_a_file_system_that_has_none(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: str, flags: int) -> int:
        assert flags & os.O_DIRECT
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BackendError, match="on a file system without O_DIRECT: leave --direct out"):
        Backend(str(disk), direct=True)


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.EINVAL, "AoE's sectors have 512 bytes: leave --direct out"), (errno.EIO, "cannot be read")],
)
def test_storage_with_larger_blocks(
    disk: Path, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def preadv(_fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset % 4096 or len(buffers[0]) % 4096:
            raise OSError(code, os.strerror(code))
        return len(buffers[0])

    monkeypatch.setattr(os, "preadv", preadv)
    assert main(["--direct", "--interface", "lo", str(disk)]) == 1
    _, said = capsys.readouterr()
    assert says in said
    assert said.count("\n") == 1
