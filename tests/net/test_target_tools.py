# SPDX-License-Identifier: BSD-3-Clause
"""The target on a real link: unmodified aoetools, links that change, and what must hold frame by frame."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoe_nbd.target import Backend, Errors, Faults, Lun, Target
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.identify import Identify
from lab import PYTHON, ROOT, Host, Process, run
from target_helpers import EVERYONE, Client

SECTORS = 2048
Begin = Callable[..., Process]


@pytest.fixture
def mtu() -> int:
    return 1500


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"".join(struct.pack("<Q", lba) * 64 for lba in range(SECTORS)))
    return path


def sector(lba: int) -> bytes:
    return struct.pack("<Q", lba) * 64


@pytest.fixture
def client(initiator: Host, storage: Host) -> Iterator[Client]:
    client = Client(initiator, storage)
    yield client
    client.close()


@pytest.fixture
def jumbo(initiator: Host, storage: Host) -> None:
    for host in (initiator, storage):
        host.set_mtu(9000)


# -- aoetools --------------------------------------------------------------------------------------------------------


def test_aoeping(our_target: Begin, initiator: Host, storage: Host, disk: Path) -> None:
    our_target(disk)
    said = initiator.run("aoeping", "-v", 1, 0, initiator.interface, timeout=60)
    assert f"found e1.0 with mac {storage.mac.replace(':', '')}" in said
    said = initiator.run("aoeping", "-i", 1, 0, initiator.interface, timeout=60)
    assert "6f 61 2d 65 62 6e" in said  # the model, its bytes swapped: aoe-nb


def test_aoecfg(our_target: Begin, initiator: Host, disk: Path) -> None:
    our_target(disk)

    def aoecfg(command: str = "read", string: str = "", *where: object) -> str:
        options = ("-t", "1", "-c", command, "-s", string)
        return initiator.run("aoecfg", *options, *(where or (1, 0)), initiator.interface, timeout=60)

    assert aoecfg() == "\n"
    assert aoecfg("set", "hello") == "hello\n"
    assert aoecfg("set", "other") == "*badcfg*\n"
    assert aoecfg() == "hello\n"
    assert aoecfg("fset", "other") == "other\n"
    assert aoecfg("prefix", "oth") == "other\n"
    assert aoecfg("test", "oth") == ""
    assert aoecfg("test", "other") == "other\n"
    assert aoecfg("read", "", 65535, 255) == "1.0\tother\n"


def test_aoe_sancheck(our_target: Begin, initiator: Host, disk: Path, jumbo: None) -> None:
    our_target(disk)
    said = initiator.run("aoe-sancheck", initiator.interface, timeout=120)
    assert re.search(r"e1\.0", said), said
    assert "8704" in said, said  # 17 sectors come through


# -- the frames ------------------------------------------------------------------------------------------------------


def test_no_reply_is_shorter_than_ethernet_allows(our_target: Begin, client: Client, disk: Path) -> None:
    our_target(disk)
    for request in (client.config(), client.frame(2, bytes(4)), client.frame(3, bytes(2)), client.read(SECTORS)):
        assert len(client.ask(request)) == 60
    assert len(client.ask(client.read(5, 2))) == 36 + 1024


def test_wildcards_are_answered_by_every_export(our_target: Begin, client: Client, disk: Path) -> None:
    our_target(disk, "--export", f"e1.1={disk},ro", "--export", f"e2.0={disk}", "--config-string", "all")

    def answers(shelf: int, slot: int) -> set[tuple[int, int]]:
        client.drain()
        client.send(client.config(shelf=shelf, slot=slot))
        last = client.config()
        client.send(last)
        found = []
        while (reply := client.receive()) is not None and reply[20:24] != last[20:24]:
            found.append(reply)
        return {(int.from_bytes(r[16:18], "big"), r[18]) for r in found}

    assert answers(shelf=0xFFFF, slot=0xFF) == {(1, 0), (1, 1), (2, 0)}
    assert answers(shelf=1, slot=0xFF) == {(1, 0), (1, 1)}
    assert answers(shelf=0xFFFF, slot=0) == {(1, 0), (2, 0)}
    assert answers(shelf=3, slot=0xFF) == set()


def test_exports_are_apart(our_target: Begin, client: Client, disk: Path, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.write_bytes(bytes(1024))
    our_target(disk, "--export", f"e1.1={second}")
    client.ask(client.write(1, b"n" * 512))
    client.slot = 1
    assert client.ask(client.read(1))[36:] == bytes(512)
    client.ask(client.config(4, b"mine"))
    client.slot = 0
    assert client.ask(client.config())[30:32] == b"\0\0"
    assert disk.read_bytes()[512:1024] == b"n" * 512


def test_requests_to_other_targets_take_none_of_our_room(our_target: Begin, client: Client, disk: Path) -> None:
    """More than the receive ring holds, while nobody empties it: one of ours still finds its place."""
    target = our_target(disk)
    client.ask(client.read(5))
    os.kill(_python_of(target), signal.SIGSTOP)
    mine = client.read(6)
    for shelf, slot in ((1, 1), (257, 0), (2, 0)):
        for _ in range(400):
            client.send(client.frame(0, mine[24:], shelf=shelf, slot=slot))
    asked = [mine, *(client.config(shelf=shelf, slot=slot) for shelf, slot in ((0xFFFF, 0xFF), (1, 0xFF), (0xFFFF, 0)))]
    for frame in asked:
        client.send(frame)
    os.kill(_python_of(target), signal.SIGCONT)
    for frame in asked:
        reply = client.receive()
        assert reply is not None
        assert reply[20:24] == frame[20:24]


def test_what_is_for_others_is_not_carried_out(our_target: Begin, client: Client, disk: Path) -> None:
    our_target(disk)
    for frame in (
        b"\x02\0\0\0\0\x99" + client.write(5, b"x" * 512)[6:],  # another host's MAC
        b"\x03\0\0\0\0\x99" + client.write(5, b"x" * 512)[6:],  # a multicast group
        client.frame(0, client.write(5, b"x" * 512)[24:], verfl=0x18),  # a response
        client.frame(0, client.write(5, b"x" * 512)[24:], slot=1),
    ):
        client.silence(frame)
    assert disk.read_bytes()[5 * 512 : 6 * 512] == sector(5)


def test_as_many_requests_as_advertised_are_never_lost(
    our_target: Begin, client: Client, disk: Path, jumbo: None
) -> None:
    """Sent while the target stands still, so that all of them have to wait for it."""
    count = 1000
    target = our_target(disk, "--buffers", count)
    assert client.ask(client.config())[24:26] == count.to_bytes(2, "big")
    python = _python_of(target)
    os.kill(python, signal.SIGSTOP)
    frames = [client.write(17 * (i % 100), bytes([i % 256]) * 512 * 17) for i in range(count)]
    for frame in frames:
        client.send(frame)
    os.kill(python, signal.SIGCONT)
    left = {frame[20:24] for frame in frames}
    while left and (reply := client.receive()) is not None:
        left.discard(reply[20:24])
    assert not left, f"{len(left)} of {count} lost"


def test_bursts_are_answered_as_single_requests_are(
    our_target: Begin, client: Client, disk: Path, tmp_path: Path, jumbo: None
) -> None:
    """Bursts of like requests with odd ones among them, as often as the receive ring turns over twice."""
    content = disk.read_bytes()
    (tmp_path / "twin").write_bytes(content)
    twin = Lun(Address(1, 0), Backend(str(tmp_path / "twin")), buffers=64, serial="twin")
    python = _python_of(our_target(disk, "--serial", "twin"))
    client.announcement()
    rng = random.Random(5)
    for _ in range(25):
        frames: list[bytes] = []
        while len(frames) < 50:
            lba, n = rng.randrange(SECTORS - 200), rng.choice((1, 2, 8, 16, 17))
            kind, length = rng.choice(("read", "write", "odd")), rng.choice((1, 2, 8))
            for at in range(lba, lba + length * n, n):
                if kind == "read":
                    frames.append(client.read(at, n))
                elif kind == "write":
                    frames.append(client.write(at, rng.randbytes(n * 512)))
                else:
                    frames.append(rng.choice((client.config(), client.read(SECTORS, n), client.ata(0xEC))))
        os.kill(python, signal.SIGSTOP)
        for frame in frames:
            client.send(frame)
        os.kill(python, signal.SIGCONT)
        wanted = [bytes(reply) for frame in frames for reply in twin.handle(frame, client.target, 9000)]
        found: list[bytes] = []
        while len(found) < len(wanted) and (reply := client.receive()) is not None:
            found.append(reply)
        assert [reply[20:24] for reply in found] == [reply[20:24] for reply in wanted]
        assert found == wanted
    assert disk.read_bytes() == (tmp_path / "twin").read_bytes() != content


def _python_of(target: Process) -> int:
    """The target's own process: `ip netns exec` became it."""
    assert b"aoe_nbd.target" in Path(f"/proc/{target.pid}/cmdline").read_bytes()
    return target.pid


