# SPDX-License-Identifier: BSD-3-Clause
"""Any bytes into the target, as every personality: it never crashes and never sends what belongs to somebody else.

The request lies inside a bigger buffer of somebody else's bytes, as it does in the receive ring.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aoe_nbd.target import OURS, PERSONALITIES, Backend, Faults, Lun, Personality, State
from aoe_nbd.target.state import StateError
from aoe_nbd.wire.address import Address
from examples import examples

US = bytes.fromhex("0200000000bb")
ME = bytes.fromhex("0200000000aa")
SECTORS = 40
SPY = b"\xf5SPY\xfa"
AROUND = SPY * 2200
CONTENT = b"".join(bytes([0x30 + i]) * 512 for i in range(SECTORS))
LIKES = {"ours": OURS, **PERSONALITIES}


class Bench:
    """One export, put back to the same beginning before each example."""

    def __init__(self, path: Path, like: Personality) -> None:
        path.write_bytes(CONTENT)
        self.path = path
        self.lun = Lun(Address(7, 3), Backend(str(path)), like=like, seed=1)

    def ask(self, frame: bytes, mtu: int, state: State) -> list[bytes]:
        """The replies, every one checked for what must hold of any."""
        memory = bytearray(AROUND)
        memory[100 : 100 + len(frame)] = frame
        self.lun.state = state
        replies = [bytes(r) for r in self.lun.handle(memoryview(memory)[100 : 100 + len(frame)], US, mtu)]
        like = self.lun.like
        assert len(replies) <= 1
        for reply in replies:
            assert reply[0:6] == frame[6:12]
            assert reply[6:14] == US + b"\x88\xa2"
            assert reply[14] & 8
            assert reply[16:19] == b"\x00\x07\x03"
            assert reply[19:24] == frame[19:24]
            if SPY not in frame:
                assert SPY not in reply
                assert SPY not in state.config
            if like is OURS:
                assert 60 <= len(reply) <= mtu + 14 or len(reply) == 60
                assert reply[14] & 0xF3 == 0x10
                self.check(frame, reply)
        return replies

    def check(self, frame: bytes, reply: bytes) -> None:
        """Every byte of a reply of ours is accounted for."""
        if reply[14] & 4:
            known = {0: 36, 1: 32 + int.from_bytes(reply[30:32], "big"), 2: 28, 3: 26 + 6 * reply[25]}
            end = 24 if reply[15] in (1, 3, 5) or not any(reply[24:]) else known[reply[19]]
            assert reply[15] in (1, 2, 3, 4, 5, 6)
            if reply[19] == 0 and end == 36:
                assert reply[24:36] == frame[24:36]
        elif reply[19] == 0:
            assert reply[24] == frame[24]
            assert reply[28:36] == frame[28:34] + b"\0\0"
            data = reply[27] == 0x40 and frame[27] in (0x20, 0x24)
            end = 36 + 512 * (reply[26] if data else 1 if reply[27] == 0x40 and frame[27] == 0xEC else 0)
            if data:
                lba = int.from_bytes(frame[28:34], "little") & ((1 << 48) - 1 if frame[24] & 0x40 else 0x0FFFFFFF)
                assert reply[36:end] == self.path.read_bytes()[lba * 512 : lba * 512 + end - 36]
        elif reply[19] == 1:
            end = 32 + int.from_bytes(reply[30:32], "big")
        elif reply[19] == 2:
            end = 28 if reply[26] else 28 + 8 * reply[27]
        else:
            end = 26 + 6 * reply[25]
        assert len(reply) == max(60, end)
        if frame[14] >> 4 == 1:
            assert not any(reply[end:])


@contextlib.contextmanager
def bench(like: str) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="aoe-nbd-test-") as folder:
        yield Bench(Path(folder) / "disk", LIKES[like])


mtus = st.sampled_from([1500, 9000, 576, 1060, 100])
macs = st.sampled_from([ME, US, b"\x02" * 6, b"\xff" * 6, bytes(6)])
states = st.builds(
    lambda config, mask, reserved: (config, mask, reserved),
    st.sampled_from([b"", b"abc", b"x" * 1024]),
    st.sampled_from([[], [], [ME], [US], [struct.pack(">HI", 2, i) for i in range(254)] + [ME]]),
    st.sampled_from([[], [], [ME], [US], [ME] * 255]),
)


def fresh(parts: tuple[bytes, list[bytes], list[bytes]]) -> State:
    config, mask, reserved = parts
    return State(config, list(mask), list(reserved))


header = st.builds(
    lambda dst, src, verfl, error, major, minor, command, tag: (
        dst + src + struct.pack(">HBBHBBI", 0x88A2, verfl, error, major, minor, command, tag)
    ),
    st.sampled_from([US, US, US, b"\xff" * 6, ME]),
    macs,
    st.sampled_from([0x10, 0x10, 0x10, 0x10, 0x17, 0x18, 0x00, 0x20, 0xFF]),
    st.sampled_from([0, 0x77]),
    st.sampled_from([7, 7, 7, 0xFFFF, 8]),
    st.sampled_from([3, 3, 3, 0xFF, 4]),
    st.sampled_from([0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 255]),
    st.integers(0, 0xFFFFFFFF),
)
ata = st.builds(
    lambda flags, feature, n, opcode, lba, size, data: (
        struct.pack(">BBBB", flags, feature, n, opcode) + lba.to_bytes(6, "little") + b"\1\2" + (data * 9000)[:size]
    ),
    st.sampled_from([0, 1, 0x40, 0x41, 0xFF]),
    st.sampled_from([0, 1, 255]),
    st.sampled_from([0, 1, 1, 2, 3, 17, 18, 255]),
    st.sampled_from([0x20, 0x24, 0x30, 0x34, 0x3D, 0x06, 0xE5, 0xE7, 0xEA, 0xEC, 0x25, 0x00]),
    st.sampled_from([0, 5, 38, 39, 40, 1 << 28, (1 << 48) - 1, 5 | 0xE << 28, 39 | 0xF << 28, (1 << 32) + 5]),
    st.sampled_from([0, 0, 1, 511, 512, 1024, 8704]),
    st.binary(min_size=1, max_size=24),
)
config = st.builds(
    lambda ccmd, length, string: struct.pack(">HHBBH", 1, 2, 3, ccmd, length) + string,
    st.integers(0, 255),
    st.sampled_from([0, 1, 3, 4, 8, 28, 29, 1024, 1025, 0xFFFF]),
    st.sampled_from([b"", b"abc", b"abcd", b"x" * 1024, b"x" * 1100]),
)
mask = st.builds(
    lambda mcmd, merror, count, directives: struct.pack(">BBBB", 9, mcmd, merror, count) + b"".join(directives),
    st.sampled_from([0, 1, 1, 1, 2, 255]),
    st.sampled_from([0, 0, 1, 255]),
    st.sampled_from([0, 1, 2, 3, 255]),
    st.lists(st.builds(lambda d, m: bytes([0, d]) + m, st.sampled_from([0, 1, 1, 2, 3, 255]), macs), max_size=4),
)
reserve = st.builds(
    lambda rcmd, count, holders: struct.pack(">BB", rcmd, count) + b"".join(holders),
    st.sampled_from([0, 1, 1, 2, 2, 3, 255]),
    st.sampled_from([0, 1, 2, 255]),
    st.lists(macs, max_size=3),
)


@pytest.mark.parametrize("like", list(LIKES))
def test_any_bytes(like: str) -> None:
    with bench(like) as target:

        @examples(400)
        @given(frame=st.binary(max_size=120))
        def any_bytes(frame: bytes) -> None:
            target.ask(frame, 1500, State())

        any_bytes()


@pytest.mark.parametrize("like", list(LIKES))
def test_any_bytes_after_a_good_header(like: str) -> None:
    with bench(like) as target:

        @examples(600)
        @given(command=st.integers(0, 4), rest=st.binary(max_size=100))
        def any_argument(command: int, rest: bytes) -> None:
            head = US + ME + struct.pack(">HBBHBBI", 0x88A2, 0x10, 0, 7, 3, command, 0x80000001)
            target.ask(head + rest, 1500, State())

        any_argument()


@pytest.mark.parametrize("like", list(LIKES))
@pytest.mark.parametrize("argument", [ata, config, mask, reserve], ids=["ata", "config", "mask", "reserve"])
def test_fuzzed_fields(like: str, argument: st.SearchStrategy[bytes]) -> None:
    most = 600 if argument is ata else 250
    with bench(like) as target:

        @examples(most)
        @given(head=header, body=argument, mtu=mtus, parts=states, cut=st.integers(0, 80), pad=st.booleans())
        def fuzzed(
            head: bytes, body: bytes, mtu: int, parts: tuple[bytes, list[bytes], list[bytes]], cut: int, pad: bool
        ) -> None:
            frame = head + body
            if cut > 70:
                frame = frame[: cut - 40]
            if pad:
                frame = frame.ljust(60, b"\0")
            target.ask(frame, mtu, fresh(parts))
            if target.lun.like.checks_bounds:
                assert os.path.getsize(target.path) == SECTORS * 512
            else:  # qaoed grows files without end
                os.truncate(target.path, SECTORS * 512)

        fuzzed()


FRAMES = 100  # an example


def wild(rng: random.Random) -> bytes:
    """A frame that is wild somewhere, and mostly good elsewhere. Much faster than strategies, but does not shrink."""
    if rng.random() < 0.05:
        return rng.randbytes(rng.randrange(100))
    pick = rng.choice
    command = pick((0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3, rng.randrange(256)))
    head = pick((US, US, US, US, b"\xff" * 6, ME)) + pick((ME, ME, ME, US, rng.randbytes(6)))
    verfl = rng.randrange(256) if rng.random() < 0.1 else 0x10
    shelf, slot = pick((7, 7, 7, 7, 0xFFFF, 8)), pick((3, 3, 3, 3, 0xFF, 4))
    head += struct.pack(">HBBHBBI", 0x88A2, verfl, rng.randrange(256), shelf, slot, command, rng.getrandbits(32))
    rest = rng.randbytes(pick((0, 6, 36, 600, 1100)))
    if rng.random() < 0.2:
        return head + rest
    count = pick((0, 1, 1, 2, 3, 18, rng.randrange(256)))
    if command == 0:
        lba = pick((0, 5, 37, 38, 39, 40, rng.getrandbits(48)))
        flags = pick((0, 1, 0x40, 0x41, rng.randrange(256)))
        opcode = pick((0x20, 0x24, 0x30, 0x34, 0x3D, 0x06, 0xE5, 0xE7, 0xEA, 0xEC, rng.randrange(256)))
        if opcode in (0x20, 0x30) and lba < 41:
            lba |= 0xE << 28
        return head + bytes([flags, pick((0, 1)), count, opcode]) + lba.to_bytes(6, "little") + b"\0\0" + rest
    if command == 1:
        return head + struct.pack(">HHBBH", 0, 0, 0, rng.randrange(256 if rng.random() < 0.1 else 6), len(rest)) + rest
    if command == 2:
        directives = (bytes([0, rng.randrange(4)]) + pick((ME, rng.randbytes(6))) for _ in range(min(count, 9)))
        return head + bytes([0, pick((0, 1, 1, 2)), 0, count]) + b"".join(directives)
    return (
        head + bytes([rng.randrange(4), count]) + b"".join(pick((ME, rng.randbytes(6))) for _ in range(min(count, 9)))
    )


@pytest.mark.parametrize("like", list(LIKES))
def test_many_wild_frames(like: str) -> None:
    """A hundred frames an example, the state carried on from each to the next."""
    with bench(like) as target:

        @examples(250)
        @given(seed=st.integers(0, 1 << 64))
        def frames(seed: int) -> None:
            rng = random.Random(seed)
            state = State()
            for _ in range(FRAMES):
                target.ask(wild(rng), rng.choice((1500, 1500, 9000, 576, 100)), state)
                if state.mask and ME not in state.mask:
                    state.mask.clear()
            if not target.lun.like.checks_bounds:
                os.truncate(target.path, SECTORS * 512)

        frames()
        # it was not all turned away at the door
        assert {"read", "write", "flush", "identify"} - {"flush"} <= set(target.lun.counters)


def test_what_is_read_was_written() -> None:
    """Good requests only: the export is an array of sectors, whatever was asked of it before."""
    with bench("ours") as target:
        model = bytearray(CONTENT)
        operation = st.tuples(
            st.sampled_from(["read", "write", "fua", "trim"]),
            st.booleans(),
            st.integers(0, SECTORS - 1),
            st.integers(1, 17),
            st.integers(1, 255),
        )

        @examples(1000)
        @given(operation)
        def step(what: tuple[str, bool, int, int, int]) -> None:
            kind, wide, lba, n, fill = what
            n = min(n, SECTORS - lba)
            data = b"" if kind == "read" else bytes([fill]) * (512 * n)
            flags, opcode, feature, count = {
                "read": (0x40 * wide, 0x24 if wide else 0x20, 0, n),
                "write": (0x40 * wide | 1, 0x34 if wide else 0x30, 0, n),
                "fua": (0x41, 0x3D, 0, n),
                "trim": (0x41, 0x06, 1, 1),
            }[kind]
            if kind == "trim":
                data = (lba | n << 48).to_bytes(8, "little").ljust(512, b"\0")
            lba_field = lba if flags & 0x40 else lba | 0xE0000000
            body = bytes([flags, feature, count, opcode]) + lba_field.to_bytes(6, "little") + b"\0\0" + data
            head = US + ME + struct.pack(">HBBHBBI", 0x88A2, 0x10, 0, 7, 3, 0, 0x80000001)
            (reply,) = target.ask(head + body, 9000, State())
            assert reply[27] == 0x40
            here = slice(lba * 512, (lba + n) * 512)
            if kind == "read":
                assert reply[36:] == model[here]
            else:
                model[here] = bytes(n * 512) if kind == "trim" else data
            assert target.path.read_bytes() == model

        step()


@examples(500)
@given(st.lists(st.text(alphabet="abceilmnoprstuvwy.=,0123456789x-", max_size=30), max_size=3))
def test_fault_options(options: list[str]) -> None:
    with contextlib.suppress(ValueError):
        faults = Faults.parse(options)
        faults.inbound.push(b"x" * 60, 0)
        faults.inbound.pop(1e9)


ANY_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=12),
    lambda s: st.lists(s) | st.dictionaries(st.text(), s),
    max_leaves=8,
)
MACS = st.lists(st.sampled_from(["02:00:00:00:00:01", "020000000001", "02:00", "zz"])) | ANY_JSON


@examples(500)
@given(
    ANY_JSON
    | st.fixed_dictionaries({}, optional={"config": st.just("6162") | ANY_JSON, "mask": MACS, "reserved": MACS})
)
@example({"config": "", "mask": [None], "reserved": []})
@example({"config": "", "mask": {"02:00:00:00:00:01": 1}, "reserved": []})
def test_state_files(content: object) -> None:
    with tempfile.TemporaryDirectory(prefix="aoe-nbd-test-") as folder:
        (Path(folder) / "e7.3.json").write_text(json.dumps(content))
        with contextlib.suppress(StateError):
            State.load(folder, Address(7, 3))
