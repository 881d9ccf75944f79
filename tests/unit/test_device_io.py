# SPDX-License-Identifier: BSD-3-Clause
"""A Device as a disk of bytes: any offset, any length, neighbours' bytes never torn; nothing past the end."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from aoe_nbd.core.request import Kind
from aoe_nbd.device import TRIM_MOST, Device, DeviceError
from aoe_nbd.wire.codes import SECTOR, Ata
from aoe_nbd.wire.frames import parse_ata
from inmemory import Lan, MemoryBackend, open_device

SIZE = 4096 * SECTOR


def disk_of(
    like: str = "ours", sectors: int = 4096, mtu: int = 1500, **options: object
) -> tuple[Device, MemoryBackend, Lan]:
    lan = Lan(mtu)
    port = lan.target(like, sectors=sectors)
    device = open_device(lan, **options)  # type: ignore[arg-type]
    lan.pause(1.0)
    lan.sent.clear()
    return device, port.disk, lan


def put(device: Device, offset: int, data: bytes, fua: bool = False) -> None:
    device.write(memoryview(bytearray(data)), offset, fua)


def get(device: Device, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    device.read(memoryview(buffer), offset)
    return bytes(buffer)


@pytest.mark.parametrize("seed", range(4))
def test_any_offset_and_length_against_a_bytearray(seed: int) -> None:
    device, disk, lan = disk_of(mtu=random.Random(seed).choice((1500, 9000)))
    model = bytearray(SIZE)
    rng = random.Random(seed)
    for _ in range(150):
        length = rng.choice((1, 2, 511, 512, 513, 1024, 4096, 5000, rng.randrange(1, 20000)))
        offset = rng.choice((0, SIZE - length, rng.randrange(SIZE - length + 1), rng.randrange(8) * SECTOR))
        what = rng.randrange(5)
        if what < 2:
            data = rng.randbytes(length)
            put(device, offset, data, fua=rng.randrange(4) == 0)
            model[offset : offset + length] = data
        elif what == 2:
            device.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        elif what == 3:
            device.trim(offset, length)
            first, last = -(-offset // SECTOR) * SECTOR, (offset + length) // SECTOR * SECTOR
            if first < last:
                model[first:last] = bytes(last - first)
        else:
            assert get(device, offset, length) == model[offset : offset + length]
    assert get(device, 0, SIZE) == model
    assert disk.whole(0, 4096) == model
    assert lan.initiator.waiting == 0


def test_unaligned_write_touches_only_its_sectors_and_locks_them() -> None:
    device, disk, lan = disk_of()
    disk.write(bytes(range(256)) * 8, 0)
    put(device, 700, b"x" * 600)  # from sector 1 to sector 2
    assert disk.whole(0, 4) == (bytes(range(256)) * 8)[:700] + b"x" * 600 + (bytes(range(256)) * 8)[1300:]
    kinds = [request.kind for request in device.engine.executed]  # type: ignore[attr-defined]
    assert kinds == [Kind.LOCK, Kind.READ, Kind.READ, Kind.WRITE]
    assert {(f[28], f[26]) for f in lan.requests(Ata.WRITE_EXT)} == {(1, 2)}


@pytest.mark.parametrize(
    ("offset", "length", "reads"),
    [
        (0, 512, 0),
        (0, 1, 1),
        (511, 1, 1),
        (1, 510, 1),
        (511, 2, 2),
        (0, 513, 1),
        (1, 511, 1),
        (1, 1023, 1),
        (100, 2000, 2),
    ],
)
def test_only_the_sectors_at_the_edges_are_read(offset: int, length: int, reads: int) -> None:
    device, _, lan = disk_of()
    put(device, offset, b"y" * length)
    assert len(lan.requests(Ata.READ_EXT)) == reads


def test_a_failed_read_of_an_edge_writes_nothing_and_lets_go_of_the_lock() -> None:
    device, disk, _ = disk_of()
    bad = [True]
    read_into = disk.read_into

    def failing(buffer: memoryview, offset: int) -> None:
        if bad[0]:
            raise OSError(errno.EIO, "bad sector")
        read_into(buffer, offset)

    disk.read_into = failing  # type: ignore[method-assign]
    with pytest.raises(DeviceError) as caught:
        put(device, 5, b"z")
    assert caught.value.errno == errno.EIO
    assert "uncorrectable" in str(caught.value)
    assert not disk.content
    bad[0] = False
    put(device, 5, b"z")
    assert get(device, 4, 3) == b"\0z\0"


@pytest.mark.parametrize("like", ["ours", "ggaoed", "kvblade"])
@pytest.mark.parametrize("seed", range(3))
def test_concurrent_unaligned_writes_never_tear_a_neighbour(like: str, seed: int) -> None:
    """Forty writers at once, each with its own bytes, many of them in the same sectors: each byte ends as its writer's."""
    lan = Lan(9000)
    port = lan.target(like, sectors=64)
    device = open_device(lan)
    rng = random.Random(seed)
    borders = sorted(rng.sample(range(1, 16 * SECTOR), 39))
    pieces = list(zip([0, *borders], [*borders, 16 * SECTOR], strict=True))
    rng.shuffle(pieces)
    data = rng.randbytes(16 * SECTOR)

    def writer(start: int, end: int) -> Callable[[], None]:
        return lambda: put(device, start, data[start:end])

    device.engine.together([writer(*piece) for piece in pieces])  # type: ignore[attr-defined]
    assert port.disk.whole(0, 16) == data
    assert len(device.initiator._lock) == device.initiator.ghosts


