# SPDX-License-Identifier: BSD-3-Clause
"""Those of the interop traps that real frames, the kernel or Debian's own vblade can set better than an imitation.

`tests/traps` has a test for each of them; the numbers are the same.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nbd
import pytest

from aoe_nbd.link import Accept, Link, LinkError
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import RESPONSE, AtaFlag, Command, MaskCommand, MaskDirectiveCommand, ReserveCommand
from aoe_nbd.wire.frames import Config, MaskList, Reserve, build_header, build_request, parse_ata, parse_header
from lab import MIB, PLUGIN, Bridge, Host, Lan, Process, Sniffer, run, write_random

Start = Callable[..., Process]
StartBridge = Callable[..., Bridge]
READS, WRITES = (0x20, 0x24), (0x30, 0x34)
SIZE = 8 * MIB


@pytest.fixture
def disk(folder: Path) -> Path:
    write_random(folder / "disk", SIZE, seed=1)
    return folder / "disk"


@contextmanager
def connected(bridge: Bridge) -> Iterator[nbd.NBD]:
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.connect_uri(bridge.uri())
    try:
        yield handle
    finally:
        handle.shutdown()


@pytest.fixture
def requests(storage: Host) -> Iterator[Sniffer]:
    """What reaches the target's host: every frame of ours."""
    sniffer = Sniffer(storage)
    yield sniffer
    sniffer.close()


@pytest.fixture
def replies(initiator: Host) -> Iterator[Sniffer]:
    """What reaches the initiator's host: every frame of the target's."""
    sniffer = Sniffer(initiator)
    yield sniffer
    sniffer.close()


def session(bridge: Bridge, disk: Path) -> None:
    """Reads and writes of many sizes and a flush, checked."""
    rng = random.Random(1)
    model = bytearray(disk.read_bytes())
    with connected(bridge) as h:
        for _ in range(40):
            length = rng.choice((1, 512, 1000, 4096, 8704, 65536, 100_000))
            offset = rng.randrange(SIZE - length)
            data = rng.randbytes(length)
            h.pwrite(data, offset)
            model[offset : offset + length] = data
            assert h.pread(length, offset) == data
        if h.can_flush():
            h.flush()
        assert h.pread(MIB, SIZE - MIB) == model[SIZE - MIB :]
    assert disk.read_bytes() == model


def test_trap_01_short_replies_of_vblade_on_veth(
    disk: Path, vblade: Start, bridge: StartBridge, requests: Sniffer, replies: Sniffer
) -> None:
    """The kernel pads nothing here: vblade's config reply is 32 bytes, and is taken; ours are 60 on the wire."""
    vblade(disk)
    session(bridge(), disk)
    ours = [f for f in requests.frames() if not f[14] & RESPONSE]
    theirs = [f for f in replies.frames() if f[14] & RESPONSE]
    assert min(map(len, ours)) == 60
    assert {len(f) for f in theirs if f[19] == Command.CONFIG} == {32}


def test_trap_02_announcement_of_a_restarted_vblade(
    disk: Path, vblade: Start, bridge: StartBridge, replies: Sniffer
) -> None:
    """Its one announcement has version 0 and tag 0 on the wire; I/O that waited goes on."""
    first = vblade(disk)
    served = bridge()
    with connected(served) as h:
        first.stop()
        cookie = h.aio_pwrite(b"A" * 4096, 0)
        for _ in range(10):
            h.poll(100)
        assert not h.aio_command_completed(cookie)
        replies.frames()
        vblade(disk)
        while not h.aio_command_completed(cookie):
            h.poll(100)
        assert h.pread(4096, 0) == b"A" * 4096
    (announced,) = [f for f in replies.frames() if f[19] == Command.CONFIG and f[20:24] == bytes(4)]
    assert announced[14] == 0x08


def test_trap_03_and_04_flush_of_a_real_vblade(
    disk: Path, vblade: Start, bridge: StartBridge, requests: Sniffer, replies: Sniffer
) -> None:
    """0xe7, never 0xea; answered with status 0 and whatever in the error byte; and that is success."""
    vblade(disk)
    with connected(bridge()) as h:
        with pytest.raises(nbd.Error):
            h.pread(512, SIZE)  # leaves an error code where vblade's next flush reply finds it
        for _ in range(10):
            h.pread(512, 0)
            h.flush()
    flushes = [f for f in requests.frames() if f[19] == Command.ATA and f[27] in (0xE7, 0xEA)]
    assert {f[27] for f in flushes} == {0xE7}
    tags = {f[20:24] for f in flushes}
    assert len(tags) == len(flushes) >= 10
    assert {f[27] for f in replies.frames() if f[20:24] in tags} == {0x00}


