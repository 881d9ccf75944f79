# SPDX-License-Identifier: BSD-3-Clause
"""Plain requests that `Batch` carries out, together or alone, give what `Lun.handle` gives: the same replies in the same
order, the same disk, the same counters.

All get the same requests: runs of good ones, with everything between and around them that is not good. `Batch` sees
them as the ring shows them, as rows of a wider array with other people's data behind each frame.
"""

from __future__ import annotations

import errno
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from aoe_nbd.target import OURS, PERSONALITIES, Backend, Lun, State
from aoe_nbd.target.batch import MOST, Batch
from aoe_nbd.target.lun import Frame
from aoe_nbd.wire.address import Address

US = bytes.fromhex("0200000000bb")
ME = bytes.fromhex("0200000000aa")
OTHER = bytes.fromhex("0200000000cc")
GROUP = b"\x03" * 6
SECTORS = 300
SLOT = 18 * 512 + 200
ADDRESSES = Address(7, 3), Address(7, 4), Address(8, 3)  # the last is read-only
READS, WRITES = (0x20, 0x24), (0x30, 0x34, 0x3D)


class Storage(Backend):
    """A file whose flush is only noted: a real one takes milliseconds."""

    flushes = 0
    broken = False

    def flush(self) -> None:
        self.flushes += 1
        if self.broken:
            raise OSError(errno.EIO, "broken")


class Twin:
    """The same exports as others have: one for batches, one for single frames, one for `Lun.handle`."""

    def __init__(
        self, folder: Path, content: bytes, states: list[tuple[list[bytes], list[bytes]]], direct: bool = False
    ) -> None:
        self.luns: list[Lun] = []
        for number, (address, (mask, reserved)) in enumerate(zip(ADDRESSES, states, strict=True)):
            path = folder / str(number)
            path.write_bytes(content)
            backend = Storage(str(path), read_only=number == 2, direct=direct)
            self.luns.append(Lun(address, backend, State(b"", list(mask), list(reserved)), serial="twin"))
        self.by_address = {(lun.address.shelf, lun.address.slot): lun for lun in self.luns}
        self.replies: list[bytes] = []
        self.batch = Batch(self.by_address)
        self.stretches = self.alone = self.flushed = 0

    def one(self, frame: memoryview, mtu: int) -> None:
        _, major, minor = struct.unpack_from(">16sHB", frame.tobytes().ljust(24, b"\0"))
        if len(frame) >= 24 and (lun := self.by_address.get((major, minor))):
            self.replies += [bytes(reply) for reply in lun.handle(frame, US, mtu)]

    def single(self, frame: memoryview, mtu: int) -> None:
        reply = self.batch.one(frame, US, mtu)
        if reply is None:
            self.one(frame, mtu)
        else:
            self.alone += 1
            self.replies.append(bytes(reply))

    def together(self, frames: list[bytes], mtu: int, rng: random.Random) -> None:
        memory = np.frombuffer(bytearray(rng.randbytes(SLOT)) * len(frames), np.uint8).reshape(-1, SLOT)
        rows = memory[:, 82:]
        for row, frame in zip(rows, frames, strict=True):
            row[: len(frame)] = np.frombuffer(frame, np.uint8)
        lengths = np.array([len(frame) for frame in frames], np.uint32)

        def send(count: int, share: int) -> None:
            self.stretches += 1
            self.flushed = sum(lun.backend.flushes for lun in self.luns)
            self.replies += self.batch.outbox.frames(0, count, share)

        def otherwise(odd: list[Frame]) -> None:
            for frame in odd:
                self.one(memoryview(frame), mtu)

        for at in range(0, len(frames), MOST):
            self.batch.serve(rows[at : at + MOST], lengths[at : at + MOST], US, mtu, send, otherwise)


