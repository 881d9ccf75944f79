# SPDX-License-Identifier: BSD-3-Clause
"""Whose answer counts for what: a path shows its identity itself, and only paths that have done so answer for clients."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from aoe_nbd.core import encode
from aoe_nbd.core.copies import Copies, Run
from aoe_nbd.core.flight import Class
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.path import Path, PathState
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import RESPONSE, Command, Status
from aoe_nbd.wire.frames import Config, Taskfile, build_header
from aoe_nbd.wire.identify import Identify

LOCAL = bytes.fromhex("020000000101")
OURS = bytes.fromhex("020000000201")
OTHER = bytes.fromhex("020000000202")
CONFIG = Config(buffer_count=16, sector_count=2)


class Rig:
    """An initiator whose frames are looked at, and answered by hand."""

    def __init__(self) -> None:
        self.now = 10.0
        self.initiator = Initiator(Address(1, 0), seed=1, now=0.0, learn_paths=True)
        self.path = self.add(OURS)

    def add(self, remote: bytes) -> Path:
        return self.initiator.add_path("eth0", LOCAL, remote, 1500, CONFIG, self.now)

    def runs(self) -> Iterator[Run]:
        self.initiator.tick(self.now)
        yield from self.initiator.transmit(self.now)

    def tags(self, kind: Kind, path: Path | None = None) -> list[bytes]:
        """Send what is due; the tags of the frames of one kind."""
        return [
            encode.frame(self.initiator, run, i)[0][20:24]
            for run in self.runs()
            for i in range(run.count)
            if run.request.kind is kind and path in (None, run.path)
        ]

    def answer(self, tag: bytes, source: bytes, data: bytes = b"") -> None:
        header = build_header(LOCAL, source, 1, 0, Command.ATA, int.from_bytes(tag, "big"), RESPONSE)
        frame = header + Taskfile(0, 0, 0, Status.DRDY, bytes(6)).pack() + data
        self.initiator.receive("eth0", frame, self.now)

    def come_up(self) -> None:
        self.answer(self.tags(Kind.IDENTIFY)[0], OURS, disk("ours"))
        assert self.path.up


def disk(serial: str) -> bytes:
    return Identify(serial=serial, firmware="1", model="disk", sectors=1000).build()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_stranger_cannot_borrow_the_identity_of_our_disk(rig: Rig) -> None:
    rig.come_up()
    other = rig.add(OTHER)
    tag = rig.tags(Kind.IDENTIFY, other)[0]
    rig.answer(tag, OURS, disk("ours"))  # a frame for the stranger was flooded, and our disk has answered it as well
    assert not other.up
    rig.answer(tag, OTHER, disk("theirs"))
    assert other.state is PathState.STRANGER


def test_a_stranger_cannot_push_its_identity_on_our_path(rig: Rig) -> None:
    rig.come_up()
    rig.add(OTHER)
    rig.now += 6  # a keepalive
    tag = rig.tags(Kind.IDENTIFY, rig.path)[0]
    rig.answer(tag, OTHER, disk("theirs"))
    assert rig.path.up
    assert rig.initiator.counters["dropped_path"] == 1


def test_a_path_that_has_not_shown_our_disk_does_not_answer_for_clients(rig: Rig) -> None:
    rig.come_up()
    rig.add(OTHER)
    request = Request(Kind.READ, 0, 1, memoryview(bytearray(512)))
    rig.initiator.submit(request, rig.now)
    tag = rig.tags(Kind.READ)[0]
    rig.answer(tag, OTHER, bytes(512))
    assert not request.done
    rig.answer(tag, OURS, b"\x55" * 512)
    assert request.done and not request.error


def test_an_announcement_from_a_group_address_makes_no_path(rig: Rig) -> None:
    rig.come_up()
    source = b"\x01" + OTHER[1:]
    frame = build_header(LOCAL, source, 1, 0, Command.CONFIG, 0, RESPONSE) + CONFIG.build()
    rig.initiator.receive("eth0", frame, rig.now)
    assert [path.remote for path in rig.initiator.paths] == [OURS]


def test_nobody_is_learned_of_before_our_disk_is_known(rig: Rig) -> None:
    frame = build_header(LOCAL, OTHER, 1, 0, Command.CONFIG, 0, RESPONSE) + CONFIG.build()
    rig.initiator.receive("eth0", frame, rig.now)
    assert [path.remote for path in rig.initiator.paths] == [OURS]
    rig.come_up()
    rig.initiator.receive("eth0", frame, rig.now)
    assert [path.remote for path in rig.initiator.paths] == [OURS, OTHER]


def test_a_question_that_could_not_be_sent_waits_a_moment(rig: Rig) -> None:
    rig.come_up()
    rig.now += 6
    for run in rig.runs():
        rig.initiator.unsent(run, 0, "ENOBUFS", rig.now)
    assert rig.initiator.timer() > rig.now  # else the loop spins until the interface takes frames again
    rig.now = rig.initiator.timer()
    assert rig.tags(Kind.IDENTIFY)


def test_a_target_that_answers_one_question_of_two_is_not_pestered(rig: Rig) -> None:
    """It has one buffer to spare: IDENTIFY gets in, the Query Config behind it does not."""
    rig.come_up()
    end, sent = rig.now + 20, 0
    while rig.now < end:
        for tag in rig.tags(Kind.IDENTIFY):
            sent += 1
            rig.now += 1e-4
            rig.answer(tag, OURS, disk("ours"))
        rig.now = max(rig.now + 1e-6, rig.initiator.timer())
    assert rig.path.up
    assert 4 <= sent <= 50


def test_a_ghost_of_a_frame_that_left_late_is_kept_from_then_on(rig: Rig) -> None:
    """The process was frozen between asking for the second copy of a write and sending it."""
    rig.come_up()
    data = memoryview(bytearray(512))
    first, second = Request(Kind.WRITE, 5, 1, data), Request(Kind.WRITE, 5, 1, data)
    rig.initiator.submit(first, rig.now)
    rig.initiator.submit(second, rig.now)
    [tag] = rig.tags(Kind.WRITE)
    rig.now = rig.initiator.timer()
    rig.initiator.tick(rig.now)
    [run] = [run for run in rig.initiator.transmit(rig.now) if run.request is first]
    rig.now += 3
    rig.initiator.left_late(run, rig.now)
    rig.answer(tag, OURS)
    assert first.done and rig.initiator.ghosts == 1
    assert not rig.tags(Kind.WRITE)
    rig.now += rig.initiator.quarantine
    assert rig.tags(Kind.WRITE)


def test_a_path_whose_last_measure_is_old_gets_a_try() -> None:
    """The last answers before a cut may have taken long; they must not keep the path idle once it is mended."""
    path = Path("link0", b"\2" * 6, b"\4" * 6, 9000, Config(buffer_count=16), 255, Copies(1), random.Random(1), 0.0)
    read = path.flights[Class.READ]
    read.rtt.sample(0.5, 1.0)
    read.heard = 1.0
    assert path.expected(Kind.READ, 1.5) == pytest.approx(0.5)
    path.flights[Class.CONTROL].rtt.sample(0.001, 3.0)
    assert path.expected(Kind.READ, 1.5) == pytest.approx(0.5)
    assert path.expected(Kind.READ, 3.0) == pytest.approx(0.001)
    read.count = path.outstanding = 1  # one try at a time
    assert path.expected(Kind.READ, 3.0) > 0.5
