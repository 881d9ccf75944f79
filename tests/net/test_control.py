# SPDX-License-Identifier: BSD-3-Clause
"""A real bridge asked by its control socket: status, quiet under load, the end of its clients; and `check` on a bad wire."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nbd
import pytest

from aoe_nbd.cli import main
from aoe_nbd.core.constants import QUARANTINE
from aoe_nbd.host.control import Client, ControlError
from lab import PATIENCE, Bridge, Host, Process, Sniffer, write_random
from load import SIZE, Load, flows, until
from relay import Cable, Trouble

Start = Callable[..., Process]
Bridging = Callable[..., Bridge]


@pytest.fixture
def trouble(tmp_path: Path) -> Iterator[Trouble]:
    found = Trouble(tmp_path)
    yield found
    found.close()


@pytest.fixture
def cable(trouble: Trouble) -> Cable:
    return trouble.cables[0]


@pytest.fixture
def initiator(trouble: Trouble) -> Host:
    return trouble.near[0]


@pytest.fixture
def storage(trouble: Trouble) -> Host:
    return trouble.far[0]


@pytest.fixture
def disk(folder: Path) -> Path:
    write_random(folder / "disk", SIZE, seed=1)
    return folder / "disk"


@pytest.fixture
def control(tmp_path: Path) -> Path:
    return tmp_path / "control"


@pytest.fixture
def ask(control: Path) -> Callable[..., dict[str, Any]]:
    """ask("status"): what the bridge answers."""
    return Client(control).ask


def connect(bridge: Bridge) -> nbd.NBD:
    client = nbd.NBD()
    client.connect_uri(bridge.uri())
    return client


def lun(ask: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    (found,) = ask("status")["luns"]
    assert isinstance(found, dict)
    return found


def content(disk: Path) -> str:
    return hashlib.sha256(disk.read_bytes()).hexdigest()


# -- status ------------------------------------------------------------------------------------------------------------


def test_status(disk: Path, control: Path, ask: Any, target: Start, bridge: Bridging) -> None:
    process = target(disk)
    nbdkit = bridge(shelf=1, slot=0, control=control)
    client = connect(nbdkit)
    client.pwrite(bytes(65536), 0)
    client.pread(4096, 0)
    answer = ask("status")
    (found,) = answer["luns"]
    assert (answer["pid"], answer["clients"]) == (nbdkit.pid, 1)
    assert (found["state"], found["size_bytes"], found["read_only"]) == ("up", SIZE, False)
    assert found["served"]["write"] == {"operations": 1, "bytes": 65536}
    assert found["served"]["read"] == {"operations": 1, "bytes": 4096}
    truth = (
        "only if vblade was started with -s"
        if "vblade" in process.name
        else "an acknowledged flush is on stable storage"
    )
    assert truth in found["durability"]
    assert found["paths"][0]["classes"]["write"]["srtt_s"] > 0
    client.shutdown()
    until(lambda: ask("status")["clients"] == 0, "no client left")


def test_status_of_a_target_that_died(disk: Path, control: Path, ask: Any, vblade: Start, bridge: Bridging) -> None:
    process = vblade(disk)
    nbdkit = bridge(shelf=1, slot=0, control=control)
    client = connect(nbdkit)
    process.stop(signal.SIGKILL)
    client.aio_pread(nbd.Buffer(4096), 0)
    until(lambda: lun(ask)["state"] == "dead", "dead")
    found = lun(ask)
    assert found["waiting"] == 1
    assert found["silent_s"] > 0
    assert any(event["what"] == "dead" for event in found["history"])
    assert main(["status", "--control", str(control)]) == 3
    vblade(disk)
    until(lambda: lun(ask)["state"] == "up", "up again")
    assert any(event["what"] == "alive" for event in lun(ask)["history"])


def test_a_second_bridge_does_not_take_the_socket(
    disk: Path, control: Path, ask: Any, vblade: Start, bridge: Bridging
) -> None:
    vblade(disk)
    bridge(shelf=1, slot=0, control=control)
    with pytest.raises(AssertionError, match=r"another process answers at .*control: end it first"):
        bridge(shelf=1, slot=0, control=control)
    assert lun(ask)["state"] == "up"


# -- quiesce -----------------------------------------------------------------------------------------------------------


def _haunted(load: Load, cable: Cable, ask: Callable[..., dict[str, Any]]) -> bool:
    """Once there are copies of finished writes that may still land; False if fio has ended before."""
    while load.running():
        cable.clear()  # whose round trips then are short again
        time.sleep(0.2)
        cable.rule("to", "write", times=40, delay=0.6)
        again = time.monotonic() + 1.0
        while time.monotonic() < again:
            if lun(ask)["ghosts"]:
                return True
            time.sleep(0.01)
    return False


def test_no_write_lands_once_it_is_quiet(
    disk: Path, folder: Path, cable: Cable, control: Path, ask: Any, sniffer: Sniffer, target: Start, bridge: Bridging
) -> None:
    """fio writes through a cable that delays some copies for half a second, long after others of them were answered."""
    target(disk)
    with Load(bridge(shelf=1, slot=0, control=control), folder, rate="1m") as load:
        rounds = 0
        while rounds < 2 and _haunted(load, cable, ask):
            rounds += 1
            ask("quiesce", timeout=30)
            before = content(disk)
            sniffer.transfers()
            held = lun(ask)
            assert (held["quiesced"], held["quiet"], held["ghosts"]) == (True, True, 0)
            time.sleep(QUARANTINE + 0.3)
            assert [each for each in sniffer.transfers() if each.write] == []
            assert content(disk) == before
            assert lun(ask)["quiet"]
            ask("resume")
        assert rounds
        cable.clear()
        load.finish()


def test_without_quiesce_copies_do_land(
    disk: Path, folder: Path, cable: Cable, control: Path, ask: Any, sniffer: Sniffer, vblade: Start, bridge: Bridging
) -> None:
    """The check of the check: by the same cable, writes come to the target after those who asked for them have their answers."""
    vblade(disk)
    client = connect(bridge(shelf=1, slot=0, control=control))
    time.sleep(QUARANTINE)
    client.pwrite(bytes(65536), 0)  # so that the round trip is known
    cable.rule("to", "write", times=1, delay=0.6)
    client.pwrite(bytes(4096), 0)
    assert lun(ask)["ghosts"] > 0
    sniffer.transfers()
    until(lambda: any(each.write for each in sniffer.transfers()), "a late copy of the write")


def test_no_quiet_from_a_dead_target(
    disk: Path, folder: Path, cable: Cable, control: Path, ask: Any, our_target: Start, bridge: Bridging
) -> None:
    """It says so in time, and the requests go on when the target is back."""
    our_target(disk)
    with Load(bridge(shelf=1, slot=0, control=control), folder) as load:
        flows(cable)
        cable.cut()
        until(lambda: lun(ask)["state"] != "up", "a path that is out")
        with pytest.raises(ControlError, match=r"e1.0 is not quiet after 1 s: .*; resumed"):
            ask("quiesce", timeout=1)
        assert not lun(ask)["quiesced"]
        cable.mend()
        load.finish()


def test_quiet_outlives_the_one_who_asked(disk: Path, control: Path, ask: Any, vblade: Start, bridge: Bridging) -> None:
    vblade(disk)
    client = connect(bridge(shelf=1, slot=0, control=control))
    with socket.socket(socket.AF_UNIX) as hasty:
        hasty.connect(str(control))
        hasty.sendall(b'{"do": "quiesce"}\n')
    until(lambda: bool(lun(ask)["quiet"]), "quiet")
    before = content(disk)
    client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 4096)), 0)
    until(lambda: lun(ask)["waiting"] == 1, "a parked write")
    assert content(disk) == before
    ask("quiesce")
    ask("resume")
    until(lambda: content(disk) != before, "the write on the disk")


def test_quiet_outlives_the_bridge(disk: Path, control: Path, ask: Any, vblade: Start, bridge: Bridging) -> None:
    """It is killed, and another takes its place: that one writes nothing either until `resume`."""
    vblade(disk)
    nbdkit = bridge(shelf=1, slot=0, control=control)
    ask("quiesce")
    nbdkit.stop(signal.SIGKILL)
    before = content(disk)
    client = connect(bridge(shelf=1, slot=0, control=control))
    client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"x" * 4096)), 0)
    until(lambda: lun(ask)["waiting"] == 1, "a parked write")
    time.sleep(QUARANTINE + 0.3)
    assert content(disk) == before
    ask("resume")
    until(lambda: content(disk) != before, "the write on the disk")


def test_a_quiesced_bridge_ends_when_told_to(
    disk: Path, control: Path, ask: Any, vblade: Start, bridge: Bridging
) -> None:
    vblade(disk)
    nbdkit = bridge(shelf=1, slot=0, control=control)
    client = connect(nbdkit)
    ask("quiesce")
    client.aio_pread(nbd.Buffer(4096), 0)
    until(lambda: lun(ask)["waiting"] == 1, "a parked read")
    assert nbdkit.stop() == 0
    assert not control.exists()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_hang_up_leaves_requests_to_be_asked_again(
    disk: Path, cable: Cable, control: Path, ask: Any, vblade: Start, bridge: Bridging
) -> None:
    """With on-end=hang-up a request that waits for a dead target gets no answer, not even an error: the connection ends."""
    vblade(disk)
    nbdkit = bridge(shelf=1, slot=0, control=control, on_end="hang-up")
    client = connect(nbdkit)
    cable.cut()
    errors: list[int] = []

    def done(error: Any) -> int:
        errors.append(error.value)
        return 1

    client.aio_pread(nbd.Buffer(4096), 0, completion=done)
    until(lambda: lun(ask)["state"] != "up", "a path that is out")
    assert nbdkit.stop() == -signal.SIGTERM
    while not client.aio_is_closed() and not client.aio_is_dead():
        client.poll(100)
    assert errors in ([], [errno.ENOTCONN])  # what libnbd says of requests whose connection has gone


def test_hang_up_does_not_wait_for_an_idle_client(disk: Path, vblade: Start, bridge: Bridging) -> None:
    vblade(disk)
    nbdkit = bridge(shelf=1, slot=0, on_end="hang-up")
    client = connect(nbdkit)
    client.pread(512, 0)
    assert nbdkit.stop() == -signal.SIGTERM


# -- clients -----------------------------------------------------------------------------------------------------------


def test_drain(disk: Path, cable: Cable, control: Path, ask: Any, vblade: Start, bridge: Bridging) -> None:
    """What a client had sent is carried out and answered; then its connection ends, and others may come."""
    vblade(disk)
    nbdkit = bridge(shelf=1, slot=0, control=control)
    client = connect(nbdkit)
    time.sleep(QUARANTINE)
    cable.line("both", delay=0.2)
    answered: list[int] = []

    def done(i: int, error: Any) -> int:
        answered.append(-1 if error.value else i)
        return 1

    for i in range(8):
        data = nbd.Buffer.from_bytearray(bytearray([i + 1]) * 4096)
        client.aio_pwrite(data, i * 4096, completion=partial(done, i))
    drained = threading.Thread(target=ask, args=("drain",))
    drained.start()
    deadline = time.monotonic() + PATIENCE
    while len(answered) < 8 and time.monotonic() < deadline:
        client.poll(100)
    drained.join(PATIENCE)
    assert not drained.is_alive()
    assert sorted(answered) == list(range(8))
    assert disk.read_bytes()[: 8 * 4096] == b"".join(bytes([i + 1]) * 4096 for i in range(8))
    with pytest.raises(nbd.Error):
        client.pread(512, 0)
    assert connect(nbdkit).pread(4096, 0) == bytes([1]) * 4096


def test_growth_is_told_to_who_waits(disk: Path, control: Path, ask: Any, our_target: Start, bridge: Bridging) -> None:
    our_target(disk)
    bridge(shelf=1, slot=0, control=control)
    since = ask("wait", timeout=0)["next"]
    os.truncate(disk, 2 * SIZE)
    while True:
        answer = ask("wait", since=since, timeout=PATIENCE)
        assert answer["events"], "nothing happened"
        since = answer["next"]
        grown = [event for event in answer["events"] if event["what"] == "grown"]
        if grown:
            break
    assert (grown[0]["address"], grown[0]["size_bytes"]) == ("e1.0", 2 * SIZE)
    assert lun(ask)["size_bytes"] == 2 * SIZE


# -- memory and privileges ---------------------------------------------------------------------------------------------


def test_locked_and_unprivileged(
    disk: Path, folder: Path, initiator: Host, control: Path, ask: Any, our_target: Start, bridge: Bridging
) -> None:
    """It serves as any other, and its interface may still change so that the link is opened anew."""
    our_target(disk)
    nbdkit = bridge("-t", 64, shelf=1, slot=0, control=control, lock_memory="true")
    assert lun(ask)["state"] == "up"  # and it has been set up, then
    status = dict(line.split(":", 1) for line in Path(f"/proc/{nbdkit.pid}/status").read_text().splitlines())
    assert int(status["CapEff"], 16) & ~(1 << 13 | 1 << 14) == 0
    with Load(nbdkit, folder, rate="20m") as load:
        initiator.set_mtu(16000)  # more than the receive ring was made for
        load.finish()
    assert lun(ask)["paths"][0]["mtu"] == 16000


# -- check -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["to", "from"])
def test_check_finds_a_switch_that_drops_large_frames(
    way: str,
    disk: Path,
    cable: Cable,
    initiator: Host,
    vblade: Start,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vblade(disk)
    carrier = f"/sys/class/net/{initiator.interface}/operstate"
    until(lambda: initiator.run("cat", carrier).strip() == "up", "carrier")  # the kernel says so up to a second late
    with initiator.entered():
        assert main(["check", "-i", initiator.interface]) == 0
        capsys.readouterr()
        cable.line(way, mtu=1500)
        assert main(["check", "-i", initiator.interface, "e1.0"]) == 3
    out, err = capsys.readouterr()
    (sentence,) = err.splitlines()
    assert f"frames of at most 1024 bytes of data get through {way} the target, where both ends allow 8704" in sentence
    assert out.splitlines()[-1].split()[6] == "1024"  # the payload that is left


def test_check_says_that_nobody_answers(initiator: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with initiator.entered():
        assert main(["check", "-i", initiator.interface, "-t", "0.2"]) == 1
    assert "no target answered within 0.2 s" in capsys.readouterr().err
