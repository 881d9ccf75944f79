# SPDX-License-Identifier: BSD-3-Clause
"""What the initiator does with any bytes from the network: it never fails, and takes nothing that is not exactly a reply."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aoe_nbd.core.batch import receive as receive_rows
from aoe_nbd.core.exchange import Exchange
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.codes import ERROR, RESPONSE, SECTOR, Ata, Command
from aoe_nbd.wire.frames import ATA_SIZE, Config, MaskList, Reserve, build_header, parse_header, taskfile
from examples import examples
from inmemory import E1_0, LINK, LOCAL, REMOTE, REMOTE2, Lan, Scripted, reply, rows_of, write_request

FILL = 0x5A


class Waiting:
    """An initiator with a read, a write and a flush under way to a target that says nothing."""

    def __init__(self) -> None:
        self.lan = Lan()
        self.peer = Scripted()
        self.lan.peer(self.peer)
        self.initiator = self.lan.attach()
        self.buffer = bytearray([FILL]) * (2 * SECTOR)
        self.read = Request(Kind.READ, 8, 2, memoryview(self.buffer))
        self.write = write_request(100, b"W" * SECTOR)
        self.flush = Request(Kind.FLUSH)
        self.requests = (self.read, self.write, self.flush)
        for request in self.requests:
            self.lan.submit(request)
        self.lan.run(lambda: len(self.peer.seen) == 3)
        self.frames = {frame[27]: frame for frame in self.peer.seen}
        self.now = self.lan.now

    def untouched(self) -> bool:
        return self.buffer.count(FILL) == len(self.buffer) and not any(request.done for request in self.requests)


def acceptable(waiting: Waiting, frame: bytes) -> bool:
    """Whether the rules of acceptance let this frame through, said once more and independently of the initiator."""
    if len(frame) < 24 or frame[12:14] != b"\x88\xa2" or frame[6:12] != REMOTE or frame[16:19] != b"\0\1\0":
        return False
    if not frame[14] & RESPONSE or frame[19] != Command.ATA:
        return False
    asked = next((f for f in waiting.frames.values() if f[20:24] == frame[20:24]), None)
    if asked is None:
        return False
    if frame[14] & ERROR:
        return True
    if len(frame) < 36:
        return False
    failed = frame[27] & 0xA9 and not (asked[27] in (Ata.FLUSH, Ata.FLUSH_EXT) and frame[27] == asked[27])
    return bool(failed) or asked[27] != Ata.READ_EXT or len(frame) >= 36 + 2 * SECTOR


def bent_reply(rng: random.Random, waiting: Waiting) -> bytes:
    """A reply to one of the three, a few bytes of which are changed; or cut; or a frame of another kind altogether."""
    asked = rng.choice(list(waiting.frames.values()))
    kind = rng.randrange(10)
    if kind == 0:
        return rng.randbytes(rng.randrange(80))
    if kind == 1:
        return build_header(LOCAL, REMOTE, 1, 0, rng.randrange(256), rng.randrange(1 << 32), rng.randrange(16)) + bytes(
            rng.randrange(600)
        )
    if kind == 2:  # announcements, true and crooked
        config = Config(rng.randrange(16), b"x" * rng.randrange(5), rng.randrange(1 << 16), 0, rng.randrange(256))
        source = rng.choice((REMOTE, REMOTE2, b"\xff" * 6))
        frame = (
            build_header(LOCAL, source, 1, 0, Command.CONFIG, 0, RESPONSE | rng.choice((0, 0, ERROR))) + config.build()
        )
        return frame[: rng.randrange(20, len(frame) + 1)]
    data = b"D" * (SECTOR * rng.choice((0, 1, 2, 2, 3)))
    status = rng.choice((0, 0x40, 0x41, rng.randrange(256)))
    answer = bytearray(reply(asked, data, status=status, error=rng.randrange(256)))
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3))):
        answer[rng.choice((*range(6, 24), rng.randrange(28)))] ^= 1 << rng.randrange(8)
    return bytes(answer[: rng.randrange(len(answer) + 1)]) if rng.randrange(3) == 0 else bytes(answer)


@pytest.mark.parametrize("seed", range(10))
def test_only_exact_replies_are_taken(seed: int) -> None:
    """30,000 bent replies. What an independent reading of the rules refuses must leave no trace in any request."""
    rng = random.Random(seed)
    waiting = Waiting()
    taken = 0
    for _ in range(3_000):
        frame = bent_reply(rng, waiting)
        waiting.initiator.receive(LINK, memoryview(frame), waiting.now)
        if acceptable(waiting, frame) or not waiting.initiator.up:
            taken += not waiting.untouched()
            waiting = Waiting()
        else:
            assert waiting.untouched(), frame.hex()
    assert taken > 20  # the test does let some through


@examples(1_500)
@given(st.data())
def test_only_exact_replies_are_taken_with_shrinking(data: st.DataObject) -> None:
    waiting = shared()
    asked = data.draw(st.sampled_from(sorted(waiting.frames.values())))
    frame = bytearray(reply(asked, b"D" * (SECTOR * data.draw(st.integers(0, 3)))))
    for at in data.draw(st.lists(st.integers(0, 35), max_size=4)):
        frame[at] = data.draw(st.integers(0, 255))
    cut = bytes(frame[: data.draw(st.integers(0, len(frame)))])
    waiting.initiator.receive(LINK, cut, waiting.now)
    if acceptable(waiting, cut) or not waiting.initiator.up:
        _shared.clear()
    else:
        assert waiting.untouched()


_shared: list[Waiting] = []


def shared() -> Waiting:
    if not _shared:
        _shared.append(Waiting())
    return _shared[0]


@pytest.mark.parametrize("seed", range(6))
def test_an_array_of_frames_is_taken_as_its_frames_would_be(seed: int) -> None:
    """Streams of replies with gaps, repeats, strangers and nonsense in them, by the array route and one by one."""
    rng = random.Random(seed)
    for _ in range(25):
        count, sectors, bend = rng.randrange(1, 40), rng.choice((1, 2, 3)), rng.choice((10, 30, 100))
        states: list[Any] = []
        sides = []
        for _ in range(2):
            lan = Lan()
            peer = Scripted(sectors=sectors, buffers=64)
            lan.peer(peer)
            initiator = lan.attach()
            buffer = bytearray(count * SECTOR)
            requests = [Request(Kind.READ, 0, count, memoryview(buffer)), write_request(1000, b"w" * (count * SECTOR))]
            for request in requests:
                lan.submit(request)
            lan.pause(0.1)
            sides.append((lan, initiator, requests, buffer, lan.requests(Ata.READ_EXT, Ata.WRITE_EXT)))
        assert sides[0][4] == sides[1][4]
        frames = []
        for asked in sides[0][4]:
            for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 0, 2))):
                n = asked[26] if asked[27] == Ata.READ_EXT else 0
                lba = int.from_bytes(asked[28:34], "little")
                data = b"".join(bytes([(lba + i) % 251 + 1]) * SECTOR for i in range(n))
                answer = bytearray(reply(asked, data + b"junk" * rng.choice((0, 0, 0, 9))))
                if rng.randrange(bend) == 0:  # status, flags, error, address, tag, source above all
                    at = rng.choice((rng.randrange(28), 27, 27, 14, 15, 16, 19, 23, 11))
                    answer[at] ^= 1 << rng.randrange(8)
                if rng.randrange(2 * bend) == 0:
                    del answer[rng.randrange(len(answer)) :]
                frames.append(bytes(answer))
        if rng.randrange(3) == 0:
            rng.shuffle(frames)
        if not frames:
            continue
        for way, (lan, initiator, requests, buffer, _) in enumerate(sides):
            now = lan.now + 0.0001
            if way:
                rows, lengths = rows_of(frames)
                receive_rows(initiator, LINK, rows, lengths, now, lambda f, i=initiator, t=now: i.receive(LINK, f, t))
            else:
                for frame in frames:
                    initiator.receive(LINK, frame, now)
            states.append(
                (
                    bytes(buffer),
                    [(r.done, r.error, r.reason, bytes(r.answered), r.left) for r in requests],
                    initiator.outstanding(),
                    [(p.state, p.heard, p.strikes, p.window.size, p.sizes.limit) for p in initiator.paths],
                    bytes(initiator.copies.state),
                    dict(initiator.counters),
                    initiator.ghosts,
                )
            )
        assert states[0] == states[1]


def test_array_rows_that_are_shorter_than_they_say_are_not_read_past() -> None:
    """A reply of half the data in a row whose other half is somebody else's."""
    lan = Lan()
    lan.peer(Scripted(buffers=64))
    initiator = lan.attach()
    buffer = bytearray(8 * SECTOR)
    request = Request(Kind.READ, 0, 8, memoryview(buffer))
    lan.submit(request)
    frames = [reply(f, b"D" * (2 * SECTOR))[: ATA_SIZE + SECTOR] for f in lan.requests(Ata.READ_EXT)]
    rows = np.full((len(frames), 2048), ord("X"), np.uint8)
    for i, frame in enumerate(frames):
        rows[i, : len(frame)] = np.frombuffer(frame, np.uint8)
    lengths = np.array([len(frame) for frame in frames])
    receive_rows(initiator, LINK, rows, lengths, lan.now, lambda f: initiator.receive(LINK, f, lan.now))
    assert buffer == bytes(8 * SECTOR)
    assert not request.done


