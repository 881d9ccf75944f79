# SPDX-License-Identifier: BSD-3-Clause
"""The bridge as an NBD client sees it, by libnbd: what is offered, what is refused, and what every request does."""

from __future__ import annotations

import errno
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd
import pytest

from lab import MIB, PATIENCE, Bridge, Host, Process, Sniffer, Transfer, run, write_random

Start = Callable[..., Process]
StartBridge = Callable[..., Bridge]
SIZE = 64 * MIB


@pytest.fixture
def mtu() -> int:
    return 9000


@pytest.fixture
def disk(folder: Path) -> Path:
    path = folder / "disk"
    write_random(path, SIZE, seed=1)
    return path


@contextmanager
def connected(bridge: Bridge, export: str = "") -> Iterator[nbd.NBD]:
    """A libnbd handle that sends whatever it is told to, also what no sane client would."""
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.connect_uri(bridge.uri(export))
    try:
        yield handle
    finally:
        handle.shutdown(nbd.SHUTDOWN_ABANDON_PENDING)


def wait(h: nbd.NBD, cookie: int) -> None:
    """Until the answer is there; an error answer raises nbd.Error."""
    deadline = time.monotonic() + PATIENCE
    while not h.aio_command_completed(cookie):
        assert time.monotonic() < deadline, "no answer"
        h.poll(100)


# -- what is offered -------------------------------------------------------------------------------------------------


def test_sizes(disk: Path, target: Start, bridge: StartBridge) -> None:
    target(disk)
    with connected(bridge()) as h:
        assert h.get_size() == SIZE
        assert h.get_block_size(nbd.SIZE_MINIMUM) == 512
        assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
        assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB


def test_odd_tail_bytes_are_not_offered(folder: Path, target: Start, bridge: StartBridge) -> None:
    """A file that ends inside a sector has no such sector: AoE knows whole ones only."""
    write_random(folder / "disk", 1000 * 512 + 100, seed=1)
    target(folder / "disk")
    with connected(bridge()) as h:
        assert h.get_size() == 1000 * 512
        assert h.pread(512, 999 * 512) == (folder / "disk").read_bytes()[999 * 512 : 1000 * 512]


def test_vblade_offers_what_its_identify_says(disk: Path, vblade: Start, bridge: StartBridge) -> None:
    vblade(disk)
    with connected(bridge()) as h:
        assert not h.is_read_only()
        assert h.can_flush()
        assert h.can_fua()
        assert h.can_multi_conn()
        assert not h.can_trim()


def test_our_target_offers_all(disk: Path, our_target: Start, bridge: StartBridge) -> None:
    our_target(disk)
    with connected(bridge()) as h:
        assert not h.is_read_only()
        assert h.can_flush()
        assert h.can_fua()
        assert h.can_multi_conn()
        assert h.can_trim()
        assert h.can_zero()


def test_read_only_target(disk: Path, our_target: Start, bridge: StartBridge, sniffer: Sniffer) -> None:
    our_target(disk, "--read-only")
    refuses_writes(bridge(), disk, sniffer)


def test_read_only_bridge(disk: Path, target: Start, bridge: StartBridge, sniffer: Sniffer) -> None:
    target(disk)
    refuses_writes(bridge(shelf=1, slot=0, readonly="true"), disk, sniffer)


def refuses_writes(bridge: Bridge, disk: Path, sniffer: Sniffer) -> None:
    before = disk.read_bytes()
    with connected(bridge) as h:
        assert h.is_read_only()
        assert not h.can_trim()
        assert h.pread(4096, 0) == before[:4096]
        sniffer.frames()
        writes: list[Callable[[], None]] = [
            lambda: h.pwrite(b"x" * 512, 0),
            lambda: h.trim(512, 0),
            lambda: h.zero(512, 0),
        ]
        for write in writes:
            with pytest.raises(nbd.Error) as refusal:
                write()
            assert refusal.value.errnum in (errno.EPERM, errno.EROFS, errno.EINVAL)
        h.pread(512, 0)
        assert not [transfer for transfer in sniffer.transfers() if transfer.write]
    assert disk.read_bytes() == before


def test_writes_to_a_read_only_vblade_fail(disk: Path, vblade: Start, bridge: StartBridge) -> None:
    """Its IDENTIFY says nothing of it, so it is only found out by trying; then it is an error, and not silence."""
    vblade(disk, "-r")
    before = disk.read_bytes()
    with connected(bridge()) as h:
        with pytest.raises(nbd.Error) as refusal:
            h.pwrite(b"x" * 4096, 0)
        assert refusal.value.errnum in (errno.EIO, errno.EPERM)
        assert h.pread(4096, 0) == before[:4096]
    assert disk.read_bytes() == before


# -- what a request does ---------------------------------------------------------------------------------------------


