# SPDX-License-Identifier: BSD-3-Clause
"""What goes in comes out: whole disks copied through the bridge by other people's tools, over real frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from conftest import IMAGE_SIZE
from lab import MIB, Bridge, Process, assert_same, run, write_random

Start = Callable[..., Process]


@pytest.fixture
def disk(folder: Path) -> Path:
    """A target's backing file, full of something else than the image, so that nothing passes by being skipped."""
    path = folder / "disk"
    write_random(path, IMAGE_SIZE, seed=2)
    return path


def test_nbdcopy(disk: Path, image: Path, target: Start, bridge: Callable[..., Bridge], folder: Path) -> None:
    target(disk)
    uri = bridge().uri()
    run("nbdcopy", "--flush", image, uri)
    assert_same(image, disk, IMAGE_SIZE)
    run("nbdcopy", uri, folder / "copy")
    assert_same(image, folder / "copy", IMAGE_SIZE)


def test_qemu_img(disk: Path, image: Path, target: Start, bridge: Callable[..., Bridge], folder: Path) -> None:
    target(disk)
    uri = bridge().uri()
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri)
    assert_same(image, disk, IMAGE_SIZE)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri)
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, folder / "copy")
    assert_same(image, folder / "copy", IMAGE_SIZE)


def test_qemu_img_compare_tells_a_difference(folder: Path, target: Start, bridge: Callable[..., Bridge]) -> None:
    """The check of the checks above: one wrong byte in the target's file is found through the bridge."""
    original, disk = folder / "original", folder / "disk"
    write_random(original, 16 * MIB, seed=3)
    data = bytearray(original.read_bytes())
    data[9 * MIB + 5] ^= 1
    disk.write_bytes(data)
    target(disk)
    with pytest.raises(AssertionError, match=f"mismatch at offset {9 * MIB}"):
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", original, bridge().uri())


def test_fio(disk: Path, target: Start, bridge: Callable[..., Bridge], tmp_path: Path) -> None:
    """1 GiB of random writes in mixed block sizes, 16 at a time, each read back and checked by its own checksum."""
    target(disk)
    uri = bridge().uri()
    run(
        *("fio", "--name=mixed", "--ioengine=nbd", f"--uri={uri}", f"--size={IMAGE_SIZE}", "--iodepth=16"),
        *("--rw=randwrite", "--bssplit=512/10:4k/40:20k/10:64k/20:256k/15:1m/5", "--blockalign=512"),
        *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=1"),
        cwd=tmp_path,
    )


@pytest.mark.parametrize("block", ["512", "1536", "4k", "8704", "128k", "4m"])
def test_fio_block_sizes(block: str, folder: Path, target: Start, bridge: Callable[..., Bridge]) -> None:
    """Each size for itself, one sector and odd numbers of them among these, 32 at a time."""
    write_random(folder / "disk", 16 * MIB, seed=4)
    target(folder / "disk")
    uri = bridge().uri()
    size = 4 * MIB if block == "512" else 16 * MIB
    run(
        *("fio", "--name=one", "--ioengine=nbd", f"--uri={uri}", f"--size={size}", "--iodepth=32", f"--bs={block}"),
        *("--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randrepeat=1"),
        cwd=folder,
    )


def test_sparse_image(folder: Path, target: Start, bridge: Callable[..., Bridge]) -> None:
    """Zeroes in the image really become zeroes on a disk that was full, however the tool asks for them."""
    image, disk = folder / "image", folder / "disk"
    rng = np.random.default_rng(5)
    with image.open("wb") as file:
        for _ in range(64):
            file.write(rng.bytes(MIB) if rng.random() < 0.5 else bytes(MIB))
    for command in (["nbdcopy", "--flush", image], ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image]):
        write_random(disk, 64 * MIB, seed=6)
        process = target(disk)
        nbdkit = bridge()
        run(*command, nbdkit.uri())
        assert_same(image, disk, 64 * MIB)
        nbdkit.stop()
        process.stop()
