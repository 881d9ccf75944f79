# SPDX-License-Identifier: BSD-3-Clause
"""The network: carries frames between host and targets, and harms them as the scenario says.

Every frame has a number, and what befalls it is a function of the seed and that number alone, so that mishaps can be
switched off one by one (`Keep.mishaps`) while the others stay as they were.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from .scenario import LIFE, NOISE, Fault

if TYPE_CHECKING:
    from .world import World

_MASK = (1 << 64) - 1
_HEADER = struct.Struct(">6s6sHBBHBBI")
MARK = struct.Struct(">IIQ")  # op, power epoch, sector: what each sector is filled with
REPEAT = 512 // MARK.size
POISON = 0xFFFFFFFE  # the op number in data that nobody may ever see


class Copy:
    """One frame of ours on its way, and what became of it: known to the simulation, not to those in it."""

    __slots__ = ("kind", "number", "op", "sent", "spare", "tag")

    def __init__(self, number: int, tag: int, op: int, kind: int, sent: float, spare: bool) -> None:
        self.number, self.tag, self.op, self.kind, self.sent = number, tag, op, kind, sent
        self.spare = spare  # a question to a path that is not up: nobody knows yet whose buffers it takes


def mix(value: int) -> float:
    """A number in [0, 1) that looks random (splitmix64)."""
    value = value * 0x9E3779B97F4A7C15 & _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return (value ^ value >> 31) / 2**64


def data_of(op: int, epoch: int, sector: int) -> bytes:
    """The 512 bytes by which an operation marks a sector."""
    return MARK.pack(op, epoch, sector) * REPEAT


class Ether:
    """Paths are (link, remote); `reply` is 0 from us to the target and 1 back."""

    def __init__(self, world: World) -> None:
        s = world.scenario
        self.world = world
        self._frames = 0
        self._salt = s.seed << 24
        self._last: dict[tuple[int, int, int], float] = {}
        self._noise: dict[tuple[int, int, int], list[Fault]] = {}
        for link in range(s.links):
            for remote in range(s.remotes + 1):
                for reply in (0, 1):
                    self._noise[link, remote, reply] = [
                        f
                        for f in s.faults
                        if f.kind in NOISE
                        and f.link in (-1, link)
                        and f.remote in (-1, remote)
                        and f.reply in (-1, reply)
                        and not (f.kind == "blackhole" and f.reply < 0 and reply == f.number % 2)
                    ]

    def number(self) -> int:
        """The next frame's."""
        self._frames += 1
        return self._frames

    def carry(
        self,
        link: int,
        remote: int,
        reply: int,
        frame: bytes,
        sent: float,
        deliver: Callable[[bytes], None],
    ) -> None:
        """Bring `frame` over, or not. `sent` is when the copy that it belongs to was sent."""
        world = self.world
        clock, s = world.clock, world.scenario
        now = clock.now
        self._frames += 1
        number = self._frames
        seed = self._salt + number * 32
        base = s.latency[(link * s.remotes + remote) % len(s.latency)]
        key = (link, remote, reply)
        at = now + base * (1 + mix(seed) * 0.5)
        overtakes = twice = False
        for k, fault in enumerate(self._noise[key], 1):
            if not fault.at <= now < fault.until:
                continue
            kind = fault.kind
            if kind == "blackhole":
                if len(frame) - 14 > fault.size:
                    return
                continue
            if fault.rate < 1.0:
                if mix(seed + k) >= fault.rate:
                    continue
                if world.keep.mishaps is not None and number not in world.keep.mishaps:
                    continue
                world.mishaps[number] = kind
            if world.trace:
                world.say(f"      ! {kind} of frame {number} {'reply' if reply else 'request'}")
            rng = random.Random(seed + k)
            if kind == "loss":
                return
            if kind == "dup":
                if reply:
                    clock.at(min(at + base * rng.uniform(0, 30), sent + LIFE), deliver, frame)
                else:
                    twice = True
            elif kind == "spike":
                at, overtakes = at + fault.size * rng.uniform(0.3, 1), True
            elif kind == "reorder":
                at, overtakes = at + base * rng.uniform(0, 20), True
            elif kind == "truncate":
                frame = frame[: rng.randrange(len(frame))]
                if not reply:  # a write without all of its data is refused
                    world.excuse_tag(int.from_bytes(frame[20:24], "big"))
            elif kind == "corrupt":
                frame = corrupt(frame, reply, rng, world)
            elif kind == "forge":
                twin = forged(frame, reply, rng, world)
                if twin is not None:
                    clock.at(now + base * rng.uniform(0.1, 3), world.at_host, link, twin)
                if not reply:
                    return
        if overtakes:
            at = min(at, sent + LIFE)
        else:
            at = self._last[key] = max(at, self._last.get(key, 0.0))
        clock.at(at, deliver, frame)
        if twice:
            clock.at(at, deliver, frame)


