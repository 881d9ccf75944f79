# SPDX-License-Identifier: BSD-3-Clause
"""Two hosts, one disk, real targets: after the new owner's first write no frame of the old one's changes anything."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd
import pytest

from aoe_nbd.core.fence import Record
from aoe_nbd.host.control import Client
from lab import PYTHON, ROOT, Bridge, Host, Lan, Process, Sniffer, write_random
from load import SIZE, Load, until
from target_helpers import Client as Raw

Start = Callable[..., Process]
GUEST = "7d3b2f6e-0000-4000-8000-1234567890ab"
FREE = b"aoe-nbd epoch=1 owner=nobody tag=- state=free"  # spares a first attach the wait for an older owner


@pytest.fixture
def mtu() -> int:
    return 9000


@pytest.fixture
def lan(mtu: int) -> Iterator[Lan]:
    lan = Lan(mtu, hosts=3)
    yield lan
    lan.close()


@pytest.fixture
def storage(lan: Lan) -> Host:
    return lan.hosts[2]


@pytest.fixture
def disk(folder: Path) -> Path:
    write_random(folder / "disk", SIZE, seed=1)
    return folder / "disk"


class Owner:
    """A host with a bridge on it."""

    def __init__(self, host: Host, start: Start, folder: Path, fence: str, name: str, tag: str = GUEST) -> None:
        self.host, self.control, self.name = host, folder / f"{name}.control", name
        socket = folder / f"{name}.sock"
        words = [f"interface={host.interface}", "target=e1.0", f"fence={fence}", f"owner={name}", f"owner-tag={tag}"]
        command = ("nbdkit", "-f", "-U", socket, "python", ROOT / "aoe_nbd" / "plugin.py", *words)
        bridge = Bridge(
            host.command(*command, f"control={self.control}", "on-end=hang-up"), socket, folder / f"{name}.log"
        )
        start(bridge)
        self.bridge = bridge
        bridge.wait_for_socket(socket)
        self.mac = bytes.fromhex(host.mac.replace(":", ""))

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        return Client(self.control).ask(verb, **args)

    @property
    def fence(self) -> dict[str, Any]:
        (lun,) = self.ask("status")["luns"]
        return dict(lun["fence"])

    def connect(self) -> nbd.NBD:
        client = nbd.NBD()
        client.connect_unix(str(self.bridge.socket))
        return client


@pytest.fixture
def owner(lan: Lan, start: Start, folder: Path) -> Callable[..., Owner]:
    """owner(0): a bridge on that host, once the disk is its own."""
    return lambda number, fence="auto", **more: Owner(lan.hosts[number], start, folder, fence, "ab"[number], **more)


@pytest.fixture
def raw(lan: Lan, storage: Host) -> Iterator[Raw]:
    """Frames as the first host would send them."""
    client = Raw(lan.hosts[0], storage)
    yield client
    client.close()


def record(raw: Raw) -> Record | None:
    reply = raw.ask(raw.config())
    return Record.parse(reply[32 : 32 + int.from_bytes(reply[30:32], "big")])


class Writer:
    """A guest that writes all the time, one request after the other, until one fails. `error` is its errno."""

    def __init__(self, owner: Owner) -> None:
        self._client = owner.connect()
        self.done, self.error, self._stop = 0, 0, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            try:
                self._client.pwrite(b"A" * 8192, self.done % 64 * 8192)
            except nbd.Error as error:
                self.error = error.errnum
                return
            self.done += 1

    def stop(self) -> None:
        self._stop = True
        self._thread.join(30)
        assert not self._thread.is_alive()


def writes(frames: list[bytes]) -> list[bytes]:
    """The senders of the write requests among them, in order."""
    return [f[6:12] for f in frames if not f[14] & 8 and f[19] == 0 and f[27] in (0x30, 0x34)]


def assert_ended(frames: list[bytes], old: Owner, new: Owner) -> None:
    senders = writes(frames)
    assert old.mac in senders and new.mac in senders
    assert old.mac not in senders[senders.index(new.mac) :]


@pytest.mark.parametrize("fence", ["warn", "enforce"])
def test_a_handover_under_load(
    fence: str, disk: Path, target: Start, raw: Raw, owner: Callable[..., Owner], sniffer: Sniffer
) -> None:
    process = target(disk)
    raw.ask(raw.config(4, FREE))
    a = owner(0, fence)
    guest = Writer(a)
    until(lambda: guest.done > 20, "writes of the old owner")
    b = owner(1, fence)
    assert a.fence["state"] == "yielded"
    assert not guest.error
    waiting = guest.done
    client = b.connect()
    client.pwrite(b"B" * 8192, 0)
    until(lambda: bool(guest.error), "the old owner's request has failed")
    assert (guest.error, guest.done) == (errno.EPERM, waiting)
    assert record(raw) == Record.parse(f"aoe-nbd epoch=4 owner=b tag={GUEST} state=held".encode())
    assert_ended(sniffer.frames(), a, b)
    if fence == "enforce":
        late = raw.ask(raw.write(0, b"A" * 512))  # as a copy that was on its way for very long
        assert (late[14] & 4, late[15]) == (4, 6)
    assert client.pread(8192, 0) == b"B" * 8192
    assert process.popen.poll() is None


def test_a_handover_while_the_target_is_killed_and_started_anew(
    disk: Path, vblade: Start, raw: Raw, owner: Callable[..., Owner], sniffer: Sniffer
) -> None:
    """vblade forgets record and reservation: once before the handover, and once after it."""
    process = vblade(disk)
    raw.ask(raw.config(4, FREE))
    a = owner(0)
    guest = Writer(a)
    until(lambda: guest.done > 20, "writes of the old owner")
    process.stop(signal.SIGKILL)
    process = vblade(disk)
    before = guest.done
    until(lambda: guest.done > before + 20, "writes after the target's first end")
    b = owner(1)
    client = b.connect()
    client.pwrite(b"B" * 8192, 0)
    process.stop(signal.SIGKILL)
    vblade(disk)
    client.pwrite(b"B" * 8192, 8192)
    until(lambda: guest.error == errno.EPERM, "the old owner's request has failed")
    assert_ended(sniffer.frames(), a, b)
    assert disk.read_bytes()[:16384] == b"B" * 16384
    found = record(raw)
    assert found is not None and found.owner == "b"


def test_a_failed_migration(disk: Path, target: Start, raw: Raw, owner: Callable[..., Owner], folder: Path) -> None:
    """The new owner gives the disk back: the old one's guest has waited, and that is all."""
    target(disk)
    raw.ask(raw.config(4, FREE))
    a = owner(0)
    with Load(a.bridge, folder, rate="8m") as load:
        until(lambda: a.ask("status")["luns"][0]["served"]["write"]["operations"] > 100, "writes")
        b = owner(1)
        assert (a.fence["state"], b.fence["state"]) == ("yielded", "moving")
        b.connect().pread(4096, 0)
        b.ask("leave")
        b.bridge.stop()
        assert load.running()
        load.finish()
    assert a.fence["state"] == "held"