# -- announcements and links that change -----------------------------------------------------------------------------


def test_announcement_at_start(our_target: Begin, client: Client, disk: Path) -> None:
    our_target(disk, "--config-string", "here")
    frame = client.announcement()
    assert frame[:6] == EVERYONE
    assert frame[6:12] == client.target
    assert frame[14:].rstrip(b"\0") == bytes.fromhex("180000010001 00000000 00400001 02100004") + b"here"


def test_announcement_to_the_members_of_a_mask(our_target: Begin, client: Client, initiator: Host, disk: Path) -> None:
    our_target(disk, "--mask", initiator.mac, "--mask", "02:00:00:00:00:77")
    assert client.announcement()[:6] == client.mac


def test_link_down_and_up(our_target: Begin, client: Client, initiator: Host, storage: Host, disk: Path) -> None:
    our_target(disk)
    client.announcement()
    for _ in range(3):
        storage.down()
        initiator.down()
        initiator.up()
        client.error()
        storage.up()
        assert client.announcement()[:6] == EVERYONE
        assert client.ask(client.read(5))[36:] == sector(5)


def test_mtu_changes(our_target: Begin, client: Client, initiator: Host, storage: Host, disk: Path) -> None:
    our_target(disk)
    client.announcement(2)
    for mtu, sectors in [(9000, 17), (1060, 2), (9000, 17), (4200, 8), (1500, 2)]:
        initiator.set_mtu(9000)
        storage.set_mtu(mtu)
        client.announcement(sectors)
        assert client.ask(client.config())[28] == sectors
        assert client.ask(client.read(5, sectors))[36:] == b"".join(map(sector, range(5, 5 + sectors)))
        assert client.ask(client.read(5, sectors + 1))[14:16] == b"\x1c\x02"