@pytest.mark.parametrize("where", ["vblade", "our_target"])
def test_trap_06_addresses_past_28_and_32_bits(
    where: str, folder: Path, request: pytest.FixtureRequest, bridge: StartBridge, requests: Sniffer
) -> None:
    """Byte for byte on the wire, and on the disk where they belong."""
    path = folder / "sparse"
    with path.open("wb") as file:
        file.truncate(((1 << 32) + 64) * 512)
    request.getfixturevalue(where)(path)
    marks = {lba: lba.to_bytes(8, "big") * 192 for lba in (0, 5, (1 << 28) - 1, 1 << 28, (1 << 32) - 2, (1 << 32) + 5)}
    with connected(bridge()) as h:
        for lba, data in marks.items():
            h.pwrite(data, lba * 512)
        for lba, data in marks.items():
            if lba != (1 << 28) - 1:  # whose tail the next one has overwritten
                assert h.pread(len(data), lba * 512) == data
    with path.open("rb") as file:
        for lba, data in marks.items():
            file.seek(lba * 512)
            assert file.read(512) == data[:512], hex(lba)
    wanted = {(lba & 0xFFFFFFFFFFFF).to_bytes(6, "little") for lba in marks}
    seen = set()
    for frame in requests.frames():
        if frame[19] == Command.ATA and frame[27] in (*READS, *WRITES):
            assert frame[27] in (0x24, 0x34)
            assert frame[24] & AtaFlag.EXTENDED
            seen.add(frame[28:34])
    assert wanted <= seen


@pytest.mark.parametrize("like", ["", "vblade", "ggaoed", "qaoed", "kvblade", "debian"])
def test_traps_07_08_23_26_27_every_frame_of_a_session(
    like: str, mtu: int, disk: Path, our_target: Start, vblade: Start, bridge: StartBridge, requests: Sniffer
) -> None:
    """W exactly on writes, counts within limits, tags of userland, never the response bit, nothing that is too short."""
    if like == "debian":
        vblade(disk)
    else:
        our_target(disk, *(["--like", like] if like else []))
    session(bridge(), disk)
    frames = [f for f in requests.frames() if f[16:19] == b"\0\1\0" or f[19] != Command.ATA]
    assert len(frames) > 100
    most = (mtu - 36) // 512
    for frame in frames:
        header = parse_header(frame)
        assert not frame[14] & 0x0F
        assert header.tag >> 31
        assert header.tag != 0xFFFFFFFF
        assert len(frame) >= 60
        assert len(frame) <= mtu + 14
        if header.command == Command.ATA:
            assert (header.major, header.minor) == (1, 0)  # no wildcards
            ata = parse_ata(frame)
            assert bool(ata.flags & AtaFlag.WRITE) == (ata.command_status in (*WRITES, 0x3D, 0x06))
            assert bool(ata.flags & AtaFlag.EXTENDED) == (ata.command_status in (0x24, 0x34, 0x3D, 0x06, 0xEA))
            if ata.command_status in (*READS, *WRITES):
                assert 1 <= ata.count <= most
    tags = [parse_header(frame).tag for frame in frames]
    assert len(set(tags)) == len(tags)


