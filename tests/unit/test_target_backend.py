# SPDX-License-Identifier: BSD-3-Clause
"""Storage: what the page cache lacks of several places is asked of the disk together; a storage let go is closed."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aoe_nbd.target import Backend

SECTORS = 1000
RUNS = [(10, 0, 3), (500, 3, 4), (0, 4, 10), (998, 10, 11)]
SIZE = 1024


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(SECTORS * 512))
    return path


def preadv(answer: Callable[[], int | None]) -> Callable[..., int]:
    """os.preadv that leaves it to `answer` what comes of reads without waiting (None: what always comes)."""
    real: Any = os.preadv

    def read(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags and (n := answer()) is not None:
            return n
        return int(real(fd, buffers, offset))

    return read


def wrong(code: int) -> Callable[[], int]:
    def answer() -> int:
        raise OSError(code, os.strerror(code))

    return answer


@pytest.mark.parametrize(
    ("answer", "advised", "asks_again"),
    [
        (lambda: None, 0, True),  # all of it is in the cache
        (wrong(errno.EAGAIN), 4, True),
        (lambda: 100, 4, True),  # the beginning is
        (wrong(errno.EOPNOTSUPP), 4, False),  # nothing can be said
        (wrong(errno.EIO), 4, True),
    ],
)
def test_places_are_asked_for_together(
    disk: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], int | None], advised: int, asks_again: bool
) -> None:
    backend = Backend(str(disk))
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "preadv", preadv(answer))
    monkeypatch.setattr(os, "posix_fadvise", lambda _fd, offset, length, _advice: asked.append((offset, length)))
    for again in (False, True):
        buffer = memoryview(bytearray(11 * SIZE))
        asked.clear()
        backend.read_runs(buffer, SIZE, RUNS)
        content = disk.read_bytes()
        assert bytes(buffer) == b"".join(
            content[lba * 512 : lba * 512 + (last - first) * SIZE] for lba, first, last in RUNS
        )
        places = [(lba * 512, (last - first) * SIZE) for lba, first, last in RUNS]
        assert asked == (places[:advised] if not again or asks_again else [])


def test_one_place_is_just_read(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend(str(disk))
    monkeypatch.setattr(os, "preadv", preadv(wrong(errno.EAGAIN)))
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: pytest.fail("nobody waits for a second place"))
    backend.read_runs(memoryview(bytearray(SIZE)), SIZE, [(5, 0, 1)])


def test_an_end_that_came_nearer_is_an_error(disk: Path) -> None:
    backend = Backend(str(disk))
    os.truncate(disk, 100 * 512)
    with pytest.raises(OSError, match="shrank"):
        backend.read_runs(memoryview(bytearray(11 * SIZE)), SIZE, RUNS)


def test_a_storage_that_nobody_has_any_more_is_closed(disk: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    backend = Backend(str(disk))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del backend
    assert len(os.listdir("/proc/self/fd")) == before
