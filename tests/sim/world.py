# SPDX-License-Identifier: BSD-3-Clause
"""One run: a scenario played out on the virtual clock, with everything that is checked on the way and at the end."""

from __future__ import annotations

import zlib
from collections import Counter
from functools import lru_cache, partial

import aoe_nbd.core.initiator as core
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.path import PathState
from aoe_nbd.wire.identify import Identify

from .checker import History, Value, Violation
from .clients import _REUSED, Client
from .clock import Clock
from .driver import Driver
from .ether import Copy, Ether, mix
from .scenario import LIFE, NOISE, Fault, Keep, Op, Scenario, draw
from .targets import Disk, Stranger, Target

PATIENCE = 40.0  # s after the last trouble in which a next operation must be done
LONGEST = 300.0  # s after the last trouble in which all must be
STRANGER_PATIENCE = 35.0  # more, if a path of ours may have been taken for a stranger's
GHOSTS = 2.5  # s after the last request in which its ghosts must vanish
AFTER = 15.0  # s after it in which all copies must be forgotten: a lost flush is given up late


@lru_cache(maxsize=4096)
def _identify(serial: str, sectors: int, lba48: bool, flush_ext: bool, fua: bool) -> bytes:
    return Identify(serial, "1", "simulated", sectors, lba48=lba48, flush_ext=flush_ext, fua=fua, trim=True).build()


class _ParsedOnce:
    """`Identify` for the core: construct takes most of a run's time if the same 512 bytes are read over and over."""

    parse = staticmethod(lru_cache(maxsize=4096)(Identify.parse))


core.Identify = _ParsedOnce  # type: ignore