def test_concurrent_unaligned_and_whole_writes_end_as_one_of_the_two_orders() -> None:
    for seed in range(10):
        lan = Lan()
        port = lan.target("ggaoed", sectors=64)
        device = open_device(lan)
        rng = random.Random(seed)
        calls = [lambda: put(device, 0, b"W" * 2 * SECTOR), lambda: put(device, 500, b"u" * 30)]  # noqa: B023
        rng.shuffle(calls)
        device.engine.together(calls)  # type: ignore[attr-defined]
        whole = port.disk.whole(0, 2)
        assert whole in (b"W" * 1024, b"W" * 500 + b"u" * 30 + b"W" * 494)


def test_concurrent_writes_under_loss_keep_every_byte() -> None:
    lan = Lan()
    port = lan.target("ggaoed", sectors=64)
    device = open_device(lan)
    port.to.loss = port.back.loss = 0.1
    port.to.reorder, port.to.hold = 0.2, 0.03
    data = random.Random(5).randbytes(8 * SECTOR)
    step = 37
    calls = [(lambda at=at: put(device, at, data[at : at + step])) for at in range(0, len(data), step)]
    device.engine.together(calls)  # type: ignore[attr-defined]
    assert port.disk.whole(0, 8) == data


@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (-1, 1), (1 << 70, 1), (0, -1)]
)
def test_past_the_end_is_refused_with_a_sentence(offset: int, length: int) -> None:
    device, _, lan = disk_of()
    buffer = memoryview(bytearray(max(0, length)))
    attempts: list[tuple[int, Callable[[], None]]] = [
        (errno.ENOSPC, lambda: device.trim(offset, length)),
        (errno.ENOSPC, lambda: device.zero(offset, length)),
    ]
    if length >= 0:
        attempts += [
            (errno.EINVAL, lambda: device.read(buffer, offset)),
            (errno.ENOSPC, lambda: device.write(buffer, offset)),
        ]
    for code, attempt in attempts:
        with pytest.raises(DeviceError) as caught:
            attempt()
        assert caught.value.errno == code
        assert f"past the end of the disk at {SIZE}" in str(caught.value)
    assert lan.sent == []


def test_the_very_last_byte_is_inside() -> None:
    device, disk, _ = disk_of()
    put(device, SIZE - 1, b"!")
    assert get(device, SIZE - 1, 1) == b"!"
    assert disk.sector(4095)[-1:] == b"!"


