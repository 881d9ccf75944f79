# SPDX-License-Identifier: BSD-3-Clause
"""LUNs that are larger than LBA28 reaches (2^28 sectors, 128 GiB) and than 32 bits count (2^32 sectors, 2 TiB)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import nbd
import pytest

from lab import MIB, Bridge, Process

SECTOR = 512


@pytest.fixture
def mtu() -> int:
    return 9000


@pytest.fixture(params=[1 << 28, 1 << 32], ids=["2^28", "2^32"])
def boundary(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def disk(boundary: int, folder: Path) -> Path:
    """A sparse file of one MiB more than `boundary` sectors."""
    path = folder / "disk"
    try:
        with path.open("wb") as file:
            file.truncate(boundary * SECTOR + MIB)
    except OSError as error:
        pytest.skip(f"the file system of {folder} cannot hold a sparse file this large: {error.strerror}")
    return path


def test_around_the_boundary_and_at_the_end(
    boundary: int, disk: Path, target: Callable[..., Process], bridge: Callable[..., Bridge]
) -> None:
    target(disk)
    handle = nbd.NBD()
    handle.connect_uri(bridge().uri())
    size = boundary * SECTOR + MIB
    assert handle.get_size() == size
    rng = random.Random(boundary)
    places = {
        "the last LBAs below": (boundary - 16, 16),
        "one sector each side": (boundary - 1, 2),
        "the first above": (boundary, 1),
        "a long one across": (boundary - 500, 1000),
        "the end": (size // SECTOR - 33, 33),
    }
    for where, (lba, count) in places.items():
        data = rng.randbytes(count * SECTOR)
        handle.pwrite(data, lba * SECTOR)
        assert handle.pread(len(data), lba * SECTOR) == data, where
        with disk.open("rb") as file:
            assert os.pread(file.fileno(), len(data), lba * SECTOR) == data, where
    # An address that was cut to fewer bits would have landed at the start of the disk.
    assert handle.pread(4 * MIB, 0) == bytes(4 * MIB)
    handle.shutdown()