def test_past_the_end_the_target_is_not_asked(disk: Path, target: Start, bridge: StartBridge, sniffer: Sniffer) -> None:
    target(disk)
    with connected(bridge()) as h:
        last = SIZE // 512 - 1
        h.pread(512, last * 512)
        assert Transfer(False, last, 1) in sniffer.transfers()
        for offset, length in ((SIZE, 512), (SIZE - 512, 1024), (SIZE + MIB, 4096), (1 << 62, 512)):
            with pytest.raises(nbd.Error) as refusal:
                h.pread(length, offset)
            assert refusal.value.errnum == errno.EINVAL
            with pytest.raises(nbd.Error) as refusal:
                h.pwrite(bytes(length), offset)
            assert refusal.value.errnum in (errno.ENOSPC, errno.EINVAL)
        h.pread(512, 0)
        assert not [t for t in sniffer.transfers() if t.write or t.lba + t.count > last]


@pytest.mark.parametrize("size", [32 * MIB, 32 * MIB - 512, 17 * 512 * 1000 + 512])
def test_large_requests(size: int, disk: Path, target: Start, bridge: StartBridge) -> None:
    target(disk)
    content = bytearray(disk.read_bytes())
    data = random.Random(size).randbytes(size)
    with connected(bridge()) as h:
        assert h.pread(size, 512) == content[512 : 512 + size]
        h.pwrite(data, 512)
        assert h.pread(size, 512) == data
    content[512 : 512 + size] = data
    assert disk.read_bytes() == content


def test_unaligned(disk: Path, target: Start, bridge: StartBridge) -> None:
    """Any offset and any length, as a file would do it."""
    target(disk)
    content = bytearray(disk.read_bytes())
    rng = random.Random(1)
    with connected(bridge()) as h:
        for _ in range(300):
            length = rng.choice((1, 2, 511, 512, 513, 1023, 4097, rng.randrange(1, 100_000)))
            offset = rng.choice((0, 1, SIZE - length, rng.randrange(SIZE - length)))
            if rng.random() < 0.5:
                data = rng.randbytes(length)
                h.pwrite(data, offset)
                content[offset : offset + length] = data
            else:
                assert h.pread(length, offset) == content[offset : offset + length]
    assert disk.read_bytes() == content


def test_neighbours_in_a_sector_are_not_torn(disk: Path, target: Start, bridge: StartBridge) -> None:
    """Sixteen writers at once, each to its own 40 bytes of the same two sectors: every one's last word stands."""
    target(disk)
    nbdkit = bridge()
    writers, each = 16, 40
    start = 1000 * 512 + 100
    with connected(nbdkit) as a, connected(nbdkit) as b:
        for turn in range(50):
            pending = []
            for i in range(writers):
                h = (a, b)[i % 2]
                data = nbd.Buffer.from_bytearray(bytearray([turn + i]) * each)
                pending.append((h, h.aio_pwrite(data, start + i * each)))
            for h, cookie in pending:
                wait(h, cookie)
        expected = b"".join(bytes([49 + i]) * each for i in range(writers))
        assert a.pread(len(expected), start) == expected
    assert disk.read_bytes()[start : start + len(expected)] == expected


def test_overlapping_writes_leave_one_of_them(disk: Path, target: Start, bridge: StartBridge) -> None:
    """Overlapping requests have no order of their own, but none of them may be half there."""
    target(disk)
    with connected(bridge()) as h:
        for turn in range(20):
            cookies = [
                h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([16 * (turn % 8) + i]) * 65536), MIB) for i in range(8)
            ]
            for cookie in cookies:
                wait(h, cookie)
            assert len(set(h.pread(65536, MIB))) == 1


def test_trim_and_zero_on_our_target(disk: Path, our_target: Start, bridge: StartBridge) -> None:
    our_target(disk)
    content = bytearray(disk.read_bytes())
    with connected(bridge()) as h:
        blocks = disk.stat().st_blocks
        h.trim(16 * MIB, 8 * MIB)
        assert disk.stat().st_blocks <= blocks - 16 * MIB // 512
        for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA):
            offset = 30 * MIB + flags * MIB + 100
            h.zero(MIB + 300, offset, flags)
            content[offset : offset + MIB + 300] = bytes(MIB + 300)
            assert h.pread(MIB + 4096, offset - 100) == content[offset - 100 : offset + MIB + 3996]
        h.flush()
    now = disk.read_bytes()
    assert now[: 8 * MIB] == content[: 8 * MIB]
    assert now[24 * MIB :] == content[24 * MIB :]


def test_zero_where_there_is_no_trim(disk: Path, vblade: Start, bridge: StartBridge) -> None:
    vblade(disk)
    content = bytearray(disk.read_bytes())
    with connected(bridge()) as h:
        h.zero(MIB, MIB + 512)
    content[MIB + 512 : 2 * MIB + 512] = bytes(MIB)
    assert disk.read_bytes() == content


