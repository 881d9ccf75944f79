# SPDX-License-Identifier: BSD-3-Clause
"""Targets, as small as they can be and written anew: an oracle must not share its errors with what it judges.

A disk maps a sector to the operation that wrote it. What a target executes, it executes at one instant.
"""

from __future__ import annotations

import random
import struct
from typing import TYPE_CHECKING

from .checker import Value, Violation
from .ether import MARK, REPEAT, Copy, data_of
from .scenario import LIFE

if TYPE_CHECKING:
    from .world import World

_HEADER = struct.Struct(">6s6sHBBHBBI")
_ATA = struct.Struct(">BBBB6sH")
_CONFIG = struct.Struct(">HHBBH")

READS = (0x20, 0x24)
WRITES = (0x30, 0x34, 0x3D)
TRIM, FLUSH, FLUSH_EXT, IDENTIFY, POWER = 0x06, 0xE7, 0xEA, 0xEC, 0xE5
STRANGER = 0xFFFFFFFD  # op number of the stranger's data


class Disk:
    """Sectors, what of them is on stable storage, and how large it is."""

    def __init__(self, durable: str, capacity: int) -> None:
        self.durable, self.capacity = durable, capacity
        self.epoch = 0
        self.values: dict[int, Value] = {}
        self._cached: dict[int, Value] = {}  # sector -> what stable storage still has

    def get(self, sector: int) -> Value:
        return self.values.get(sector, Value(0, 0))

    def put(self, sector: int, value: Value, fua: bool) -> None:
        if self.durable == "flush" and fua:
            self._cached.pop(sector, None)
        elif self.durable != "sync":
            self._cached.setdefault(sector, self.get(sector))
        self.values[sector] = value

    def flush(self) -> None:
        if self.durable == "flush":
            self._cached.clear()

    def cut(self, rng: random.Random) -> None:
        """The power fails: of what was not flushed, some stays and some goes."""
        for sector, stable in self._cached.items():
            if rng.random() < 0.6:
                self.values[sector] = stable
        self._cached.clear()
        self.epoch += 1