def requests(rng: random.Random, mtu: int) -> list[bytes]:
    """Up to 256 requests, mostly in runs."""
    frames: list[bytes] = []
    pick = rng.choice
    while len(frames) < pick((3, 40, 256)):
        address, opcode, count = pick((*ADDRESSES, ADDRESSES[0])), pick(READS + WRITES), pick((1, 2, 2, 8, 17, 18))
        sources, dst = pick(((ME,), (ME,), (OTHER,), (ME, OTHER), (ME, GROUP))), pick((US, US, US, US, ME, b"\xff" * 6))
        flags = {0x20: 0, 0x24: 0x40, 0x30: 1, 0x34: 0x41, 0x3D: 0x41}[opcode]
        step, lba = pick((count, count, count, 1, 0, -1)), rng.randrange(SECTORS)
        spoilt = pick((0, 0, 0, 0.02, 0.3))
        for _ in range(pick((1, 2, 5, 40, 120))):
            fields = {
                "src": pick(sources),
                "dst": dst,
                "verfl": 0x10,
                "error": 0,
                "shelf": address.shelf,
                "slot": address.slot,
                "command": 0,
                "tag": rng.getrandbits(32),
                "flags": flags,
                "feature": 0,
                "count": count,
                "opcode": opcode,
                "lba": max(0, lba) | (0 if flags & 0x40 else pick((0, 0xE << 28, 0xFF << 40))),
                "reserved": 0,
                "size": count * 512 if flags & 1 else pick((0, 24)),
            }
            if rng.random() < spoilt:
                name = pick(list(fields))
                fields[name] = {
                    "src": pick((ME, OTHER, GROUP)),
                    "dst": pick((US, OTHER, b"\xff" * 6)),
                    "verfl": rng.randrange(256),
                    "shelf": pick((7, 8, 0xFFFF)),
                    "slot": pick((3, 4, 0xFF)),
                    "command": rng.randrange(5),
                    "tag": rng.getrandbits(32),
                    "lba": pick((rng.randrange(SECTORS), SECTORS - count + pick((0, 1)), rng.getrandbits(48))),
                    "reserved": 0xFFFF,
                    "size": rng.randrange(17 * 512),
                }.get(name, rng.randrange(256))
            head = [*fields.values()]
            frame = head[1] + head[0] + struct.pack(">HBBHBBI4B", 0x88A2, *head[2:12])
            frame += head[12].to_bytes(6, "little") + struct.pack(">H", head[13]) + rng.randbytes(head[14])
            if rng.random() < spoilt:
                frame = frame[: rng.randrange(14, len(frame) + 1)]
            frames.append(frame[: SLOT - 82])
            lba += step
    return frames[:256]


