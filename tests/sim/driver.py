# SPDX-License-Identifier: BSD-3-Clause
"""What `aoe_nbd.engine` is to the core, step by step the same, on the virtual clock; and the rules for what leaves the host."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aoe_nbd.core import batch, encode
from aoe_nbd.core.constants import WINDOW_MOST
from aoe_nbd.core.copies import FLYING, GHOST, LOST, MASK, PROBED, Run
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.policy import OnDead
from aoe_nbd.core.request import CHANGES, Request
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.frames import Config

from .checker import Violation
from .ether import Copy, mix
from .targets import READS, WRITES, describe

if TYPE_CHECKING:
    from .world import World

_HEADER = struct.Struct(">6s6sHBBHBBI")
_FOREVER = float("inf")
_BATCH = 4  # frames waiting, from which on the engine looks at them as an array
LATE = 0.01  # s after which the engine tells the core that frames have left late
_SPIN = 100  # steps in a row that find nothing to do, each within
_BUSY = 200e-6  # s of the last, are a busy loop (for each path: every one may have its own reason to try again in 1 ms)


class Link:
    """One of our interfaces."""

    def __init__(self, name: str, mac: bytes, mtu: int) -> None:
        self.name, self.mac, self.mtu, self.up = name, mac, mtu, True


class Driver:
    """Moves frames between core and ether. `kind` is the class of initiator: the true one, or a mutant."""

    checks_tags = True  # what the mutants of some rules switch off, so that the data must show it
    checks_overlap = True

    def __init__(self, world: World, kind: type[Initiator]) -> None:
        s = world.scenario
        self.world, self.kind = world, kind
        self.links = [Link(f"link{i}", bytes((2, 0, 0, 0, 1, i)), s.mtu) for i in range(s.links)]
        self.names = {link.name: i for i, link in enumerate(self.links)}
        self.stalled_until = 0.0  # our I/O thread does not run
        self.frozen_until = 0.0  # nothing of our process runs
        self.pause = 0.0  # how long it will be frozen between asking the core for frames and sending them
        self.send_failures: list[Any] = []
        self._tags: set[int] = set()
        self._spare: deque[int] = deque(maxlen=64)
        self.headers = encode.Headers(np.zeros((WINDOW_MOST, encode.ROW), np.uint8))
        self._rows: dict[int, tuple[Any, int]] = {}  # by a run's first number: an array of headers, and its place there
        self._under_way: dict[int, Request] = {}
        self._inbox: list[Request] = []
        self._received: list[tuple[str, bytes]] = []
        self._wake_set = False
        self._timer_at = _FOREVER
        self._idle = 0  # times in a row that the timer fired for nothing
        self._idle_since = 0.0
        self._steps = 0
        self._mixed = s.seed << 20
        self._lives = 0  # of our process
        self.initiator = self._start()

    def _start(self) -> Initiator:
        world, s = self.world, self.world.scenario
        now = world.clock.now
        self._lives += 1
        initiator = self.kind(
            Address(*world.address),
            seed=s.seed * 1000 + self._lives,
            now=now,
            on_dead=OnDead(s.on_dead),
            learn_paths=s.learn,
        )
        if s.tag_start is not None and not now:
            initiator.copies.next = s.tag_start
        return initiator

    def attach(self, learned: bool) -> None:
        """Tell the initiator of its paths, as discovery found them."""
        world = self.world
        for i in range(len(self.links)):
            for remote in range(world.scenario.remotes):
                if not learned or (i, remote) == (0, 0):
                    self.add_path(i, world.mac_of(remote))
        for link in self.links:
            if not link.up:
                self.initiator.link_changed(link.name, link.mac, link.mtu, False, world.clock.now)
        self.step()

    def add_path(self, link: int, mac: bytes) -> None:
        """Discovery has found this MAC."""
        ours = self.links[link]
        config = Config(buffer_count=self.world.scenario.buffers, sector_count=self.world.target.most)
        self.initiator.add_path(ours.name, ours.mac, mac, ours.mtu, config, self.world.clock.now)

    def crash(self) -> None:
        """The process dies and another takes its place."""
        self._received.clear()
        self._inbox.clear()
        self.frozen_until = self.pause = 0.0
        self._under_way.clear()
        self._timer_at = _FOREVER
        self.initiator = self._start()

    # -- the engine's loop -------------------------------------------------------------------------------------------

    def arrived(self, link: int, frame: bytes) -> None:
        """A frame is in the receive ring."""
        self._received.append((self.links[link].name, frame))
        if not self._wake_set:
            self._wake_set = True
            now = self.world.clock.now
            delay = 2e-6 + mix(self._mixed + self._steps) * self.world.scenario.wake
            self.world.clock.at(max(now + delay, self.stalled_until), self._woken)

    def _woken(self) -> None:
        self._wake_set = False
        self._idle = 0
        self.step()

    def step(self) -> None:
        """One turn of the loop."""
        now = self.world.clock.now
        initiator = self.initiator
        self._steps += 1
        received, self._received = self._received, []
        for name in dict.fromkeys(link for link, _ in received):
            self._receive(name, [frame for link, frame in received if link == name], now)
        if self._steps % 32 == 0:
            self._check_bounds()
        if initiator.timer() <= now or self._steps % 61 == 0:  # a tick is harmless at any time
            initiator.tick(now)
        self._settle(now)

    def _receive(self, link: str, frames: list[bytes], now: float) -> None:
        initiator = self.initiator
        if len(frames) < _BATCH or min(map(len, frames)) < 24:
            for frame in frames:
                initiator.receive(link, frame, now)
            return
        width = max(60, *map(len, frames))
        rows = np.frombuffer(b"".join(f.ljust(width, b"\xee") for f in frames), np.uint8).reshape(len(frames), width)
        lengths = np.array([len(frame) for frame in frames])
        self.world.counters["batches"] += 1
        batch.receive(initiator, link, rows, lengths, now, lambda frame: initiator.receive(link, frame, now))

    def _settle(self, now: float) -> None:
        initiator = self.initiator
        self._transmit(now)
        if initiator.completed:
            self._idle = 0
            completed = list(initiator.completed)
            initiator.completed.clear()
            for request in completed:
                request.token(request)
        if initiator.events:
            if self.world.trace:
                for event in initiator.events:
                    self.world.say(f"  event {event.what}: {event.text}")
            initiator.events.clear()
        at = initiator.timer()
        if at < self._timer_at:
            self._timer_at = at
            # A timer that is late already fires at once: a turn of the loop takes a microsecond or two.
            self.world.clock.at(max(at, now + 2e-6, self.stalled_until), self._fired, at)

    def _fired(self, at: float) -> None:
        if at != self._timer_at:
            return  # it was set to fire earlier since
        self._timer_at = _FOREVER
        if self.world.clock.now < self.stalled_until:
            self._timer_at = at
            self.world.clock.at(self.stalled_until, self._fired, at)
            return
        now = self.world.clock.now
        if not self._idle:
            self._idle_since = now
        self._idle += 1
        if self._idle > _SPIN:
            if now - self._idle_since < _SPIN * _BUSY / max(1, len(self.initiator.paths)):
                raise Violation("spin", f"the timer has fired {self._idle} times in a row for nothing: a busy loop")
            self._idle = 0
        self.step()

    def submit(self, request: Request) -> None:
        """A client's thread: submit, and send what may be sent at once; whoever holds the lock does so for others."""
        self._inbox.append(request)
        if not self.world.scenario.crowded:
            self._take_in()
        elif len(self._inbox) == 1:
            self.world.clock.at(self.world.clock.now + 30e-6, self._take_in)

    def _take_in(self) -> None:
        now = self.world.clock.now
        if now < self.frozen_until:
            self.world.clock.at(self.frozen_until, self._take_in)
            return
        inbox, self._inbox = self._inbox, []
        for request in inbox:
            self.initiator.submit(request, now)
        self._settle(now)

    def resume(self) -> None:
        now = self.world.clock.now
        self.initiator.resume(now)
        self._settle(now)

    def release(self, lock: Request) -> None:
        now = self.world.clock.now
        self.initiator.release(lock, now)
        self._settle(now)

    def link_changed(self, index: int) -> None:
        """We hear of a change of an interface."""
        if self.world.clock.now < self.frozen_until:
            self.world.clock.at(self.frozen_until, self.link_changed, index)
            return
        link = self.links[index]
        self.initiator.link_changed(link.name, link.mac, link.mtu, link.up, self.world.clock.now)
        self.step()

    # -- sending -----------------------------------------------------------------------------------------------------

    def _transmit(self, now: float) -> None:
        initiator = self.initiator
        runs = initiator.transmit(now)
        if self.pause and any(run.request.resent for run in runs):  # where it does most harm
            if self.world.trace:
                self.world.say(f"our process is frozen for {self.pause:.6f} s")
            self.frozen_until = self.stalled_until = now + self.pause
            self.pause = 0.0
        at = max(now, self.frozen_until)
        self._fill(runs)
        for run in runs:
            sent, failure = self._send(run, now, at)
            if sent and at > now + LATE:
                self.left_late(run, sent, at)
            if sent < run.count:
                initiator.unsent(run, sent, failure, now)
            if sent:
                self._idle = 0
        buffers = max(1, self.world.scenario.buffers)
        under_way = [path.outstanding for path in initiator.paths if path.up]
        asked = [path.outstanding for path in initiator.paths if not path.up]
        excess = sum(under_way) - buffers
        if excess > 0:  # questions put to a path while it was not up: nobody knew then whose buffers they take
            table = initiator.copies
            seqs = [table.find(tag) for tag in self._spare]
            excess -= sum(seq >= 0 and table.state[seq & MASK] == FLYING for seq in seqs)
        if excess > 0 or max(asked, default=0) > buffers or min(under_way + asked, default=0) < 0:
            raise Violation(
                "courtesy", f"{under_way} frames outstanding, {asked} questions; the target has {buffers} buffers"
            )

    def _fill(self, runs: Sequence[Run]) -> None:
        """Make the headers of some of the runs as arrays as well, to be compared with the frames one by one."""
        self._rows.clear()
        for group in encode.together(runs, WINDOW_MOST):
            count = sum(run.count for run in group)
            if count > 1 and group[0].seq % 13 == 0 and self.checks_tags:
                self.headers.fill(self.initiator, group)
                rows, at = self.headers.rows[:count].copy(), 0
                for run in group:
                    self._rows[run.seq] = rows, at
                    at += run.count

    def left_late(self, run: Run, sent: int, at: float) -> None:
        """Frames have left long after the core was asked for them."""
        self.initiator.left_late(run, at)

    def _send(self, run: Run, now: float, at: float) -> tuple[int, str]:
        world = self.world
        index = self.names[run.path.link]
        link = self.links[index]
        rows, at_row = self._rows.pop(run.seq, (None, 0))
        if run.request.path is None:
            self._check_overlap(run.request)
        for i in range(run.count):
            header, payload = self.encode(run, i)
            if rows is not None and header[:36] != rows[at_row + i].tobytes()[:36]:
                raise Violation(
                    "encode",
                    f"frame {i} of a run is {header.hex()} alone, {rows[at_row + i].tobytes().hex()} in the run",
                )
            frame = header if payload is None else header + payload
            if not link.up:
                return i, "ENETDOWN"
            if len(frame) - 14 > link.mtu:
                return i, "EMSGSIZE"
            for fault in self.send_failures:
                if fault.link in (-1, index) and mix(self._mixed + self._steps * 64 + i) < fault.rate:
                    return i, "ENOBUFS"
            self._check(run, frame, link)
            tag = int.from_bytes(frame[20:24], "big")
            number = run.request.token.op if run.request.token is not None else 0
            spare = run.request.path is not None and not run.path.up
            world.tag_op[tag] = number
            if spare:
                self._spare.append(tag)
            if world.trace:
                world.say(f"  {link.name} > {run.path.remote.hex(':')[-5:]} {describe(frame)} op {number}")
            copy = Copy(len(self._tags), tag, number, run.request.kind, at, spare)
            if at > now:
                world.clock.at(at, self._thawed, self.initiator, index, run.path.remote, frame, copy)
            else:
                world.send(index, run.path.remote, frame, copy)
        return run.count, ""

    def _thawed(self, sender: Initiator, link: int, remote: bytes, frame: bytes, copy: Copy) -> None:
        """A frame leaves that our process was about to send when it froze. A process that was killed meanwhile sends nothing."""
        if sender is self.initiator:
            self.world.send(link, remote, frame, copy)

    def _check_overlap(self, request: Request) -> None:
        """Sectors that are being written are in no other request that is under way."""
        if self._under_way.get(id(request)) is request or not self.checks_overlap:
            return
        for other in list(self._under_way.values()):
            if other.done:
                del self._under_way[id(other)]
            elif (
                (other.kind in CHANGES or request.kind in CHANGES)
                and other.lba < request.lba + request.count
                and request.lba < other.lba + other.count
            ):
                raise Violation(
                    "overlap",
                    f"op {request.token.op} {request.kind.name} {request.lba}+{request.count} is sent while "
                    f"op {other.token.op} {other.kind.name} {other.lba}+{other.count} is under way",
                )
        self._under_way[id(request)] = request

    def encode(self, run: Run, i: int) -> tuple[bytes, memoryview | None]:
        """The bytes of one frame."""
        return encode.frame(self.initiator, run, i)

    def _check(self, run: Run, frame: bytes, link: Link) -> None:
        """What no frame of ours may ever be, whatever happens."""
        dst, src, ethertype, flags, error, major, minor, command, tag = _HEADER.unpack_from(frame)
        world = self.world
        if len(frame) < 60 or ethertype != 0x88A2 or flags != 0x10 or error:
            raise Violation("frame", f"{len(frame)} bytes, type {ethertype:#x}, flags {flags:#x}, error {error}")
        if (major, minor) != world.address or dst[0] & 1 or src != link.mac:
            raise Violation("frame", f"to {major}.{minor} at {dst.hex(':')} from {src.hex(':')}")
        if not tag >> 31 or tag == 0xFFFFFFFF:
            raise Violation("tag", f"tag {tag:08x}")
        if tag in self._tags and self.checks_tags:
            raise Violation("tag", f"tag {tag:08x} is used again")
        self._tags.add(tag)
        if command == 1:
            return
        aflags, _, count, opcode = frame[24:28]
        lba = int.from_bytes(frame[28:34], "little")
        if bool(aflags & 1) != (opcode in (*WRITES, 0x06)) or aflags & ~0x41:
            raise Violation("frame", f"AFlags {aflags:#x} with opcode {opcode:#x}")
        if opcode in READS + WRITES:
            wide = opcode in (0x24, 0x34, 0x3D)
            if wide != bool(aflags & 0x40) or (not wide and lba >> 28 != 0xE):
                raise Violation("frame", f"AFlags {aflags:#x}, LBA {lba:#x} with opcode {opcode:#x}")
            lba = lba if wide else lba & 0x0FFFFFFF
            if not count or lba + count > world.most_capacity or (opcode in WRITES and len(frame) != 36 + 512 * count):
                raise Violation("frame", f"{count} sectors at {lba} in {len(frame)} bytes")

    def _check_bounds(self) -> None:
        """No queue grows with the time that trouble lasts."""
        initiator = self.initiator
        flights = [flight for path in initiator.paths for flight in path.flights.values()]
        sizes = {
            "questions": (len(initiator._control), 32 * len(initiator.paths)),
            "parts to send again": (len(initiator._again), 500),
            "copies in order": (sum(len(flight._order) for flight in flights), 2000),
            "ends of ghosts": (len(initiator._ghost_ends), 2000),
            "early writes": (len(initiator._early), 100),
            "copies of a request": (max([len(r.resent) for r in initiator._pending.values()], default=0), 1000),
            "paths": (len(initiator.paths), 64),
        }
        for name, (size, most) in sizes.items():
            if size > most:
                raise Violation("bounds", f"{size} {name}")

    # -- for the checks at the end -----------------------------------------------------------------------------------

    def leaks(self, copies: bool) -> str:
        """What the initiator holds although nothing is asked of it any more; empty if nothing."""
        initiator = self.initiator
        found = {
            "ranges": len(initiator._lock),
            "ghosts": initiator.ghosts,
            "waiting": initiator.waiting,
            "early": len(initiator._early),
            "quiesced": int(initiator.quiesced),
            "locks": initiator._locks,
            "ready": sum(not r.done for r in initiator._ready),
            "again": sum(not r[2].done for r in initiator._again),
            "copies": self._live_copies() if copies else 0,
        }
        return ", ".join(f"{count} {name}" for name, count in found.items() if count)

    def _live_copies(self) -> int:
        """Copies of clients' requests that count as under way, lost, or ghosts."""
        table = self.initiator.copies
        count = 0
        for state in (FLYING, LOST, GHOST, PROBED):
            at = table.state.find(state)
            while at >= 0:
                run = table.run[at]
                count += run is not None and run.request.path is None
                at = table.state.find(state, at + 1)
        return count