def test_flush_and_fua_reach_our_target_s_disk(
    disk: Path, our_target: Start, bridge: StartBridge, tmp_path: Path, start: Start
) -> None:
    """Seen from outside: the target calls fdatasync before it answers a flush, or writes through for FUA."""
    process = our_target(disk)
    with connected(bridge()) as h:
        trace = tmp_path / "strace"
        calls = "trace=fsync,fdatasync,pwrite64,pwritev,pwritev2,sync_file_range"
        command = ("strace", "-f", "-qq", "-e", calls, "-o", str(trace), "-p", str(process.pid))
        strace = start(Process("strace", command, tmp_path / "strace.log"))
        strace.wait_until(lambda: traced(process.pid), "attach")
        h.pwrite(b"a" * 4096, 0)
        assert "sync" not in trace.read_text().lower()
        h.flush()
        assert trace.read_text().count("fdatasync(") == 1
        h.pwrite(b"b" * 4096, 4096, nbd.CMD_FLAG_FUA)
        seen = trace.read_text()
        assert seen.count("fdatasync(") == 2 or "RWF_DSYNC" in seen
        strace.stop(signal.SIGINT)


def traced(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text()


def test_several_connections(disk: Path, target: Start, bridge: StartBridge) -> None:
    """What one connection has written and flushed, another reads."""
    target(disk)
    nbdkit = bridge()
    with connected(nbdkit) as a, connected(nbdkit) as b:
        a.pwrite(b"here" * 1024, MIB)
        a.flush()
        assert b.pread(4096, MIB) == b"here" * 1024


# -- exports ---------------------------------------------------------------------------------------------------------


def test_export_names_choose_the_lun(folder: Path, target: Start, bridge: StartBridge, initiator: Host) -> None:
    for slot in (0, 1):
        write_random(folder / f"disk{slot}", MIB, seed=slot)
        target(folder / f"disk{slot}", slot=slot)
    nbdkit = bridge(interface=initiator.interface)
    listing = run("nbdinfo", "--list", nbdkit.uri())
    assert 'export="e1.0"' in listing
    assert 'export="e1.1"' in listing
    for slot in (0, 1):
        with connected(nbdkit, f"e1.{slot}") as h:
            assert h.pread(MIB, 0) == (folder / f"disk{slot}").read_bytes()
    with pytest.raises(nbd.Error), connected(nbdkit, "bogus"):
        pass


def test_a_mac_that_is_given(disk: Path, target: Start, bridge: StartBridge, storage: Host) -> None:
    target(disk)
    with connected(bridge(mac=storage.mac, shelf=1, slot=0)) as h:
        assert h.pread(512, 0) == disk.read_bytes()[:512]


@pytest.mark.parametrize("sectors", [1, 3, 16])
def test_sectors_caps_the_frames(
    sectors: int, disk: Path, target: Start, bridge: StartBridge, sniffer: Sniffer
) -> None:
    """From the first on none is larger; and once the answer to the first is there, the path is known to carry all of it."""
    target(disk)
    with connected(bridge(target="e1.0", sectors=sectors)) as h:
        sniffer.frames()
        assert h.pread(48 * 512, 0) == disk.read_bytes()[: 48 * 512]
        assert max(t.count for t in sniffer.transfers()) <= sectors
        assert h.pread(48 * 512, 0) == disk.read_bytes()[: 48 * 512]
        assert {t.count for t in sniffer.transfers()} == {sectors}


# -- a target that dies ----------------------------------------------------------------------------------------------


def pending_read(h: nbd.NBD, sniffer: Sniffer) -> int:
    """Send a read of LBA 777, and return its cookie when it has been on the wire and its target has not answered."""
    sniffer.frames()
    cookie: int = h.aio_pread(nbd.Buffer(512), 777 * 512)
    deadline = time.monotonic() + PATIENCE
    while Transfer(False, 777, 1) not in sniffer.transfers():
        assert time.monotonic() < deadline, "the target was not asked"
        h.poll(10)
    assert not h.aio_command_completed(cookie)
    return cookie


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_bridge_whose_target_is_dead_still_ends(
    sign: signal.Signals, disk: Path, target: Start, bridge: StartBridge, sniffer: Sniffer
) -> None:
    """By default it would wait for its target for ever, and nbdkit itself for the client, which here stays connected."""
    process = target(disk)
    nbdkit = bridge()
    with connected(nbdkit) as h:
        process.stop(signal.SIGKILL)
        cookie = pending_read(h, sniffer)
        nbdkit.popen.send_signal(sign)
        with pytest.raises(nbd.Error) as failure:
            wait(h, cookie)
        assert failure.value.errnum == errno.ESHUTDOWN
        assert nbdkit.popen.wait(timeout=20) == 0


def test_a_dead_target_is_a_pause(disk: Path, target: Start, bridge: StartBridge, sniffer: Sniffer) -> None:
    process = target(disk)
    with connected(bridge()) as h:
        process.stop(signal.SIGKILL)
        cookie = pending_read(h, sniffer)
        target(disk)
        wait(h, cookie)
        assert h.pread(4096, 0) == disk.read_bytes()[:4096]


def test_a_dead_target_is_an_error_if_so_asked(disk: Path, target: Start, bridge: StartBridge) -> None:
    process = target(disk)
    with connected(bridge(target="e1.0", on_dead="fail-after=1")) as h:
        process.stop(signal.SIGKILL)
        with pytest.raises(nbd.Error) as failure:
            h.pread(4096, 0)
        assert failure.value.errnum == errno.EIO