def takeover(host: Host, name: str, folder: Path) -> str:
    command = ("env", f"PYTHONPATH={ROOT}", f"AOE_NBD_RUN={folder}", f"AOE_NBD_ETC={folder}", PYTHON, "-m", "aoe_nbd")
    return host.run(*command, "takeover", "e1.0", "-i", host.interface, "--owner", name)


def test_a_dead_host(
    disk: Path, target: Start, raw: Raw, owner: Callable[..., Owner], lan: Lan, folder: Path, sniffer: Sniffer
) -> None:
    """It is not quite dead: cut off, with a write under way, and later it is back."""
    process = target(disk)
    raw.ask(raw.config(4, FREE))
    a = owner(0)
    guest = Writer(a)
    until(lambda: guest.done > 20, "writes of the owner")
    lan.hosts[0].down()
    with pytest.raises(AssertionError, match=r"e1\.0 is held by a .*aoe-nbd takeover e1\.0"):
        owner(1, tag="another")
    said = takeover(lan.hosts[1], "b", folder)
    assert "e1.0 is this host's (b, epoch 3), which was held by a (epoch 2, held, tag" in said
    b = owner(1, tag="another")
    client = b.connect()
    client.pwrite(b"B" * 65536, 0)
    lan.hosts[0].up()
    until(lambda: guest.error == errno.EPERM, "the old owner's request has failed")
    assert a.fence["state"] == "lost"
    assert_ended(sniffer.frames(), a, b)
    assert client.pread(65536, 0) == b"B" * 65536
    assert process.popen.poll() is None


def test_a_bridge_that_ends_frees_the_disk(
    disk: Path, vblade: Start, raw: Raw, bridge: Callable[..., Bridge], lan: Lan
) -> None:
    """One that somebody has started by hand, and ends: it is not to be started anew by anybody."""
    vblade(disk)
    raw.ask(raw.config(4, FREE))
    process = bridge(host=lan.hosts[0], target="e1.0", fence="enforce", owner="a")
    assert record(raw) == Record.parse(b"aoe-nbd epoch=2 owner=a tag=- state=held")
    assert process.stop() == 0
    assert record(raw) == Record.parse(b"aoe-nbd epoch=3 owner=a tag=- state=free")


def test_the_next_bridge_does_not_take_the_disk_back(
    disk: Path, our_target: Start, raw: Raw, owner: Callable[..., Owner]
) -> None:
    """The old owner's bridge is killed, and started anew by its supervisor, after the disk was taken over."""
    our_target(disk)
    raw.ask(raw.config(4, FREE))
    a = owner(0)
    a.bridge.stop(signal.SIGKILL)
    b = owner(1)
    os.unlink(a.bridge.socket)
    again = owner(0)
    until(lambda: again.fence["state"] == "yielded", "the next bridge knows")
    b.connect().pwrite(b"B" * 512, 0)
    with pytest.raises(nbd.Error) as caught:
        again.connect().pwrite(b"A" * 512, 0)
    assert caught.value.errnum == errno.EPERM
    time.sleep(0.1)
    assert again.fence["state"] == "lost"