def test_nothing_is_asked_for_nothing() -> None:
    device, _, lan = disk_of()
    assert get(device, 10, 0) == b""
    put(device, 10, b"")
    device.trim(10, 0)
    device.trim(10, 700)  # no whole sector
    device.zero(10, 0)
    assert lan.sent == []


def test_read_only_by_the_operator_and_by_the_target() -> None:
    lan = Lan()
    lan.target(disk=MemoryBackend(4096, read_only=True))
    by_target = open_device(lan)
    by_operator, _, _ = disk_of(read_only=True)
    for device in (by_target, by_operator):
        device.engine.lan.sent.clear()  # type: ignore[attr-defined]
        assert not device.can_write
        for attempt in (lambda: put(device, 0, b"x"), lambda: device.trim(0, 512), lambda: device.zero(0, 512)):  # noqa: B023
            with pytest.raises(DeviceError) as caught:
                attempt()
            assert caught.value.errno == errno.EPERM
            assert "e1.0 is read-only" in str(caught.value)
        assert device.engine.lan.sent == []  # type: ignore[attr-defined]
        assert get(device, 0, 512) == bytes(512)


def test_read_only_as_vblade_tells_it() -> None:
    """Its IDENTIFY says nothing of -r: only the aborted write does."""
    lan = Lan()
    lan.target("vblade", disk=MemoryBackend(4096, read_only=True))
    device = open_device(lan)
    assert device.can_write
    with pytest.raises(DeviceError) as caught:
        put(device, 0, b"x" * 512)
    assert caught.value.errno == errno.EPERM
    assert "its export is probably read-only" in str(caught.value)


def test_fua_by_the_command_where_there_is_one() -> None:
    device, disk, lan = disk_of()
    assert device.native_fua
    put(device, 0, b"f" * 512, fua=True)
    assert disk.log[-2:] == [("write", 0, 1), ("flush", 0, 0)]
    assert [f[27] for f in lan.requests()] == [Ata.WRITE_DMA_FUA_EXT]
    put(device, 3, b"f", fua=True)  # unaligned as well
    assert disk.log[-2:] == [("write", 0, 1), ("flush", 0, 0)]


def test_fua_by_a_flush_where_there_is_none() -> None:
    device, _, lan = disk_of("ggaoed")
    assert not device.native_fua
    put(device, 0, b"f" * 512, fua=True)
    assert [f[27] for f in lan.requests()] == [Ata.WRITE_EXT, Ata.FLUSH_EXT]


def test_flush_is_sent_after_all_writes_are_answered() -> None:
    device, disk, _ = disk_of()
    put(device, 0, b"a" * 5120)
    device.flush()
    assert disk.log[-1] == ("flush", 0, 0)
    assert sum(n for what, _, n in disk.log if what == "write") == 10


def test_a_large_trim_goes_in_blocks() -> None:
    device, disk, lan = disk_of(sectors=3 * TRIM_MOST)
    disk.write(b"t" * 512, (TRIM_MOST + 5) * SECTOR)
    disk.write(b"k" * 512, 2 * TRIM_MOST * SECTOR + 2048)
    device.trim(1024, (2 * TRIM_MOST - 4) * SECTOR)
    frames = lan.requests(Ata.DATA_SET_MANAGEMENT)
    assert len(frames) == 2
    assert all(parse_ata(f).error_feature == 1 and f[26] == 1 for f in frames)
    assert disk.sector(TRIM_MOST + 5) == bytes(512)
    assert disk.sector(2 * TRIM_MOST + 4) == b"k" * 512


def test_zero_without_a_sure_trim_is_not_offered() -> None:
    device, _, _ = disk_of("vblade")
    assert not device.can_zero
    assert not device.can_trim
    with pytest.raises(DeviceError) as caught:
        device.zero(0, 512)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_check_power() -> None:
    for like in ("ours", "vblade", "ggaoed"):
        device, _, lan = disk_of(like)
        device.check_power()
        assert [f[27] for f in lan.requests()] == [Ata.CHECK_POWER]
    device, _, _ = disk_of("qaoed")
    with pytest.raises(DeviceError):
        device.check_power()