def test_trap_15_two_bridges_share_one_vblade(disk: Path, vblade: Start, bridge: StartBridge) -> None:
    """Sixteen buffers for both of them, and each would fill them alone."""
    vblade(disk)
    with connected(bridge(shelf=1, slot=0)) as a, connected(bridge(shelf=1, slot=0)) as b:
        data = random.Random(9).randbytes(SIZE)
        waiting = {}
        for at in range(0, SIZE, 65536):
            handle = a if at < SIZE // 2 else b
            waiting[handle, handle.aio_pwrite(data[at : at + 65536], at)] = at
        while waiting:
            waiting = {key: at for key, at in waiting.items() if not key[0].aio_command_completed(key[1])}
            a.poll(10)
            b.poll(10)
        assert b.pread(SIZE // 2, 0) + a.pread(SIZE // 2, SIZE // 2) == data
    assert disk.read_bytes() == data


@pytest.mark.parametrize("address", [None, Address(1, 0)])
def test_trap_24_the_kernel_keeps_from_us_what_is_not_for_us(
    initiator: Host, storage: Host, address: Address | None
) -> None:
    """Our own frames, frames to other hosts on a promiscuous interface, requests, other LUNs' answers, and what is not AoE."""
    initiator.ip("link", "set", initiator.interface, "promisc", "on")
    with initiator.entered():
        link = Link(initiator.interface, Accept.RESPONSES, address=address)
    with storage.entered():
        theirs = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        theirs.bind((storage.interface, 0))
    mac, other = bytes.fromhex(initiator.mac.replace(":", "")), b"\x02" + b"\x99" * 5
    source = bytes.fromhex(storage.mac.replace(":", ""))

    def frame(
        dst: bytes, tag: int, flags: int = RESPONSE, ethertype: bytes = b"\x88\xa2", lun: tuple[int, int] = (1, 0)
    ) -> bytes:
        built = build_header(dst, source, *lun, 0, tag, flags) + bytes(36)
        return built[:12] + ethertype + built[14:]

    link.send(frame(mac, 1))  # our own, and even to ourselves
    link.send(frame(b"\xff" * 6, 2))
    for unwanted in (
        frame(other, 3),
        frame(mac, 4, flags=0),
        frame(b"\xff" * 6, 5, flags=0),
        frame(mac, 6, ethertype=b"\x08\x00"),
        frame(mac, 7)[:12] + b"\x81\x00\x00\x05" + frame(mac, 7)[12:],
    ):
        theirs.send(unwanted)
    theirs.send(frame(mac, 8))
    theirs.send(frame(mac, 10, lun=(1, 1)))
    theirs.send(frame(mac, 11, lun=(257, 0)))
    theirs.send(frame(b"\xff" * 6, 9))
    got: list[int] = []
    while 9 not in got:
        got += [parse_header(f).tag for f in link.receive()]
        link.release()
    assert got == ([8, 9] if address else [8, 10, 11, 9])
    theirs.close()
    link.close()
    with initiator.entered(), pytest.raises(LinkError, match="interface lo is the loopback"):
        Link("lo", Accept.RESPONSES)


@pytest.mark.skipif(not shutil.which("tcpdump"), reason="tcpdump is not installed")
def test_trap_25_tcpdump_reads_commands_2_and_3_where_wireshark_does_not(tmp_path: Path) -> None:
    """An independent reader of the bytes: what we send is what we meant."""
    mac = bytes.fromhex("0a0000000042")
    edit = MaskList(MaskCommand.EDIT, ((MaskDirectiveCommand.ADD, mac), (MaskDirectiveCommand.DELETE, mac)))
    frames = [
        build_request(b"\2" * 6, b"\4" * 6, 7, 3, 0x80000001, arg)
        for arg in (edit, Reserve(ReserveCommand.FORCE_SET, (mac,)), Config(string=b"hello"))
    ]
    frames[1] = frames[1][:32]  # tcpdump takes padding for a part of this one
    capture = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for frame in frames:
        capture += struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame
    path = tmp_path / "frames.pcap"
    path.write_bytes(capture)
    os.chmod(tmp_path, 0o755)
    said = run("tcpdump", "-Z", "root", "-n", "-vv", "-e", "-r", path)
    for words in (
        *("MAC Mask List", "Edit Mac Mask List", "Dir Count: 2", "Add MAC Address", "Delete MAC Address"),
        *("0a:00:00:00:00:42", "Reserve/Release", "Force", "Major: 0x0007", "Minor: 0x03", "0x80000001"),
        *("Query Config Information", "hello"),
    ):
        assert words.lower() in said.lower(), f"{words!r} is not in\n{said}"


def test_trap_28_reads_past_the_end_of_a_target_that_would_answer_them(
    disk: Path, our_target: Start, bridge: StartBridge, requests: Sniffer
) -> None:
    our_target(disk, "--like", "qaoed")
    with connected(bridge()) as h:
        requests.frames()
        for offset, length in ((SIZE, 512), (SIZE - 512, 1024), (1 << 60, 512)):
            with pytest.raises(nbd.Error):
                h.pread(length, offset)
            with pytest.raises(nbd.Error):
                h.pwrite(b"x" * length, offset)
        assert [
            f for f in requests.frames() if f[27] in WRITES or int.from_bytes(f[28:34], "little") >= SIZE // 512
        ] == []
    assert disk.stat().st_size == SIZE


def test_trap_20_a_lan_of_more_than_two(folder: Path, start: Start, tmp_path: Path) -> None:
    """Frames that a switch floods to everyone are carried out by any vblade of that address: replies by MAC tell them apart."""
    lan = Lan(1500, hosts=3)
    try:
        ours, theirs, host = lan.hosts
        for n, (storage, size) in enumerate(((theirs, SIZE), (host, SIZE // 2))):
            write_random(folder / f"disk{n}", size, seed=n)
            command = storage.command("vblade", 1, 0, storage.interface, folder / f"disk{n}")
            start(Process(f"vblade {n}", command, tmp_path / f"vblade{n}.log")).wait_for("sectors O_")
        words = ("nbdkit", "-f", "-U", tmp_path / "s", "python", PLUGIN, f"interface={ours.interface}", "target=e1.0")
        refused = Process("nbdkit", ours.command(*words), tmp_path / "nbdkit.log")
        assert refused.popen.wait(30) == 1
        refused.stop()
        assert "two different disks answer for e1.0" in refused.output()
        chosen = Bridge(ours.command(*words, f"mac={theirs.mac}"), tmp_path / "s", tmp_path / "nbdkit2.log")
        start(chosen)
        chosen.wait_for_socket(tmp_path / "s")
        with connected(chosen) as h:
            assert h.get_size() == SIZE
            h.pwrite(b"A" * 65536, 0)
            assert h.pread(65536, 0) == b"A" * 65536
        assert (folder / "disk0").read_bytes()[:65536] == b"A" * 65536
        chosen.stop()
    finally:
        lan.close()
