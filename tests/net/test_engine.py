# SPDX-License-Identifier: BSD-3-Clause
"""The engine's threads on a real socket: who receives the answers, and that nobody is left waiting for one."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aoe_nbd.core.request import Kind, Request
from aoe_nbd.device import Device
from aoe_nbd.engine import Engine, _stretches
from aoe_nbd.link import Accept, Link
from aoe_nbd.wire.address import Address
from lab import PATIENCE, Host, Process, write_random

SIZE = 4 << 20
BLOCK = 4096


@pytest.fixture
def mtu() -> int:
    return 9000


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    write_random(path, SIZE, seed=1)
    return path


@pytest.fixture
def target(disk: Path, vblade: Callable[..., Process]) -> Process:
    return vblade(disk, "-b", 64)


@pytest.fixture(params=[0.0, 1e-4, 2 * PATIENCE], ids=["sleep", "poll", "poll-long"])
def busy_poll(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture
def device(initiator: Host, target: Process, busy_poll: float) -> Iterator[Device]:
    with initiator.entered():
        engine = Engine([Link(initiator.interface, Accept.RESPONSES)], busy_poll=busy_poll)
        device = Device(engine, Address(1, 0))
        device.open(PATIENCE)
        engine.start()
    yield device
    engine.stop()


@pytest.fixture
def receivers(device: Device, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many answers to reads each thread has booked, by its name."""
    found: Counter[str] = Counter()
    initiator = device.initiator
    receive = initiator.receive

    def counted(*args: object) -> None:
        before = sum(initiator.served)
        receive(*args)  # type: ignore[arg-type]
        found[threading.current_thread().name] += sum(initiator.served) - before

    monkeypatch.setattr(initiator, "receive", counted)
    return found


def read(device: Device, disk: bytes, place: int) -> None:
    buffer = bytearray(BLOCK)
    device.read(memoryview(buffer), place)
    assert buffer == disk[place : place + BLOCK]


def places(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(SIZE // BLOCK) * BLOCK for _ in range(count)]


def callers(number: int, work: Callable[[int], None]) -> None:
    """Run work(0) … work(number - 1) at once. Fails with the first error, or if one does not end."""
    errors: list[BaseException] = []

    def run(k: int) -> None:
        try:
            work(k)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,), name=f"caller {k}", daemon=True) for k in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread.name} waits for ever"
    if errors:
        raise errors[0]


@pytest.mark.sources
def test_who_is_alone_receives_its_own_answers(device: Device, disk: Path, receivers: Counter[str]) -> None:
    """But for those that come before he is ready to wait: the I/O thread has them then."""
    content = disk.read_bytes()
    for place in places(500, seed=1):
        read(device, content, place)
    assert receivers.total() == 500
    assert receivers[threading.current_thread().name] > 0


@pytest.mark.sources
def test_several_are_served_by_the_io_thread(device: Device, disk: Path, receivers: Counter[str]) -> None:
    """Or by one of them, at a moment when he is alone."""
    content = disk.read_bytes()

    def work(k: int) -> None:
        for place in places(500, seed=k):
            read(device, content, place)

    callers(4, work)
    assert receivers.total() == 2000
    assert receivers["aoe-io"] > 0


def test_coming_and_going_leaves_nobody_waiting(device: Device, disk: Path) -> None:
    """Every change between alone and not alone, over and over: whoever receives an answer wakes the one who waits for it."""
    content = disk.read_bytes()
    gate = threading.Barrier(3)

    def work(k: int) -> None:
        rng = random.Random(k)
        for place in places(1500, seed=k):
            if rng.random() < 0.05:
                gate.wait(PATIENCE)  # all of them at once
            read(device, content, place)

    def meet(k: int) -> None:
        try:
            work(k)
        except threading.BrokenBarrierError:
            pass
        finally:
            gate.abort()

    callers(3, meet)
    assert device.initiator.waiting == 0


@pytest.mark.parametrize("busy_poll", [0.0], indirect=True)
def test_what_comes_while_the_io_thread_is_told_whether_to_listen(device: Device) -> None:
    """A caller who finds the engine locked leaves his request to the one who locked it."""
    engine = device.engine
    slot = os.eventfd(0)
    for listening in (False, True):
        with engine._lock:  # the I/O thread is in no turn then, at whose end it would take it in
            engine._inbox.append((device.initiator, Request(Kind.READ, 0, 8, memoryview(bytearray(BLOCK)), token=slot)))
            engine._listen(listening)
            assert not engine._inbox
    woken = 0
    while woken < 2:
        woken += os.eventfd_read(slot)
    os.close(slot)