QUESTIONS: list[Any] = [Config(), taskfile(Ata.IDENTIFY), MaskList(), Reserve()]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: type(q).__name__)
@examples(500)
@given(data=st.data())
def test_an_exchange_takes_only_answers_to_itself(question: Any, data: st.DataObject) -> None:
    exchange = Exchange([(LINK, LOCAL)], question, seed=5, now=0, timeout=9, shelf=1, slot=0, remote=REMOTE)
    ((_, asked),) = exchange.due(0.0)
    answer = bytearray(build_header(LOCAL, REMOTE, 1, 0, asked[19], parse_header(asked).tag, RESPONSE) + bytes(12))
    for at in data.draw(st.lists(st.integers(0, 23), max_size=3)):
        answer[at] = data.draw(st.integers(0, 255))
    frame = bytes(answer[: data.draw(st.integers(0, len(answer)))])
    right = (
        len(frame) >= 24
        and frame[6:14] == REMOTE + b"\x88\xa2"
        and frame[14] & RESPONSE
        and frame[16:24] == asked[16:24]
    )
    assert exchange.receive(LINK, frame, 0.1) == bool(right)
    assert len(exchange.answers) == bool(right)


@pytest.mark.parametrize("seed", range(4))
def test_an_initiator_survives_a_hostile_network(seed: int) -> None:
    """Half of all that comes in is bent, and the rest is lost, doubled, late and out of order: the data come out right."""
    rng = random.Random(seed)
    lan = Lan()
    port = lan.target("ggaoed" if seed % 2 else "ours")
    lan.attach()
    for line in (port.to, port.back):
        line.loss, line.reorder, line.hold = 0.05, 0.1, 0.005
        line.random.seed(seed)
    # Replies only: a WRITE that the network doubles by itself, late, is beyond what any initiator can know of.
    port.back.dup, port.back.dupdelay = 0.1, 0.02
    hear = lan.hear

    def noisy(link: str, frame: bytes) -> None:
        """Before each frame, one that differs in source, ethertype, address, command or direction, and one cut short."""
        crooked = bytearray(frame)
        crooked[rng.choice((*range(6, 14), *range(16, 20)))] ^= 1 << rng.randrange(8)
        if rng.randrange(4) == 0:
            crooked = bytearray(frame)
            crooked[14] &= ~RESPONSE
        hear(link, bytes(crooked))
        hear(link, frame[: rng.randrange(24)])
        hear(link, frame)

    lan.hear = noisy  # type: ignore[method-assign]
    disk: dict[int, bytes] = {}
    for i in range(60):
        lba, count = rng.randrange(200), rng.randrange(1, 30)
        data = rng.randbytes(count * SECTOR)
        lan.write(lba, data)
        disk |= {lba + k: data[k * SECTOR : (k + 1) * SECTOR] for k in range(count)}
        lba, count = rng.randrange(200), rng.randrange(1, 30)
        expected = b"".join(disk.get(lba + k, bytes(SECTOR)) for k in range(count))
        assert lan.read(lba, count) == expected, i
    for lba, sector in disk.items():
        assert port.disk.sector(lba) == sector


def fresh(seed: int = 1) -> Initiator:
    return Initiator(E1_0, seed=seed, now=0.0)


@examples(2_000)
@given(st.binary(max_size=120))
def test_an_initiator_without_paths_takes_nothing(frame: bytes) -> None:
    initiator = _EMPTY
    initiator.receive(LINK, frame, 0.0)
    assert initiator.transmit(0.0) == []
    assert initiator.paths == []
    assert initiator.completed == []


_EMPTY = fresh()