def test_interface_taken_away_and_made_anew(
    our_target: Begin, client: Client, initiator: Host, storage: Host, disk: Path
) -> None:
    our_target(disk)
    client.announcement()
    storage.ip("link", "del", storage.interface)
    initiator.ip(
        "link", "add", initiator.interface, "type", "veth", "peer", storage.interface, "netns", storage.namespace
    )
    initiator.up()
    again = Client(initiator, storage)
    storage.up()
    try:
        again.announcement()
        assert again.ask(again.read(5))[36:] == sector(5)
    finally:
        again.close()


def test_growth_is_announced(our_target: Begin, client: Client, disk: Path) -> None:
    our_target(disk)
    client.announcement()
    os.truncate(disk, 2 * SECTORS * 512)
    client.announcement()
    assert Identify.parse(client.ask(client.ata(0xEC))[36:]).sectors == 2 * SECTORS
    assert client.ask(client.read(2 * SECTORS - 1))[27] == 0x40


def test_growth_is_seen_at_once_by_identify(our_target: Begin, client: Client, disk: Path) -> None:
    our_target(disk)
    os.truncate(disk, 2 * SECTORS * 512)
    assert Identify.parse(client.ask(client.ata(0xEC))[36:]).sectors == 2 * SECTORS


def test_two_interfaces_serve_one_disk(our_target: Begin, initiator: Host, storage: Host, disk: Path) -> None:
    initiator.ip("link", "add", "second", "type", "veth", "peer", "name", "second", "netns", storage.namespace)
    a, b = Host(initiator.namespace, "second"), Host(storage.namespace, "second")
    a.up()
    b.up()
    our_target(disk, "--interface", "second", "--fault", "delay=0.001")
    first, second = Client(initiator, storage), Client(a, b)
    try:
        first.ask(first.write(5, b"n" * 512))
        reply = second.ask(second.read(5))
        assert reply[6:12] == second.target
        assert reply[36:] == b"n" * 512
        # one reservation for both
        first.ask(first.frame(3, b"\1\1" + first.mac))
        assert second.ask(second.read(5))[14:16] == b"\x1c\x06"
    finally:
        first.close()
        second.close()


# -- the process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(our_target: Begin, disk: Path, sign: signal.Signals) -> None:
    target = our_target(disk)
    assert target.stop(sign) == 0
    assert "Traceback" not in target.output()


def test_a_terminal_that_closes_is_nothing(our_target: Begin, client: Client, disk: Path) -> None:
    target = our_target(disk)
    os.kill(_python_of(target), signal.SIGHUP)
    assert client.ask(client.read(5))[36:] == sector(5)