@pytest.mark.parametrize("busy_poll", [2 * PATIENCE], indirect=True)
def test_the_interface_changes_while_a_caller_polls(
    device: Device, disk: Path, target: Process, initiator: Host
) -> None:
    """The new socket is the caller's as long as it polls, and the I/O thread's afterwards."""
    content, engine = disk.read_bytes(), device.engine
    link = engine.links[initiator.interface]
    read(device, content, 0)
    os.kill(target.pid, signal.SIGSTOP)
    try:
        done: list[None] = []
        caller = threading.Thread(target=lambda: done.append(read(device, content, BLOCK)), daemon=True)  # type: ignore[func-returns-value]
        caller.start()
        target.wait_until(lambda: not engine._listening, "be polled for")
        initiator.set_mtu(16000)  # more than a slot of the ring holds: the socket is made anew
        target.wait_until(lambda: link.mtu == 16000, "see the new MTU")
        assert not engine._listening
    finally:
        os.kill(target.pid, signal.SIGCONT)
    caller.join(PATIENCE)
    assert done
    assert engine._listening
    assert not engine.counters["faults"]

    def work(k: int) -> None:
        for place in places(50, seed=k):
            read(device, content, place)

    callers(4, work)


def test_several_luns_by_one_engine(initiator: Host, vblade: Callable[..., Process], tmp_path: Path) -> None:
    """Their answers come mixed, each goes to its own LUN's request, and no more are asked for than the ring holds."""
    count, slots, request = 5, 64, 32 * BLOCK
    disks = [tmp_path / f"disk{slot}" for slot in range(count)]
    for slot, disk in enumerate(disks):
        write_random(disk, SIZE, seed=slot)
        vblade(disk, "-b", 64, slot=slot)
    with initiator.entered():
        engine = Engine([Link(initiator.interface, Accept.RESPONSES, slots)])
        devices = [Device(engine, Address(1, slot)) for slot in range(count)]
        for device in devices:
            device.open(PATIENCE)
        engine.start()
    most = 0

    def work(k: int) -> None:
        nonlocal most
        device, content = devices[k % count], disks[k % count].read_bytes()
        rng = random.Random(k)
        for _ in range(150):
            place = rng.randrange((SIZE - request) // BLOCK) * BLOCK
            buffer = bytearray(request)
            device.read(memoryview(buffer), place)
            assert buffer == content[place : place + request]
            most = max(most, sum(each.initiator.outstanding() for each in devices))

    try:
        callers(3 * count, work)
        assert count < most <= slots
    finally:
        engine.stop()


def test_where_a_stretch_of_equal_addresses_ends() -> None:
    items = b"".join([b"\0\1\0"] * 3 + [b"\0\1\1"] + [b"\1\0\1"] * 2 + [b"\0\1\0"])
    stretches = list(_stretches(items))
    assert [count for _, count in stretches] == [3, 1, 2, 1]
    assert b"".join(address * count for address, count in stretches) == items


def test_small_and_large_requests_at_once(device: Device, disk: Path) -> None:
    """Answers that come in a row and ones that stand alone, mixed as they like: every byte goes where it belongs."""
    half, content = SIZE // 2, bytearray(disk.read_bytes())

    def work(k: int) -> None:
        rng = random.Random(k)
        for _ in range(60):
            size = rng.choice((512, BLOCK, BLOCK, 9 * BLOCK, 64 * BLOCK))
            if k % 2:  # each writer has a quarter of the first half for itself
                place = k // 2 * half // 4 + rng.randrange((half // 4 - size) // 512 + 1) * 512
                data = rng.randbytes(size)
                device.write(memoryview(data), place)
                content[place : place + size] = data
            else:
                place = half + rng.randrange((half - size) // 512 + 1) * 512
                buffer = bytearray(size)
                device.read(memoryview(buffer), place)
                assert buffer == content[place : place + size]

    callers(8, work)
    whole = bytearray(SIZE)
    device.read(memoryview(whole), 0)
    assert whole == content == disk.read_bytes()