class Target:
    """One LUN behind one or more MACs."""

    foreign = False

    def __init__(self, world: World, disk: Disk, serial: str) -> None:
        s = world.scenario
        self.world, self.disk, self.serial = world, disk, serial
        self.down = False
        self.mtu = s.mtu
        self.most = 0  # sectors it takes in a frame
        self.generation = 0  # of its process
        self.inside: dict[Copy, int] = {}  # frames that occupy its buffers
        self.neighbours = 0  # buffers that another initiator occupies
        self.refuse: tuple[float, int] = (0.0, 0)  # how often, and what
        self.measure()
        self._busy = 0.0
        self._batch: list[tuple[int, int, bytes, Copy, int, int]] = []
        self._rng = random.Random(s.seed ^ 0x7A267)

    def measure(self) -> None:
        """Take the sector limit from the MTU, as vblade does when it is asked."""
        self.most = max(1, min(255, (self.mtu - 36) // 512))
        if self.world.scenario.rounding and self.most > 3:
            self.most -= 1 - self.most % 2

    def restart(self) -> None:
        """Forget what is not on the disk."""
        self.generation += 1
        self.inside.clear()
        self._batch.clear()
        self._busy = 0.0

    # -- frames ------------------------------------------------------------------------------------------------------

    def arrive(self, link: int, remote: int, frame: bytes, copy: Copy) -> None:
        """A frame has come in by one of our ports."""
        world, s = self.world, self.world.scenario
        now = world.clock.now
        if self.down or len(frame) < 36 or len(frame) - 14 > self.mtu or now - copy.sent > LIFE:
            return
        _, _, ethertype, flags, _, major, minor, command, _ = _HEADER.unpack_from(frame)
        if ethertype != 0x88A2 or flags != 0x10 or (major, minor) != world.address or command > 1:
            return
        mine = sum(not other.spare for other in self.inside)
        full = mine >= max(1, s.buffers) and not copy.spare and copy not in self.inside
        if full and not self.foreign and not world.superseded():
            raise Violation("courtesy", f"{mine + 1} frames at a target that has {s.buffers} buffers")
        if s.enforced and mine and mine + self.neighbours >= max(1, s.buffers):
            world.counters["overflow"] += 1
            return
        if copy in self.inside:  # the network has made two of it: they are executed together (see __init__)
            self.inside[copy] += 1
            return
        self.inside[copy] = 1
        rng, service = self._rng, s.service
        if s.serving == "fifo":
            self._busy = max(self._busy, now) + service * rng.uniform(0.5, 1.5)
            world.clock.at(self._busy, self._execute, link, remote, frame, copy, self.generation)
        elif s.serving == "threads":
            took = service * rng.choice((0.3, 1, 1, 3, 20))
            world.clock.at(now + took, self._execute, link, remote, frame, copy, self.generation)
        else:  # as ggaoed: what came within a while is sorted
            if not self._batch:
                world.clock.at(now + service * rng.uniform(1, 8), self._work_batch, self.generation)
            order = int.from_bytes(frame[28:34], "little") if rng.random() < 0.7 else rng.randrange(1 << 40)
            self._batch.append((order, len(self._batch), frame, copy, link, remote))

    def _work_batch(self, generation: int) -> None:
        if generation == self.generation:
            batch, self._batch = sorted(self._batch, key=lambda entry: entry[:2]), []
            for _, _, frame, copy, link, remote in batch:
                self._execute(link, remote, frame, copy, generation)

    def _execute(self, link: int, remote: int, frame: bytes, copy: Copy, generation: int) -> None:
        world, s = self.world, self.world.scenario
        if generation != self.generation or self.down:
            return
        times = self.inside.pop(copy)
        copy.spare = True  # should the network have made two of it, then the second is not our fault
        if world.clock.now - copy.sent > LIFE:
            return
        dst, src, _, _, _, major, minor, command, tag = _HEADER.unpack_from(frame)
        mine = world.stranger_mac if self.foreign and not world.taken_over(dst) else dst
        refused = 0
        if self.refuse[0] and self._rng.random() < self.refuse[0]:
            refused = self.refuse[1]
            world.excused.add(copy.op)
        flags, error, body = 0x18, 0, b""
        if refused and refused < 0x100:
            flags, error, body = 0x1C, refused, self._rng.choice((frame[24:36], bytes(12)))
        elif refused:
            body = _ATA.pack(0, refused & 0xFF, 0, refused >> 8, bytes(6), 0)
            if command:
                return
        elif command == 1:
            self.measure()
            body = self._config()
        else:
            answer = self._ata(frame, copy, dst)
            if isinstance(answer, int):
                flags, error, body = 0x1C, answer, frame[24:36]
            else:
                body = answer
        reply = _HEADER.pack(src, mine, 0x88A2, flags, error, major, minor, command, tag) + body
        if s.trailing and self._rng.random() < 0.5:
            reply += self._rng.randbytes(self._rng.randrange(1, 600))
        if len(reply) - 14 > self.mtu + 36 and not s.trailing:
            return
        if world.trace:
            world.say(f"    {self.serial} {describe(frame)} -> {'refused' if flags & 4 else 'ok'}")
        if s.twice and self._rng.random() < s.twice:
            times += 1
        for _ in range(times):
            world.reply(link, remote, src, reply, copy.sent)

    def _config(self) -> bytes:
        return _CONFIG.pack(self.world.scenario.buffers, 1, self.most, 0x10, 0)

    def announcement(self, mac: bytes) -> bytes:
        """What it says of itself unasked."""
        self.measure()
        major, minor = self.world.address
        return _HEADER.pack(b"\xff" * 6, mac, 0x88A2, 0x18, 0, major, minor, 1, 0) + self._config()

    # -- commands ----------------------------------------------------------------------------------------------------

    def _ata(self, frame: bytes, copy: Copy, dst: bytes) -> bytes | int:
        """The reply's argument and data, or an AoE error."""
        world, s, disk = self.world, self.world.scenario, self.disk
        aflags, _, count, opcode, registers, _ = _ATA.unpack_from(frame, 24)
        lba = int.from_bytes(registers, "little")
        if opcode in (0x20, 0x30):
            lba &= 0x0FFFFFFF
        ok = _ATA.pack(aflags, 0, 0, 0x40, registers, 0)
        abort = _ATA.pack(aflags, 4, 0, 0x41, registers, 0)
        if opcode == IDENTIFY:
            return ok + world.identify(self)
        if self.foreign and dst != world.stranger_mac and not world.taken_over(dst):
            return ok + b"".join(data_of(STRANGER, 0, sector) for sector in range(lba, lba + count))
        if self.foreign:
            raise Violation("stranger", f"another disk was sent {describe(frame)}")
        if opcode in READS + WRITES:
            if count > self.most:
                return 2
            if lba + count > disk.capacity:
                return _ATA.pack(aflags, 0x10, 0, 0x41, registers, 0)
        if opcode in READS:
            return ok + b"".join(data_of(*disk.get(sector), sector) for sector in range(lba, lba + count))
        if opcode in WRITES:
            if len(frame) < 36 + 512 * count:
                return 2
            fua = opcode == 0x3D
            if fua and not s.native_fua:
                return abort
            for i in range(count):
                data = frame[36 + 512 * i : 548 + 512 * i]
                op, epoch, sector = MARK.unpack_from(data)
                if sector != lba + i or epoch or op not in world.history.writes or data != data[: MARK.size] * REPEAT:
                    raise Violation("data", f"sector {lba + i} is written with what is no client's data for it ({op})")
                self._change(lba + i, op, fua)
            return ok
        if opcode == TRIM:
            if len(frame) < 36 + 512:
                return 2
            for i in range(64):
                entry = int.from_bytes(frame[36 + 8 * i : 44 + 8 * i], "little")
                for sector in range(entry & (1 << 48) - 1, (entry & (1 << 48) - 1) + (entry >> 48)):
                    self._change(
                        sector, copy.op, False
                    )  # a value of its own for each trim, so that they can be told apart
            return ok
        if opcode == FLUSH or (opcode == FLUSH_EXT and s.flush_ext):
            disk.flush()
            status = {"plain": 0x40, "vblade": 0, "ggaoed": opcode}[s.flush_style]
            return _ATA.pack(0, self._rng.choice((0, 4, 16)), 0, status, bytes(6), 0)
        return ok if opcode == POWER else abort

    def _change(self, sector: int, op: int, fua: bool) -> None:
        world, disk = self.world, self.disk
        if world.quiet:
            raise Violation("quiesce", f"op {op} changes sector {sector} although the host was told to be quiet")
        epoch, expected = world.expected.pop((op, sector), (-1, None))
        found = disk.get(sector)
        if epoch == disk.epoch and expected != found and found.op not in world.orphans:
            raise Violation(
                "modify",
                f"sector {sector}: op {op} read {expected} and is about to write over {found}: "
                f"a read-modify-write that another write has cut in two",
            )
        disk.put(sector, Value(op, disk.epoch), fua)


class Stranger(Target):
    """Another disk with our LUN's address. It must be sent nothing but IDENTIFY and Query Config."""

    foreign = True


def describe(frame: bytes) -> str:
    """One frame in a few words."""
    if len(frame) < 36:
        return f"{len(frame)} bytes"
    tag = int.from_bytes(frame[20:24], "big")
    if frame[19] == 1:
        return f"CONFIG tag {tag:08x}"
    names = {0x20: "READ", 0x24: "READ", 0x30: "WRITE", 0x34: "WRITE", 0x3D: "WRITE FUA", TRIM: "TRIM"}
    names |= {FLUSH: "FLUSH", FLUSH_EXT: "FLUSH EXT", IDENTIFY: "IDENTIFY", POWER: "CHECK POWER"}
    if frame[14] & 8:
        return f"reply tag {tag:08x}, {len(frame)} bytes" + (f", AoE error {frame[15]}" if frame[14] & 4 else "")
    lba, count = int.from_bytes(frame[28:34], "little"), frame[26]
    where = f" {lba}+{count}" if frame[27] in READS + WRITES else ""
    return f"{names.get(frame[27], hex(frame[27]))}{where} tag {tag:08x}"
