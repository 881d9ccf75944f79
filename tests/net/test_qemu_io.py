# SPDX-License-Identifier: BSD-3-Clause
"""qemu-io's patterns: odd sector counts, unaligned offsets, many requests at once, zeroes and discards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lab import MIB, Bridge, Process, run

SIZE = 64 * MIB


@pytest.fixture
def uri(folder: Path, target: Callable[..., Process], bridge: Callable[..., Bridge]) -> str:
    """A disk full of 0xee behind each target, at each MTU."""
    disk = folder / "disk"
    disk.write_bytes(b"\xee" * SIZE)
    target(disk)
    return bridge().uri()


def qemu_io(uri: str, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    out = run("qemu-io", "-f", "raw", *words, uri)
    # A pattern that was not there is a line of output, and no exit status before qemu 2.12; make sure of it.
    assert "verification failed" not in out
    assert "error" not in out.lower()
    return out


def test_odd_sector_counts(uri: str) -> None:
    """Each run of sectors lies right between others that stay as they were."""
    commands = []
    for i, sectors in enumerate((1, 2, 3, 5, 7, 16, 17, 18, 33, 255, 256, 257, 1001)):
        start, length = 4 * i * MIB, sectors * 512
        offset = start + 3 * 512
        commands += [
            f"write -P {i + 1} {offset} {length}",
            f"read -P 0xee {start} {3 * 512}",
            f"read -P {i + 1} {offset} {length}",
            f"read -P 0xee {offset + length} 1M",
        ]
    qemu_io(uri, *commands)


def test_unaligned(uri: str) -> None:
    commands = []
    for i, (offset, length) in enumerate(
        [(1, 1), (700, 3), (5000, 511), (100_001, 513), (MIB - 1, 2), (2 * MIB + 77, MIB)]
    ):
        commands += [
            f"write -P {i + 1} {offset} {length}",
            f"read -P {i + 1} {offset} {length}",
            f"read -P 0xee {offset + length} 100",
            f"read -P 0xee {offset - 1} 1",
        ]
    qemu_io(uri, *commands)


def test_many_at_once(uri: str) -> None:
    writes = [f"aio_write -P {i + 1} {i * 77 * 512} {77 * 512}" for i in range(64)]
    reads = [f"read -P {i + 1} {i * 77 * 512} {77 * 512}" for i in range(64)]
    qemu_io(uri, *writes, "aio_flush", *reads)


def test_zeroes_flush_and_the_last_sector(uri: str) -> None:
    qemu_io(
        uri,
        "write -z 512 1536",
        "read -P 0xee 0 512",
        "read -P 0 512 1536",
        "read -P 0xee 2048 2048",
        "write -z -u 1M 4M",
        "read -P 0 1M 4M",
        f"write -f -P 9 {SIZE - 512} 512",
        f"read -P 9 {SIZE - 512} 512",
        "flush",
    )


def test_a_wrong_pattern_is_found(uri: str) -> None:
    """The check of the checks above."""
    with pytest.raises(AssertionError, match="Pattern verification failed"):
        qemu_io(uri, "write -P 1 0 4k", "read -P 2 0 4k")
