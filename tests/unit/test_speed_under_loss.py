# SPDX-License-Identifier: BSD-3-Clause
"""How fast the core stays when frames get lost, in virtual time: exact figures, on any machine, however busy.

A target that serves one frame after the other, a wire with delay, jitter and loss, and a client that keeps so many requests
going. `scripts/bench loss` measures the same with real packets.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections.abc import Callable
from typing import NamedTuple

import pytest

from aoe_nbd.core import encode
from aoe_nbd.core.constants import SIZE_LOSSES, WINDOW_CUT
from aoe_nbd.core.flight import FOREVER
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.core.rtt import Rtt
from aoe_nbd.core.sizes import FrameSizes
from aoe_nbd.core.window import Window
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import Ata, Command
from aoe_nbd.wire.frames import CONFIG, Config
from aoe_nbd.wire.identify import Identify

LOCAL = bytes.fromhex("020000000101")
REMOTES = [bytes.fromhex("020000000201"), bytes.fromhex("020000000202")]
IDENTITY = Identify(serial="one", firmware="1", model="model", sectors=1 << 24).build()
WIRE, SERVE = 50e-6, 30e-6  # seconds each way, and for 16 sectors at the target


class World:
    """An initiator, its path or paths, and a target behind each that serves in order."""

    def __init__(
        self, loss: float = 0.0, jitter: float = 0.0, buffers: int = 16, paths: int = 1, seed: int = 1
    ) -> None:
        self.now, self.loss, self.jitter, self.buffers = 1000.0, loss, jitter, buffers
        self.cut = [False] * paths
        self.longest = 1 << 20  # bytes of a frame that gets through
        self.done: Callable[[Request], None] = lambda request: None
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._next_tick = FOREVER
        self._busy = [0.0] * paths
        self.initiator = Initiator(Address(1, 0), seed=seed, now=self.now)
        self.paths = [
            self.initiator.add_path(
                f"eth{i}", LOCAL, REMOTES[i], 9000, Config(buffer_count=buffers, sector_count=17), self.now
            )
            for i in range(paths)
        ]
        self._pump()
        self.run(
            self.now + 5, lambda: all(p.up and p.sizes.limit[0] >= 16 and p.sizes.limit[1] >= 16 for p in self.paths)
        )

    def submit(self, request: Request) -> None:
        self.initiator.submit(request, self.now)

    def run(self, until: float, enough: Callable[[], bool] = lambda: False) -> None:
        while self._events and self._events[0][0] <= until and not enough():
            when, _, what = heapq.heappop(self._events)
            self.now = max(self.now, when)
            what()
            self._pump()
        if not enough():
            self.now = until

    def _later(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._serial), what))

    def _pump(self) -> None:
        initiator = self.initiator
        while True:
            for run in initiator.transmit(self.now):
                for i in range(run.count):
                    header, payload = encode.frame(initiator, run, i)
                    self._travel(self.paths.index(run.path), header + bytes(payload or b""), self._arrive)
            if not initiator.completed:
                break
            completed, initiator.completed[:] = list(initiator.completed), []
            for request in completed:
                self.done(request)
        if (at := initiator.timer()) < self._next_tick:
            self._next_tick = at
            self._later(max(at, self.now), lambda: self._tick(at))

    def _tick(self, at: float) -> None:
        if at == self._next_tick:
            self._next_tick = FOREVER
            self.initiator.tick(self.now)

    def _travel(self, path: int, frame: bytes, to: Callable[[int, bytes], None]) -> None:
        if self.cut[path] or len(frame) > self.longest or self._random.random() < self.loss / 2:
            return
        self._later(self.now + WIRE + self._random.random() * self.jitter, lambda: to(path, frame))

    def _arrive(self, path: int, frame: bytes) -> None:
        sectors = frame[26] if frame[19] == Command.ATA else 0
        self._busy[path] = max(self.now, self._busy[path]) + SERVE * (0.3 + 0.7 * sectors / 16)
        self._later(self._busy[path], lambda: self._travel(path, self._reply(frame), self._receive))

    def _reply(self, frame: bytes) -> bytes:
        header = frame[6:12] + frame[:6] + frame[12:14] + bytes([frame[14] | 8]) + frame[15:24]
        if frame[19] == Command.CONFIG:
            return (header + CONFIG.pack(self.buffers, 0, 17, 0x10, 0)).ljust(60, b"\0")
        data = b""
        if frame[27] == Ata.IDENTIFY:
            data = IDENTITY
        elif frame[27] == Ata.READ_EXT:
            data = bytes(frame[26] * 512)
        return (header + bytes([frame[24], 0, 0, 0x40]) + frame[28:36] + data).ljust(60, b"\0")

    def _receive(self, path: int, frame: bytes) -> None:
        self.initiator.receive(f"eth{path}", frame, self.now)


class Figures(NamedTuple):
    """Of one run; times in seconds."""

    requests: int
    mean: float
    tail: float  # p99.9
    world: World


def keep_going(world: World, sectors: int, depth: int, kind: Kind = Kind.READ) -> list[tuple[float, float]]:
    """`depth` sequential requests at a time from now on. Returns what grows to (when done, how long it took) of each."""
    ends: list[tuple[float, float]] = []
    lbas = itertools.count(0, sectors)

    def go() -> None:
        world.submit(Request(kind, next(lbas) % (1 << 23), sectors, memoryview(bytearray(sectors * 512))))

    def done(request: Request) -> None:
        assert not request.error, request.reason
        ends.append((world.now, world.now - request.submitted))
        go()

    world.done = done
    for _ in range(depth):
        go()
    world.run(world.now)
    return ends


def measure(sectors: int, depth: int, seconds: float, **how: float) -> Figures:
    world = World(**how)  # type: ignore[arg-type]
    ends = keep_going(world, sectors, depth)
    world.run(world.now + seconds)
    took = sorted(seconds for _, seconds in ends)
    return Figures(len(took), statistics.mean(took), took[int(len(took) * 0.999)], world)


@pytest.mark.parametrize("jitter", [0.0, 100e-6, 400e-6])
@pytest.mark.parametrize("buffers", [16, 64])
@pytest.mark.parametrize(("loss", "least"), [(0.001, 0.97), (0.01, 0.9), (0.05, 0.6)])
def test_sequential_reads_keep_their_throughput(loss: float, least: float, buffers: int, jitter: float) -> None:
    clean = measure(256, 16, 0.4, jitter=jitter, buffers=buffers)
    lossy = measure(256, 16, 0.4, jitter=jitter, buffers=buffers, loss=loss)
    assert lossy.requests >= least * clean.requests
    assert lossy.world.paths[0].sizes.limit[0] == 17 // 8 * 8, "random loss is no reason for smaller frames"


@pytest.mark.parametrize("jitter", [0.0, 100e-6])
def test_one_request_at_a_time_keeps_its_latency(jitter: float) -> None:
    clean = measure(8, 1, 2.0, jitter=jitter)
    lossy = measure(8, 1, 2.0, jitter=jitter, loss=0.01)
    assert lossy.mean <= 1.3 * clean.mean
    assert lossy.tail <= 0.003


def test_one_request_at_a_time_waits_for_no_timeout_where_its_probe_is_lost_too() -> None:
    lossy = measure(8, 1, 4.0, loss=0.05)
    assert lossy.tail < 0.008


@pytest.mark.parametrize("sectors", [8, 256])
def test_path_cut(sectors: int) -> None:
    world = World(paths=2)
    ends = keep_going(world, sectors, 16)
    world.run(world.now + 0.1)
    cut = world.now
    world.cut[0] = True
    world.run(cut + 0.5)
    times = [cut, *(when for when, _ in ends if when >= cut)]
    assert max(b - a for a, b in itertools.pairwise(times)) < 0.05
    assert not world.paths[0].up and world.paths[1].up


def test_restarted_target_is_used_again_soon() -> None:
    world = World()
    ends = keep_going(world, 8, 4)
    world.cut[0] = True
    world.run(world.now + 20)
    back, count = world.now, len(ends)
    world.cut[0] = False
    world.run(back + 1, lambda: len(ends) > count)
    assert world.now < back + 0.6


def test_a_black_hole_for_large_frames_is_stepped_around() -> None:
    """The check of the check that random loss steps nothing down."""
    world = World()
    ends = keep_going(world, 256, 16)
    world.run(world.now + 0.1)
    world.longest = 36 + 8 * 512
    count = len(ends)
    world.run(world.now + 2)
    assert world.paths[0].sizes.limit[0] == 8
    assert len(ends) > count + 100


# -- the window alone ------------------------------------------------------------------------------------------------


def rtt_of(srtt: float, least: float) -> Rtt:
    rtt = Rtt(0.2, 2.0)
    rtt.sample(least, 0.0)
    rtt.srtt = srtt
    return rtt


def test_one_loss_in_16_frames_is_free() -> None:
    window = Window(32)
    for start in range(0, 1600, 16):
        window.lost(start + 10, start + 26)
    assert window.size == 16
    large = Window(64)
    for _ in range(48):
        large.answered(rtt_of(1e-4, 1e-4))
    for seq in range(4):
        large.lost(seq, 64)
    assert large.size == 64
    large.lost(5, 64)
    assert large.size == 63
    small = Window(16)  # of which a client's share is 8
    small.lost(1, 9)
    assert small.size == 7


def test_a_second_loss_costs_one_frame_and_the_next_round_brings_it_back_whatever_the_delay() -> None:
    window, rtt = Window(32), rtt_of(20e-3, 1e-3)
    window.lost(10, 26)
    window.lost(11, 27)  # the same round
    assert window.size == 15
    for _ in range(30):
        window.answered(rtt)
    assert 15.5 < window.size <= 17
    size = window.size
    for _ in range(100):
        window.answered(rtt)
    assert window.size <= max(size, 17), "beyond its level the delay stops it"


def test_the_queue_of_a_quick_target_is_no_reason_to_leave_its_buffers_empty() -> None:
    """64 frames of 10 µs each are six times the round trip of a lone one, and there is nobody else in the way."""
    window = Window(64)
    for _ in range(48):
        window.answered(rtt_of(640e-6, 100e-6))
    assert window.size == 64


def test_a_burst_of_losses_cuts_once_a_round() -> None:
    window = Window(64)
    for seq in range(10, 20):
        window.lost(seq, 42)
    assert window.size == pytest.approx(16 * WINDOW_CUT)
    for seq in range(42, 52):
        window.lost(seq, 60)
    assert window.size == pytest.approx(16 * WINDOW_CUT**2)


def test_a_false_alarm_restores_the_window() -> None:
    window = Window(64)
    for seq in range(10, 20):
        window.lost(seq, 42)
    window.undo()
    assert window.size == 16


def test_never_below_two_frames_nor_above_the_buffers() -> None:
    window, rtt = Window(8), rtt_of(1e-4, 1e-4)
    for seq in range(0, 1000, 10):
        for i in range(5):
            window.lost(seq + i, seq + 10)
    assert window.size == 2
    for _ in range(1000):
        window.answered(rtt)
    assert window.size == 8


# -- sizes alone -----------------------------------------------------------------------------------------------------


def sizes() -> FrameSizes:
    found = FrameSizes()
    found.allow(16, 0.0)
    for way in (0, 1):
        found.answered(way, 16, 5)
    return found


def test_losses_that_large_frames_survived_say_nothing_about_size() -> None:
    found = sizes()
    found.answered(0, 16, 100)
    assert not any(found.lost(0, 16, seq, 1.0) for seq in range(10, 100))
    assert found.limit == [16, 16]


def test_a_few_losses_in_a_row_are_chance() -> None:
    """One frame at a time, so that nothing sent later tells: of a tenth lost, three in a row come once in a thousand."""
    found, rng = sizes(), random.Random(1)
    for seq in range(10, 20_000):
        if rng.random() < 0.1:
            found.lost(0, 16, seq, 1.0)
        else:
            found.answered(0, 16, seq)
    assert found.limit == [16, 16]


def test_losses_of_all_large_frames_step_down() -> None:
    found = sizes()
    assert [found.lost(0, 16, seq, 1.0) for seq in range(10, 10 + SIZE_LOSSES)] == [False] * (SIZE_LOSSES - 1) + [True]
    assert found.limit == [8, 16]


def test_a_large_frame_that_got_through_between_two_losses_clears_the_count() -> None:
    found = sizes()
    for seq in range(10, 9 + SIZE_LOSSES):
        found.lost(0, 16, seq, 1.0)
    found.answered(0, 16, 9 + SIZE_LOSSES)
    assert not found.lost(0, 16, 10 + SIZE_LOSSES, 1.0)
    assert found.limit == [16, 16]