def test_state_outlives_the_process(our_target: Begin, client: Client, disk: Path, tmp_path: Path) -> None:
    target = our_target(disk, "--state-dir", tmp_path / "state")
    client.ask(client.config(4, b"kept"))
    client.ask(client.frame(3, b"\1\1" + client.mac))
    target.stop(signal.SIGKILL)
    our_target(disk, "--state-dir", tmp_path / "state")
    assert client.ask(client.config())[32:36] == b"kept"
    assert client.ask(client.frame(3, bytes(2)))[25:32] == b"\1" + client.mac


def refusal(host: Host, *words: object, before: tuple[str, ...] = ()) -> str:
    command = host.command("env", f"PYTHONPATH={ROOT}", *before, PYTHON, "-m", "aoe_nbd.target", *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_interfaces_that_cannot_serve(storage: Host, disk: Path) -> None:
    storage.down()
    assert f"{storage.interface} is down" in refusal(storage, "--interface", storage.interface, disk)
    storage.up()
    storage.set_mtu(500)
    assert "too small for one sector" in refusal(storage, "--interface", storage.interface, disk)


def test_no_permission_for_raw_sockets(storage: Host) -> None:
    where = ("--read-only", "--interface", storage.interface, PYTHON)  # a file that anyone may read
    drop = ("setpriv", "--bounding-set=-net_raw")  # still root, who may read the checkout wherever it lies
    assert "no permission for a raw socket" in refusal(storage, *where, before=drop)


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[Path]:
    file = tmp_path / "under-the-loop"
    file.write_bytes(b"".join(struct.pack("<Q", lba) * 64 for lba in range(SECTORS)))
    device = run("losetup", "--find", "--show", file).strip()
    yield Path(device)
    run("losetup", "--detach", device)


def test_block_device(our_target: Begin, client: Client, block_device: Path) -> None:
    our_target(block_device)
    found = Identify.parse(client.ask(client.ata(0xEC))[36:])
    assert (found.sectors, found.trim, found.physical_size) == (SECTORS, True, 512)
    assert client.ask(client.write(9, b"n" * 512))[27] == 0x40
    assert client.ask(client.ata(0xEA, n=0))[27] == 0x40
    assert client.ask(client.read(9, 2))[36:] == b"n" * 512 + sector(10)
    hole = (16 | 100 << 48).to_bytes(8, "little").ljust(512, b"\0")
    assert client.ask(client.ata(0x06, data=hole, flags=0x41, feature=1))[27] == 0x40
    assert client.ask(client.read(15, 2))[36:] == sector(15) + bytes(512)
    assert client.ask(client.read(115, 2))[36:] == bytes(512) + sector(116)
    assert client.ask(client.read(SECTORS))[25] == 0x10


# -- faults and personalities on the wire ----------------------------------------------------------------------------


def in_thread(storage: Host, disk: Path, faults: Faults) -> Target:
    target = Target([Lun(Address(1, 0), Backend(str(disk)))], [storage.interface], faults)
    with storage.entered():
        return target.start()


def test_faults_may_change_while_it_runs(client: Client, storage: Host, disk: Path) -> None:
    faults = Faults()
    target = in_thread(storage, disk, faults)
    try:
        assert client.ask(client.read(5))[36:] == sector(5)
        faults.inbound.drop = lambda frame: frame[27] == 0x24
        client.silence(client.read(5))
        faults.inbound.drop = None
        faults.outbound.mtu = 600
        client.silence(client.read(5, 2))
        assert client.ask(client.read(5))[36:] == sector(5)
        faults.outbound.mtu = 0
        faults.errors.append(Errors(aoe=3, op="read", every=1, times=1))
        assert client.ask(client.read(5))[14:16] == b"\x1c\x03"
        assert client.ask(client.read(5))[36:] == sector(5)
        faults.outbound.dup = 1.0
        request = client.read(5)
        first = client.ask(request)
        assert client.receive() == first
        faults.outbound.dup = 0.0
        faults.inbound.delay = 0.05
        assert client.ask(client.read(5))[36:] == sector(5)
    finally:
        target.join()
    assert faults.inbound.counters["drop"] == 1
    assert faults.outbound.counters["mtu"] == 1


def test_ggaoed_lets_the_older_write_win(our_target: Begin, client: Client, disk: Path) -> None:
    our_target(disk, "--like", "ggaoed")
    wins = 0
    for _ in range(20):
        old, new = client.write(31, b"A" * 512), client.write(30, b"B" * 1024)
        client.send(old)
        client.send(new)
        got = [client.receive(), client.receive()]
        assert all(got)
        wins += client.ask(client.read(31))[36:] == b"A" * 512
        client.drain()
    assert wins


@pytest.mark.parametrize("how", ["down", "mtu"])
def test_vblade_dies_of_its_link(
    our_target: Begin, client: Client, storage: Host, initiator: Host, disk: Path, how: str
) -> None:
    for host in (initiator, storage):
        host.set_mtu(9000)
    target = our_target(disk, "--like", "vblade")
    if how == "down":
        storage.down()
    else:
        storage.set_mtu(1500)
        client.send(client.read(5, 17))
    assert target.popen.wait(30) == 1
    assert os.strerror(errno.ENETDOWN if how == "down" else errno.EMSGSIZE) in target.output()


def exchange(client: Client) -> list[tuple[str, bytes]]:
    """Replies to one request of every kind, without what is random or other people's data in the real vblade."""
    E28 = 0xE0000000
    one = b"W" * 512
    me = client.mac
    masks = [bytes([0, d]) + m for d, m in ((0, me), (1, me), (1, b"\2aaaa1"), (2, b"\2aaaa1"), (9, me))]
    requests = {
        "config": client.config(),
        "config by broadcast": client.config(shelf=0xFFFF, slot=0xFF),
        "config by half": client.config(shelf=1, slot=0xFF),
        "read 28": client.ata(0x20, 5 | E28, flags=0),
        "read 48": client.ata(0x24, 5, 2),
        "read with W": client.ata(0x20, 5 | E28, flags=1),
        "read of none": client.ata(0x20, 5 | E28, 0, flags=0),
        "read of too many": client.ata(0x20, 5 | E28, 3, flags=0),
        "read past the end": client.ata(0x20, SECTORS | E28, flags=0),
        "read over the end": client.ata(0x24, SECTORS - 1, 2),
        "write": client.ata(0x30, 9 | E28, 1, one, 1),
        "write without W": client.ata(0x30, 9 | E28, 1, one, 0),
        "write past the end": client.ata(0x30, SECTORS | E28, 1, one, 1),
        "write with too little": client.ata(0x30, 9 | E28, 2, one, 1),
        "read back": client.ata(0x24, 8, 2),
        "flush ext": client.ata(0xEA, n=0),
        "check power": client.ata(0xE5, n=0),
        "identify": client.ata(0xEC, flags=0),
        "identify n=2": client.ata(0xEC, n=2, flags=0),
        "identify with W": client.ata(0xEC, flags=1),
        "unknown opcode": client.ata(0x99, n=0),
        "trim": client.ata(6, n=1, data=bytes(512), flags=0x41, feature=1),
        "version 2": client.frame(0, client.ata(0x24, 5)[24:], verfl=0x23),
        "unknown command": client.frame(9, b"abcdefgh" * 9),
        "set": client.config(3, b"abc"),
        "set again": client.config(3, b"abc"),
        "set other": client.config(3, b"xyz"),
        "test": client.config(1, b"abc"),
        "prefix": client.config(2, b"ab"),
        "ccmd 5": client.config(5, b"x"),
        "force": client.config(4, b"longer string"),
        "mask read": client.frame(2, b"\0\0\0\0"),
        "mask 7": client.frame(2, b"\0\7\0\0"),
        "mask nothing": client.frame(2, b"\0\1\0\1" + masks[0]),
        "mask add": client.frame(2, b"\0\1\0\1" + masks[1]),
        "mask add more": client.frame(2, b"\0\1\0\1" + masks[2]),
        "mask delete": client.frame(2, b"\0\1\0\1" + masks[3]),
        "mask bad": client.frame(2, b"\0\1\0\2" + masks[0] + masks[4]),
        "reserve read": client.frame(3, b"\0\0"),
        "reserve": client.frame(3, b"\1\1" + me),
        "reserve for another": client.frame(3, b"\1\1" + b"\2bbbbb"),
        "reserve refused": client.frame(3, b"\1\1" + me),
        "reserved read": client.ata(0x24, 5),
        "reserved identify": client.ata(0xEC, flags=0),
        "reserved flush": client.ata(0xE7, n=0),
        "release": client.frame(3, b"\2\0"),
        "reserve 9": client.frame(3, b"\x09\0"),
    }
    return [(name, _without_tag(client.ask(request))) for name, request in requests.items()]


def _without_tag(frame: bytes) -> bytes:
    return frame[:20] + frame[24:]


def test_our_vblade_is_vblade_byte_for_byte(
    our_target: Begin, vblade: Begin, client: Client, disk: Path, tmp_path: Path
) -> None:
    content = disk.read_bytes()
    real = vblade(disk)
    expected = exchange(client)
    real.stop()
    disk.write_bytes(content)
    our_target(disk, "--like", "vblade")
    client.drain()
    assert exchange(client) == expected
