# SPDX-License-Identifier: BSD-3-Clause
"""Real frames through cables that lose, delay and cut, and targets that die, with fio verifying all the while.

No client may see an error, and what was written must be there at the end. The tests wait for what happens, never for how
fast; that is measured by `scripts/bench loss`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nbd
import pytest

from aoe_nbd.core.constants import QUARANTINE
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.device import Device
from aoe_nbd.engine import Engine
from aoe_nbd.link import Accept, Link
from aoe_nbd.wire.address import Address
from lab import PATIENCE, Bridge, Host, Lan, Process, write_random
from load import SIZE, Load, flows, until
from relay import Cable, Trouble
from target_helpers import Client

Start = Callable[..., Process]
Bridging = Callable[..., Bridge]


@pytest.fixture
def cables() -> int:
    """How many join the two hosts; a test that needs two is parametrized with it."""
    return 1


@pytest.fixture
def trouble(tmp_path: Path, cables: int) -> Iterator[Trouble]:
    found = Trouble(tmp_path, cables=cables)
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


# -- the checks of the checks ----------------------------------------------------------------------------------------


def test_fio_notices_wrong_data(disk: Path, folder: Path, cable: Cable, our_target: Start, bridge: Bridging) -> None:
    our_target(disk)
    load = Load(bridge(), folder, rate="40m")
    cable.line("from", corrupt=0.01)
    with pytest.raises(AssertionError, match="verify"):
        load.finish()


def test_fio_notices_an_error(disk: Path, folder: Path, cable: Cable, our_target: Start, bridge: Bridging) -> None:
    our_target(disk)
    load = Load(bridge(shelf=1, slot=0, on_dead="fail-after=1"), folder)
    flows(cable)
    cable.cut()
    with pytest.raises(AssertionError, match="Input/output error"):
        load.finish()


# -- a bad cable -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [0.001, 0.01, 0.05])
def test_loss(loss: float, disk: Path, folder: Path, cable: Cable, vblade: Start, bridge: Bridging) -> None:
    vblade(disk)
    nbdkit = bridge()
    cable.line("both", loss=loss)
    Load(nbdkit, folder, rate="20m").finish()
    stats = cable.stats()
    assert stats["to.lost"] + stats["from.lost"] > 0
    assert "large frames get lost" not in nbdkit.output()
    assert "no answer" not in nbdkit.output() or loss == 0.05


def test_everything_at_once(disk: Path, folder: Path, cable: Cable, target: Start, bridge: Bridging) -> None:
    target(disk)
    nbdkit = bridge()
    cable.line("both", loss=0.01, dup=0.02, dupdelay=0.003, reorder=0.02, hold=0.005, delay=0.0002, jitter=0.0005)
    Load(nbdkit, folder, rate="20m").finish()
    stats = cable.stats()
    for fault in ("lost", "duped", "reordered"):
        assert stats[f"to.{fault}"] > 0 and stats[f"from.{fault}"] > 0, fault


@pytest.mark.parametrize("way", ["to", "from"])
def test_a_black_hole_for_large_frames_comes_and_goes(
    way: str, disk: Path, folder: Path, cable: Cable, target: Start, bridge: Bridging
) -> None:
    target(disk)
    nbdkit = bridge()
    load = Load(nbdkit, folder)
    flows(cable)
    cable.line(way, mtu=1600)
    until(lambda: cable.stats()[f"{way}.toolong"] > 3, "large frames vanish")
    flows(cable, 200)
    cable.line(way, mtu=0)
    flows(cable)
    load.finish()


# -- a path of two ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cables", [2])
@pytest.mark.parametrize("how", ["carrier", "silent"])
@pytest.mark.parametrize("who", ["vblade", "our_target"])
def test_one_path_of_two_is_cut(
    how: str,
    who: str,
    disk: Path,
    folder: Path,
    trouble: Trouble,
    request: pytest.FixtureRequest,
    bridge: Bridging,
) -> None:
    begin = request.getfixturevalue(who)
    if who == "vblade":
        for host in trouble.far:
            begin(disk, host=host)
    else:
        begin(disk, "--interface", trouble.far[1].interface)
    names = ",".join(host.interface for host in trouble.near)
    nbdkit = bridge(interface=names, shelf=1, slot=0)
    # Slow enough to last: of two idle paths the quicker one gets all but the odd try, which is how the other is measured.
    load = Load(nbdkit, folder, rate="1m")
    one, other = trouble.cables
    flows(one, 3)
    flows(other, 3)
    if how == "carrier":
        one.inside.ip("link", "set", "near", "down")
    else:
        one.cut()
    text = "no carrier" if how == "carrier" else "no answer for"
    until(lambda: text in nbdkit.output(), "the cut is reported")
    flows(other, 3)
    if how == "carrier":
        one.inside.ip("link", "set", "near", "up")
    else:
        one.mend()
    flows(one, 3)
    flows(other, 3)
    load.finish()


# -- a target that dies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("who", "outage"), [("vblade", 0.2), ("vblade", 7.0), ("vblade", 60.0), ("our_target", 7.0)])
def test_target_killed_and_started_again(
    who: str,
    outage: float,
    disk: Path,
    folder: Path,
    cable: Cable,
    request: pytest.FixtureRequest,
    bridge: Bridging,
) -> None:
    begin = request.getfixturevalue(who)
    process = begin(disk)
    nbdkit = bridge()
    load = Load(nbdkit, folder)
    flows(cable)
    process.stop(signal.SIGKILL)
    time.sleep(outage)
    assert load.running()
    begin(disk)
    flows(cable)
    load.finish()
    assert ("has not answered" in nbdkit.output()) == (outage > 6)
    assert ("answers again" in nbdkit.output()) == (outage > 6)


def test_bridge_waiting_for_a_dead_target_ends_at_once(disk: Path, vblade: Start, bridge: Bridging) -> None:
    process = vblade(disk)
    nbdkit = bridge()
    handle = nbd.NBD()
    handle.connect_uri(nbdkit.uri())
    process.stop(signal.SIGKILL)
    for i in range(16):
        handle.aio_pread(nbd.Buffer(4096), i * 4096)
    handle.poll(0)
    time.sleep(0.5)
    began = time.monotonic()
    nbdkit.stop()
    assert time.monotonic() - began < 5


# -- MTU and interfaces ----------------------------------------------------------------------------------------------


def test_our_target_has_its_mtu_lowered_and_raised(
    disk: Path, folder: Path, storage: Host, cable: Cable, our_target: Start, bridge: Bridging
) -> None:
    our_target(disk)
    load = Load(bridge(), folder)
    for mtu in (1500, 9000, 2000, 9000):
        flows(cable, 100)
        storage.set_mtu(mtu)
    flows(cable, 100)
    load.finish()


def test_vblade_dies_of_a_lowered_mtu_and_is_started_again(
    disk: Path, folder: Path, storage: Host, cable: Cable, vblade: Start, bridge: Bridging
) -> None:
    process = vblade(disk)
    load = Load(bridge(), folder)
    flows(cable)
    storage.set_mtu(1500)
    until(lambda: process.popen.poll() is not None or not load.running(), "vblade dies")
    vblade(disk)
    flows(cable, 200)
    storage.set_mtu(9000)
    flows(cable, 200)
    load.finish()


def test_our_mtu_is_lowered_and_raised(
    disk: Path, folder: Path, initiator: Host, cable: Cable, target: Start, bridge: Bridging
) -> None:
    target(disk)
    load = Load(bridge(), folder)
    for mtu in (1500, 9000):
        flows(cable, 100)
        initiator.set_mtu(mtu)
    flows(cable, 100)
    load.finish()


def test_our_interface_goes_down_and_up(
    disk: Path, folder: Path, initiator: Host, cable: Cable, target: Start, bridge: Bridging
) -> None:
    target(disk)
    load = Load(bridge(), folder)
    flows(cable)
    initiator.down()
    time.sleep(1)
    initiator.up()
    flows(cable)
    load.finish()


def test_the_targets_interface_goes_down_and_up(
    disk: Path, folder: Path, storage: Host, cable: Cable, target: Start, bridge: Bridging
) -> None:
    process = target(disk)
    load = Load(bridge(), folder)
    flows(cable)
    storage.down()
    time.sleep(1)
    storage.up()
    if "vblade" in process.name:  # it has died of it
        process.popen.wait(PATIENCE)
        target(disk)
    flows(cable)
    load.finish()


# -- a stale copy of a write -----------------------------------------------------------------------------------------

LBA = 1000
OLD, NEW = b"old!" * 1024, b"new!" * 1024


def content(disk: Path) -> bytes:
    with disk.open("rb") as file:
        file.seek(LBA * 512)
        return file.read(len(OLD))


def test_vblade_lets_a_stale_copy_land(disk: Path, trouble: Trouble, vblade: Start) -> None:
    """What the next test is about: the target has no protection of its own against it."""
    vblade(disk)
    client = Client(trouble.near[0], trouble.far[0])
    client.ask(client.config())
    client.ask(client.write(LBA, NEW))
    client.ask(client.write(LBA, OLD))
    assert content(disk) == OLD
    client.close()


@pytest.mark.parametrize("quarantine", [True, False], ids=["quarantine", "without"])
def test_a_delayed_first_copy_never_lands_on_newer_data(
    quarantine: bool, disk: Path, trouble: Trouble, cable: Cable, vblade: Start
) -> None:
    """Without the quarantine it does, which shows that it is the quarantine that holds the newer write back."""
    vblade(disk)
    with trouble.near[0].entered():
        engine = Engine([Link(trouble.near[0].interface, Accept.RESPONSES)])
        device = Device(engine, Address(1, 0))
        device.open(10)
        engine.start()
    try:
        initiator = device.initiator
        until(lambda: initiator.paths[0].sizes.limit[1] >= 8, "frames of 4 KiB")
        device.write(memoryview(OLD), (LBA + 800) * 512)  # the first of all waits for the quarantine of the start
        if not quarantine:
            initiator.quarantine = 0.0
        cable.rule("to", "write", lba=LBA, times=1, delay=0.6)
        for data in (OLD, NEW):
            device.write(memoryview(data), LBA * 512)
        if not quarantine:
            assert content(disk) == NEW
        until(lambda: cable.stats()["held"] == 0, "the held copy goes out")
        assert cable.stats()["rule0"] == 1
        time.sleep(0.2)
        assert content(disk) == (NEW if quarantine else OLD)
        assert resent(initiator) >= 1
    finally:
        engine.stop()


def resent(initiator: Initiator) -> int:
    return initiator.counters["resent"]


# -- strangers -------------------------------------------------------------------------------------------------------


def stranger(folder: Path, size: int = SIZE) -> tuple[Path, bytes]:
    write_random(folder / "stranger", size, seed=99)
    return folder / "stranger", (folder / "stranger").read_bytes()


@pytest.fixture
def lan3() -> Iterator[Lan]:
    lan = Lan(9000, hosts=3)
    yield lan
    lan.close()


@pytest.mark.parametrize("size", [SIZE, SIZE * 2], ids=["other-serial", "other-size"])
def test_a_stranger_appears_at_another_mac(
    size: int, disk: Path, folder: Path, lan3: Lan, our_target: Start, vblade: Start, bridge: Bridging
) -> None:
    near, far, third = lan3.hosts
    other, before = stranger(folder, size)
    if size == SIZE:
        our_target(disk, host=far)
    else:  # vblade's serial number is the same for all on this host
        vblade(disk, host=far)
    nbdkit = bridge(host=near, shelf=1, slot=0)
    load = Load(nbdkit, folder)
    time.sleep(0.5)
    (our_target if size == SIZE else vblade)(other, host=third)
    until(lambda: "another disk answers there" in nbdkit.output(), "the stranger is reported")
    assert third.mac in nbdkit.output()
    load.finish()
    assert other.read_bytes() == before


@pytest.mark.parametrize("who", ["vblade", "our_target"])
def test_another_disk_under_the_same_mac_after_a_restart(
    who: str, disk: Path, folder: Path, cable: Cable, request: pytest.FixtureRequest, bridge: Bridging
) -> None:
    # All that tells one vblade of a host from another is the capacity, and a larger one is taken for the disk, grown.
    begin = request.getfixturevalue(who)
    other, before = stranger(folder, SIZE // 2 if who == "vblade" else SIZE * 2)
    text = "capacity has shrunk" if who == "vblade" else "another disk answers there"
    process = begin(disk)
    nbdkit = bridge()
    load = Load(nbdkit, folder)
    flows(cable)
    process.stop(signal.SIGKILL)
    # Writes go on for 0.2 s, until the path is given up: a stranger who listens there so soon would get them.
    time.sleep(QUARANTINE)
    impostor = begin(other)
    until(lambda: text in nbdkit.output(), "the stranger is reported")
    time.sleep(2)
    assert load.running(), "its requests wait"
    assert other.read_bytes() == before
    impostor.stop()
    begin(disk)
    flows(cable)
    load.finish()
    assert other.read_bytes() == before