class World:
    """Everything in one run. `run` returns, or raises Violation."""

    def __init__(
        self,
        seed: int,
        keep: Keep | None = None,
        mutant: type[Initiator] = Initiator,
        driver: type[Driver] = Driver,
        trace: bool = False,
    ) -> None:
        self.seed, self.keep = seed, keep or Keep()
        self.scenario: Scenario = draw(seed).kept(self.keep)
        s = self.scenario
        self.trace: list[str] | None = [] if trace else None
        self.mishaps: dict[int, str] = {}  # frame number -> what befell it
        self.counters: Counter[str] = Counter()
        self.digest = 0
        self.address = (7, 3)
        self.stranger_mac = bytes((2, 0, 0, 0, 3, 0))
        self.most_capacity = s.capacity
        self.history = History()
        self.expected: dict[tuple[int, int], tuple[int, Value]] = {}  # (op, sector) -> (epoch, what its write replaces)
        self.excused: set[int] = set()  # ops that may fail, for a target refused something of theirs
        self.progress = 0.0  # when an operation was last done
        self.orphans: set[int] = set()  # writes whose process died: they may land until the quarantine is over
        self.quiet = False  # whether an operator was told that nothing of ours can land any more
        self.tag_op: dict[int, int] = {}
        self.buffers: list[bytearray] = []
        self.clock = Clock()
        self.ether = Ether(self)
        self.target = Target(self, Disk(s.durable, s.capacity), "target")
        self.stranger = Stranger(self, Disk("sync", s.capacity - s.seed % 2), "target" if s.seed % 2 else "other")
        self._crashed = False
        self._taken: set[bytes] = set()
        self._settled_at = s.heal
        self.driver = driver(self, mutant)
        by_client: dict[int, list[Op]] = {}
        for op in s.ops:
            by_client.setdefault(op.client, []).append(op)
        self.clients = [Client(self, ops) for ops in by_client.values()]
        for fault in s.faults:
            if fault.kind not in NOISE:
                self.clock.at(fault.at, getattr(self, f"_{fault.kind}"), fault)

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.clock.now * 1e3:11.4f} ms  {text}")

    # -- wiring ------------------------------------------------------------------------------------------------------

    def mac_of(self, remote: int) -> bytes:
        """The target's MACs; one past the last is the stranger's."""
        return bytes((2, 0, 0, 0, 2, remote)) if remote < self.scenario.remotes else self.stranger_mac

    def taken_over(self, mac: bytes) -> bool:
        """Whether the stranger answers at this MAC of the target."""
        return mac in self._taken

    def send(self, link: int, remote_mac: bytes, frame: bytes, copy: Copy) -> None:
        """Our host has put a frame on the wire."""
        remote = remote_mac[5] if remote_mac[4] == 2 else self.scenario.remotes
        self.digest = zlib.crc32(frame, self.digest ^ int(self.clock.now * 1e9))
        self.ether.carry(link, remote, 0, frame, copy.sent, lambda frame: self._at_target(link, remote, frame, copy))
        s = self.scenario
        if s.flooded and remote < s.remotes and mix(self.seed * 31 + copy.number) < s.flooded:
            self.ether.carry(
                link, s.remotes, 0, frame, copy.sent, lambda frame: self.stranger.arrive(link, remote, frame, copy)
            )

    def _at_target(self, link: int, remote: int, frame: bytes, copy: Copy) -> None:
        mac = self.mac_of(remote)
        if frame[:6] != mac or not self.driver.links[link].up:
            return
        owner = self.stranger if mac == self.stranger_mac or mac in self._taken else self.target
        owner.arrive(link, remote, frame, copy)

    def reply(self, link: int, remote: int, dst: bytes, frame: bytes, sent: float) -> None:
        """A target answers by the path that it was asked by."""
        self.ether.carry(link, remote, 1, frame, sent + LIFE, lambda frame: self.at_host(link, frame))

    def at_host(self, link: int, frame: bytes) -> None:
        """A frame has come to our interface: its hardware takes those for us, and for all."""
        ours = self.driver.links[link]
        if ours.up and frame[:6] in (ours.mac, b"\xff" * 6):
            self.digest = zlib.crc32(frame, self.digest)
            if self.trace is not None:
                refused = f", refused with {frame[15]}" if len(frame) > 15 and frame[14] & 4 else ""
                what = f"tag {frame[20:24].hex()}, {len(frame)} bytes{refused}"
                self.say(f"  {ours.name} < {frame[6:12].hex(':')[-5:]} {what}")
            self.driver.arrived(link, frame)

    def identify(self, target: Target) -> bytes:
        """A disk's IDENTIFY data."""
        s = self.scenario
        return _identify(target.serial, target.disk.capacity, s.lba48, s.flush_ext, s.native_fua)

    def superseded(self) -> bool:
        """Whether a frame may be at the target that the initiator has rightly given up."""
        counters = self.driver.initiator.counters
        return self._crashed or bool(counters["lost"] or counters["probes"])

    def may_fail(self) -> bool:
        """Whether a client may be told of an error that no target sent."""
        return self.scenario.on_dead is not None and self.driver.initiator.counters["dead"] > 0

    def excuse_tag(self, tag: int) -> None:
        """A refusal was forged."""
        self.excused.add(self.tag_op.get(tag, 0))

    # -- faults that are not noise -----------------------------------------------------------------------------------

    def _flap(self, fault: Fault) -> None:
        link = fault.link
        self._carrier(link, False, fault.size)
        self.clock.at(fault.until, self._carrier, link, True, fault.size)

    def _carrier(self, link: int, up: bool, heard_after: float) -> None:
        self.say(f"link{link} {'has' if up else 'loses'} carrier")
        self.driver.links[link].up = up
        self.clock.at(self.clock.now + heard_after, self.driver.link_changed, link)
        self._trouble_until(self.clock.now + heard_after)

    def _trouble_until(self, when: float) -> None:
        self._settled_at = max(self._settled_at, when)

    def _sendfail(self, fault: Fault) -> None:
        self.driver.send_failures.append(fault)
        self.clock.at(fault.until, self.driver.send_failures.remove, fault)

    def _stall(self, fault: Fault) -> None:
        self.say(f"our I/O thread does not run until {fault.until:.6f}")
        self.driver.stalled_until = max(self.driver.stalled_until, fault.until)

    def _pause(self, fault: Fault) -> None:
        self.driver.pause = fault.until - fault.at

    def _go_down(self) -> None:
        self.target.down = True
        self.target.restart()

    def _come_back(self) -> None:
        target, s = self.target, self.scenario
        self.say("the target is back")
        target.down = False
        if s.announces:
            self._announce(target, range(s.remotes))

    def _announce(self, target: Target, remotes: range) -> None:
        for link in range(self.scenario.links):
            for remote in remotes:
                frame = target.announcement(self.mac_of(remote))
                self.ether.carry(link, remote, 1, frame, self.clock.now, partial(self.at_host, link))

    def _restart(self, fault: Fault) -> None:
        if self.target.down:
            return
        self.say("the target's process is killed")
        self._go_down()
        self.clock.at(fault.until, self._come_back)

    def _power(self, fault: Fault) -> None:
        if self.target.down:
            return
        self.say("the target's power is cut")
        self._go_down()
        disk, s = self.target.disk, self.scenario
        disk.cut(self.target._rng)
        kept = {sector: disk.get(sector) for sector in range(s.base, s.base + s.hot)}
        self.history.power_cut(self.clock.now, kept, disk.durable != "never")
        self.clock.at(fault.until, self._come_back)

    def _crash(self, fault: Fault) -> None:
        if self._taken:  # nobody could tell the stranger from the disk when he attaches to it
            return
        self.say("our process is killed and started again")
        self._crashed = True
        self.driver.crash()
        for client in self.clients:
            client.crash()
        self.driver.attach(self.scenario.learn)
        self._meet()
        self._trouble_until(self.clock.now)

    def _neighbour(self, fault: Fault) -> None:
        self.target.neighbours = int(fault.size * max(1, self.scenario.buffers) + 0.5)
        self.clock.at(fault.until, setattr, self.target, "neighbours", 0)

    def _mtu(self, fault: Fault) -> None:
        self.say(f"the target's MTU becomes {fault.size}")
        self._set_target_mtu(int(fault.size), fault.number % 2 == 0)
        self.clock.at(fault.until, self._set_target_mtu, self.scenario.mtu, fault.number % 2 == 0)

    def _set_target_mtu(self, mtu: int, announced: bool) -> None:
        self.target.mtu = mtu
        if announced and not self.target.down:
            self._announce(self.target, range(self.scenario.remotes))

    def _ours(self, fault: Fault) -> None:
        link = max(0, fault.link)
        self._set_our_mtu(link, int(fault.size))
        self.clock.at(fault.until, self._set_our_mtu, link, self.scenario.mtu)

    def _set_our_mtu(self, link: int, mtu: int) -> None:
        self.driver.links[link].mtu = mtu
        self.clock.at(self.clock.now + 1e-3, self.driver.link_changed, link)

    def _refuse(self, fault: Fault) -> None:
        self.target.refuse = (fault.rate, int(fault.size))
        self.clock.at(fault.until, setattr, self.target, "refuse", (0.0, 0))

    def _grow(self, fault: Fault) -> None:
        self.target.disk.capacity += int(fault.size)
        self.most_capacity = self.target.disk.capacity

    def _swap(self, fault: Fault) -> None:
        """The target dies, and another disk answers at its MACs; later it is back."""
        if self.target.down:
            return
        self.say("the target is taken away")
        self._go_down()
        self._trouble_until(self.clock.now + 20)
        self.clock.at(self.clock.now, self._swap_in, fault, self.clock.now + 8.0, self.clock.now)

    def _ours_up(self) -> bool:
        return any(path.up for path in self.driver.initiator.paths)

    def _swap_in(self, fault: Fault, give_up: float, silent_since: float) -> None:
        """Once no path of ours has been up for so long that nothing sent then can still arrive."""
        now = self.clock.now
        if self._ours_up():
            silent_since = now
        if now < min(silent_since + LIFE + 0.05, give_up):
            self.clock.at(now + 0.01, self._swap_in, fault, give_up, silent_since)
            return
        if (
            now < silent_since + LIFE or self.driver.initiator.identify is None
        ):  # the latter would take any disk for its own
            return self._come_back()
        self.say("another disk has taken its place")
        self._taken = {self.mac_of(remote) for remote in range(self.scenario.remotes)}
        if self.scenario.announces:
            self._announce(self.stranger, range(self.scenario.remotes))
        self.clock.at(now + 0.2 + fault.until - fault.at, self._swap_out)
        return None

    def _swap_out(self) -> None:
        if any(path.up and path.remote in self._taken for path in self.driver.initiator.paths):
            raise Violation("stranger", "a path to another disk is up")
        self.say("the other disk is gone")
        self._taken = set()
        self.stranger.restart()
        self.clock.at(self.clock.now + LIFE, self._come_back)
        self._trouble_until(self.clock.now + LIFE)

    # -- the run -----------------------------------------------------------------------------------------------------

    def _meet(self) -> None:
        """Once it knows its disk, the initiator gets to know of a stranger, and of those paths that announce themselves."""
        s, initiator = self.scenario, self.driver.initiator
        if initiator.identify is None:
            self.clock.at(self.clock.now + 0.005, self._meet)
            return
        if s.learn:
            self._announce(self.target, range(s.remotes))
        if s.stranger:
            self._announce(self.stranger, range(s.remotes, s.remotes + 1))
            for link in range(s.links):
                self.driver.add_path(link, self.stranger_mac)
            self.driver.step()

    def _finished(self) -> bool:
        return all(client.done for client in self.clients)

    def run(self) -> None:
        """Play it, and judge. Raises Violation, or whatever the core itself raises."""
        s, clock = self.scenario, self.clock
        self.driver.attach(s.learn)
        self._meet()
        clock.run(s.heal)
        if not self._finished():
            while True:
                began = max(self._settled_at, self.progress)
                limit = min(began, s.heal + LONGEST) + PATIENCE + (STRANGER_PATIENCE if self._had_stranger() else 0)
                clock.run(min(limit, clock.now + 5), self._finished)
                if self._finished():
                    break
                if clock.now >= limit:
                    waits = "; ".join(client.waits_for or "a next op" for client in self.clients if not client.done)
                    raise Violation("stuck", f"{clock.now - began:.0f} s after the last trouble or progress: {waits}")
        for wait, copies in ((GHOSTS, False), (AFTER, True)):
            clock.run(max(clock.now, self._settled_at) + wait)
            leaks = self.driver.leaks(copies)
            if leaks:
                raise Violation("leak", f"nothing is asked, and there are still {leaks}")
        for buffer in self.buffers:
            if buffer != _REUSED * (len(buffer) // 512):
                raise Violation("buffer", "a buffer was written to after its request was done")
        now = clock.now
        for sector in range(s.base, s.base + s.hot):
            self.history.read(sector, now, now, self.target.disk.get(sector), "the disk in the end")
        self.history.check()

    def _had_stranger(self) -> bool:
        initiator = self.driver.initiator
        return bool(initiator.counters["path_stranger"]) or any(p.state is PathState.STRANGER for p in initiator.paths)