@pytest.mark.parametrize("seed", range(150))
def test_batches_give_what_frame_by_frame_gives(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = rng.randbytes(SECTORS * 512)
    lists = ([], [], [], [ME], [ME, OTHER], [OTHER])
    states = [(rng.choice(lists), rng.choice(lists)) for _ in ADDRESSES]
    twins = []
    for name in "abc":
        (tmp_path / name).mkdir()
        twins.append(Twin(tmp_path / name, content, states, direct=seed % 10 == 0))
    batches, singles, handled = twins
    for _ in range(4):
        mtu = rng.choice((1500, 9000, 9000, 576, 100))
        frames = requests(rng, mtu)
        batches.together(frames, mtu, rng)
        for frame in frames:
            singles.single(memoryview(frame), mtu)
            handled.one(memoryview(frame), mtu)
        assert batches.replies == handled.replies
        assert singles.replies == handled.replies
        for twin in batches, singles:
            for one, other in zip(twin.luns, handled.luns, strict=True):
                assert one.counters == other.counters
                assert one.backend.flushes == other.backend.flushes or twin is batches  # one for a stretch
                assert Path(one.backend.path).read_bytes() == Path(other.backend.path).read_bytes()


def test_good_requests_are_batched(tmp_path: Path) -> None:
    """What the test above compares is not twice the same path."""
    rng = random.Random(1)
    twin = Twin(tmp_path, bytes(SECTORS * 512), [([], [])] * 3)
    for opcode, flags in ((0x24, 0x40), (0x34, 0x41), (0x3D, 0x41), (0x20, 0), (0x30, 1)):
        head = US + ME + struct.pack(">HBBHBB", 0x88A2, 0x10, 0, 7, 3, 0)
        frames = [
            head + struct.pack(">I4B", i, flags, 0, 2, opcode) + (2 * i).to_bytes(6, "little") + bytes(2 + 1024)
            for i in range(64)
        ]
        twin.together(frames, 1500, rng)
        assert twin.flushed == (opcode in (0x3D, 0x20, 0x30))  # once, and before its replies
        twin.single(memoryview(frames[0]), 1500)
        twin.luns[0].backend.flushes = twin.flushed
    assert twin.stretches == twin.alone == 5
    assert len(twin.replies) == 5 * 65


def test_a_flush_that_fails_is_told_to_every_request(tmp_path: Path) -> None:
    twin = Twin(tmp_path, bytes(SECTORS * 512), [([], [])] * 3)
    twin.luns[0].backend.broken = True
    head = US + ME + struct.pack(">HBBHBB", 0x88A2, 0x10, 0, 7, 3, 0)
    twin.together(
        [head + struct.pack(">I4B", i, 0x41, 0, 1, 0x3D) + bytes(520) for i in range(10)], 1500, random.Random(1)
    )
    twin.single(memoryview(head + struct.pack(">I4B", 10, 0x41, 0, 1, 0x3D) + bytes(520)), 1500)
    assert [reply[27] for reply in twin.replies] == [0x61] * 11


@pytest.mark.parametrize("like", list(PERSONALITIES))
def test_other_targets_are_not_batched(tmp_path: Path, like: str) -> None:
    twin = Twin(tmp_path, bytes(SECTORS * 512), [([], [])] * 3)
    twin.luns[0].like = PERSONALITIES[like]
    assert twin.luns[0].like is not OURS
    head = US + ME + struct.pack(">HBBHBB", 0x88A2, 0x10, 0, 7, 3, 0)
    frames = [head + struct.pack(">I4B", i, 0x40, 0, 1, 0x24) + bytes(32) for i in range(10)]
    twin.together(frames, 1500, random.Random(1))
    twin.single(memoryview(frames[0]), 1500)
    assert not twin.stretches
    assert not twin.alone


def test_addresses_are_not_taken_for_a_stream_where_they_turn_over(tmp_path: Path) -> None:
    """Past 2^32 in the low word of a wide LBA, past 2^28 in a narrow one."""
    twins = []
    for name in "ab":
        (tmp_path / name).mkdir()
        twins.append(Twin(tmp_path / name, bytes(1024), [([], [])] * 3))
        for lun in twins[-1].luns:
            os.truncate(lun.backend.path, (1 << 32) * 512 + 100 * 512)
            lun.refresh()
    head = US + ME + struct.pack(">HBBHBB", 0x88A2, 0x10, 0, 7, 3, 0)
    for wide, top, turn in (
        (0x40, 1 << 32, 1 << 48),
        (0x40, 1 << 32, 1 << 32),
        (0, 1 << 28, 1 << 28),
        (0, 1 << 28, 1 << 32),
    ):
        for flags, data in ((1, True), (0, False)):
            opcode = {(0, 0): 0x20, (0, 1): 0x30, (0x40, 0): 0x24, (0x40, 1): 0x34}[wide, flags]
            frames = [
                head
                + struct.pack(">I4B", i, wide | flags, 0, 2, opcode)
                + ((top - 20 + 2 * i) % turn).to_bytes(6, "little")
                + (bytes(2) + bytes([i + 1]) * 1024 if data else bytes(26))
                for i in range(20)
            ]
            twins[0].together(frames, 1500, random.Random(1))
            for frame in frames:
                twins[1].one(memoryview(frame), 1500)
            assert twins[0].replies == twins[1].replies
    assert twins[0].stretches
    for lba in (0, (1 << 28) - 20, (1 << 32) - 20):
        found = []
        for twin in twins:
            with open(twin.luns[0].backend.path, "rb") as file:
                file.seek(lba * 512)
                found.append(file.read(40 * 512))
        assert found[0] == found[1]


def test_a_storage_that_shrank_is_told_request_by_request(tmp_path: Path) -> None:
    content = bytes(range(256)) * 2 * SECTORS
    twins = []
    for name in "abc":
        (tmp_path / name).mkdir()
        twins.append(Twin(tmp_path / name, content, [([], [])] * 3))
    batches, singles, handled = twins
    head = US + ME + struct.pack(">HBBHBB", 0x88A2, 0x10, 0, 7, 3, 0)
    frames = [
        head + struct.pack(">I4B", i, 0x40, 0, 2, 0x24) + (2 * i).to_bytes(6, "little") + bytes(26) for i in range(64)
    ]
    for twin in twins:
        with open(twin.luns[0].backend.path, "r+b") as file:
            file.truncate(100 * 512)
    batches.together(frames, 1500, random.Random(1))
    for frame in frames:
        singles.single(memoryview(frame), 1500)
        handled.one(memoryview(frame), 1500)
    assert batches.replies == singles.replies == handled.replies
    assert {reply[27] for reply in batches.replies} == {0x40, 0x61}