def _header(frame: bytes, **changes: int | bytes) -> bytes:
    if len(frame) < 24:
        return frame
    names = ("dst", "src", "ethertype", "flags", "error", "major", "minor", "command", "tag")
    fields = dict(zip(names, _HEADER.unpack_from(frame), strict=True))
    return _HEADER.pack(*{**fields, **changes}.values()) + frame[24:]


def _elsewhere(tag: int, rng: random.Random) -> int:
    """A tag that is none of those alive: these are close together, and this one is far off, or no tag of ours at all."""
    return rng.choice((tag ^ 1 << rng.randrange(17, 31), tag & ~(1 << 31), 0, 0xFFFFFFFF, tag ^ 0x5A5A0000))


def corrupt(frame: bytes, reply: int, rng: random.Random, world: World) -> bytes:
    """Change one field of the header, as far as that is fair.

    Ethernet's CRC makes a changed frame that is *valid and different* practically impossible, and nobody could defend
    himself against one: so the ATA registers and data are left alone, no tag becomes that of another live copy, and no
    failure becomes a success. What remains are frames that must be dropped, refused, or executed with the answer lost.
    """
    what = rng.randrange(9)
    if len(frame) < 24:
        return frame
    if what == 0:
        return _header(frame, dst=rng.randbytes(6))
    if what == 1:  # a stranger's address, or nobody's
        return _header(frame, src=rng.choice((world.stranger_mac, rng.randbytes(6))))
    if what == 2:
        return _header(frame, ethertype=rng.choice((0x0800, 0x88A3, 0xA288)))
    if what == 3:
        return _header(frame, flags=frame[14] ^ 0x08)
    if what == 4:
        return _header(frame, major=rng.randrange(0xFFFF) ^ 0x4000)
    if what == 5:
        return _header(frame, minor=rng.randrange(1, 255))
    if what == 6:
        return _header(frame, command=rng.choice((1 - frame[19] if reply and frame[19] < 2 else 2, 3, 4, 240)))
    if what == 7:
        return _header(frame, tag=_elsewhere(int.from_bytes(frame[20:24], "big"), rng))
    if reply:  # a false refusal: the client may be told of a failure that was none
        world.excuse_tag(int.from_bytes(frame[20:24], "big"))
        return _header(frame, flags=frame[14] | 0x04, error=rng.choice((1, 3, 6)))
    return _header(frame, flags=rng.choice((0x20, 0x00, 0x14, 0x11)))


def forged(frame: bytes, reply: int, rng: random.Random, world: World) -> bytes | None:
    """An answer full of lies that differs from the true one in at least one field that must be looked at.

    Such frames do exist: another LUN's or initiator's answers, a switch that floods, a target that cuts its replies short.
    """
    if len(frame) < 36:
        return None
    dst, src, _, flags, _, major, minor, command, tag = _HEADER.unpack_from(frame)
    if not reply:
        dst, src = src, dst
    if flags & 0x04 or command > 1:
        return None
    read = command == 0 and (frame[27] in (0x20, 0x24) if not reply else len(frame) > 60)
    identify = command == 0 and not reply and frame[27] == 0xEC
    if command == 1:
        body = struct.pack(">HHBBH", 9999, 1, 255, 0x10, 0)
    else:
        body = struct.pack(">BBBB8x", 0, 0, 0, 0x40)
        if read or identify:
            sectors = max(1, frame[26] if not reply else (len(frame) - 36) // 512)
            body += data_of(POISON, 0, 0) * sectors
    twin = _HEADER.pack(dst, src, 0x88A2, 0x18, 0, major, minor, command, tag) + body
    what = rng.randrange(7 if read or identify else 6)
    if what == 0:
        return _header(twin, tag=tag ^ 1 << rng.randrange(17, 31))
    if what == 1:
        return _header(twin, src=rng.choice((world.stranger_mac, rng.randbytes(6))))
    if what == 2:
        return _header(twin, major=major ^ 1)
    if what == 3:
        return _header(twin, minor=minor ^ 1)
    if what == 4:
        return _header(twin, flags=0x10)
    if what == 5:
        return _header(twin, command=rng.choice((1 - command, 2, 3)))
    return twin[: rng.randrange(24, 36 + 512)]  # less than the one sector at least that was asked for
