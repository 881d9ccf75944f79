# SPDX-License-Identifier: BSD-3-Clause
"""A guest that moves from host to host, on one disk, while everything goes wrong: is it ever written by the wrong host?

One seed is one life: frames are lost, delayed for up to LIFE and made two of; hosts stand still in the middle of sending;
the target is killed, and forgets its record and its reservation or keeps them; bridges are killed and started anew; moves
succeed, fail and are given back, or die half way and are taken back by an operator.

What is checked, at the target and in the guest:

    late     once a new owner has sent a write, no write of an older one is carried out
    stale    no write is carried out over a later one of the guest that it was told is done
    error    the guest sees no error where it runs, nor after a failed move
    stuck    when all is well again it goes on
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from aoe_nbd.core import encode
from aoe_nbd.core.fence import Fence, Phase
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.policy import Fencing
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import ERROR, RESPONSE, AoeError, Ata, Command, ConfigCommand, ReserveCommand
from aoe_nbd.wire.frames import ATA, Config, FrameHeader, Reserve, build_header, parse_ata, parse_header
from aoe_nbd.wire.identify import Identify

from .checker import Violation
from .clock import Clock

ADDRESS, TARGET, GUEST = Address(1, 0), b"\x02TARGT", "guest"
LIFE = 0.9  # s of a frame: the quarantine must outlast it
SECTORS, DEPTH = 8, 4  # that the guest writes, and at once
HOSTS = "abc"
IDENTITY = Identify("1", "1", "simulated", 1 << 16, trim=True)
PATIENCE = 60.0  # s after the last trouble


@dataclass
class Sent:
    """A write on its way: whose, of which term of ownership."""

    term: int
    frame: bytes


class Target:
    """A disk with config string and reservation. `durable` ones keep these over a restart."""

    def __init__(self, life: Life, durable: bool, reserves: bool) -> None:
        self.life, self.durable, self.reserves = life, durable, reserves
        self.up = True
        self.string, self.holders = b"", ()
        self.content = [0] * (SECTORS + 1)  # number of the guest's write; the last is not the guest's

    def end(self) -> None:
        self.up = False
        if not self.durable:
            self.string, self.holders = b"", ()

    def handle(self, frame: bytes, term: int) -> bytes | None:
        header = parse_header(frame)
        if not self.up or header.response:
            return None
        body = frame[24:36]
        if header.command == Command.CONFIG:
            asked = Config.parse(frame)
            if asked.ccmd == ConfigCommand.SET and self.string not in (b"", asked.string):
                return self._reply(header, b"", AoeError.CONFIG_STRING_PRESENT)
            if asked.ccmd in (ConfigCommand.SET, ConfigCommand.FORCE_SET):
                self.string = asked.string
            return self._reply(header, Config(asked.ccmd, self.string, 16, 1, 2).build())
        if header.command == Command.RESERVE:
            if not self.reserves:
                return self._reply(header, b"", AoeError.UNRECOGNIZED_COMMAND)
            wanted = Reserve.parse(frame)
            if wanted.rcmd == ReserveCommand.SET and self.holders and header.src not in self.holders:
                return self._reply(header, Reserve(wanted.rcmd, self.holders).build(), AoeError.TARGET_RESERVED)
            if wanted.rcmd != ReserveCommand.READ:
                self.holders = wanted.macs
            return self._reply(header, Reserve(wanted.rcmd, self.holders).build())
        ata = parse_ata(frame)
        if ata.command_status == Ata.IDENTIFY:
            return self._reply(header, ATA.pack(0, 0, 0, 0x40, ata.lba, 0) + IDENTITY.build())
        if self.holders and header.src not in self.holders:
            return self._reply(header, body, AoeError.TARGET_RESERVED)
        done = ATA.pack(ata.flags, 0, 0, 0x40, ata.lba, 0)
        if ata.command_status == Ata.READ_EXT:
            numbers = (self.content[lba % SECTORS] for lba in range(ata.lba48, ata.lba48 + ata.count))
            return self._reply(header, done + b"".join(number.to_bytes(512, "big") for number in numbers))
        if ata.command_status == Ata.WRITE_EXT:
            number = int.from_bytes(frame[36:548], "big")
            self.life.carried_out(ata.lba48, number, term)
            self.content[ata.lba48] = number
        return self._reply(header, done)

    def _reply(self, asked: FrameHeader, body: bytes, error: int = 0) -> bytes:
        flags = RESPONSE | (ERROR if error else 0)
        return build_header(asked.src, TARGET, *ADDRESS, asked.command, asked.tag, flags, error) + body


class Host:
    """A host with, or without, a bridge. `term` counts attaches; a bridge that is started anew is of the same."""

    def __init__(self, life: Life, name: str) -> None:
        self.life, self.name = life, name
        self.mac = b"\x02HOST" + name.encode()
        self.initiator: Initiator | None = None
        self.term, self.note = 0, ""
        self.cut_off_until = self.deaf_until = self.frozen_until = 0.0
        self._due = float("inf")

    @property
    def phase(self) -> Phase | None:
        return None if self.initiator is None or self.initiator.fence is None else self.initiator.fence.phase

    def attach(self, term: int, note: str = "") -> None:
        life = self.life
        fence = life.fence_of(self.name, note)
        now = life.clock.now
        self.term, self.note, self._due = term, note, float("inf")
        self.initiator = life.initiator(ADDRESS, seed=life.rng.randrange(1 << 30), now=now, fence=fence)
        self.initiator.add_path("eth0", self.mac, TARGET, 1500, Config(sector_count=2, buffer_count=16), now)
        self._begin(self.initiator)

    def _begin(self, initiator: Initiator) -> None:
        """Once a path is up, as the device does."""
        if self.initiator is not initiator:
            return
        if not initiator.up:
            self.life.after(0.05, self._begin, initiator)
        else:
            initiator.change_fence(lambda fence: fence.begin(self.life.clock.now), self.life.clock.now)
        self.work()

    def end(self) -> None:
        """Its bridge is no more."""
        self.initiator = None

    def work(self) -> None:
        """As the engine: what is due, what is to be sent, and when to look again."""
        initiator, life = self.initiator, self.life
        if initiator is None:
            return
        now = life.clock.now
        if now < self.frozen_until:
            life.clock.at(self.frozen_until, self.work)
            return
        if initiator.timer() <= now:
            initiator.tick(now)
        for run in initiator.transmit(now):
            for index in range(run.count):
                header, payload = encode.frame(initiator, run, index)
                life.send(self, header + bytes(payload or b""))
        assert initiator.fence is not None
        if any(event.what.startswith("fence") for event in initiator.events):
            self.note = initiator.fence.note
        initiator.events.clear()
        done, initiator.completed[:] = initiator.completed[:], []
        for request in done:
            life.guest.done(request, self)
        at = initiator.timer()
        if at < self._due or self._due <= now:
            self._due = at
            life.clock.at(max(at, now + 1e-6), self._tick, initiator, at)

    def _tick(self, initiator: Initiator, at: float) -> None:
        if initiator is self.initiator:
            if self._due == at:
                self._due = float("inf")
            self.work()

    def receive(self, frame: bytes) -> None:
        if self.initiator is not None:
            self.initiator.receive("eth0", frame, self.life.clock.now)
            self.work()


class Guest:
    """It writes a number to a sector that is one more than its last, and is told when that is done."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.host: Host | None = None
        self.last = [0] * SECTORS  # begun
        self.told = [0] * SECTORS  # done
        self.open: dict[int, Request] = {}  # sector -> the request, where the guest runs

    def run_at(self, host: Host) -> None:
        """Start or go on there. What it has not been told of it asks for again."""
        self.host = host
        self.ask_again(host)

    def back_to(self, host: Host) -> None:
        """Go on with the device that it had: its requests are there still."""
        self.host = host

    def suspend(self) -> None:
        self.host = None

    def ask_again(self, host: Host) -> None:
        """What it has not been told of."""
        for sector in list(self.open):
            self._submit(sector, host)

    def live(self) -> None:
        """Begin something from time to time."""
        if self.host is not None and len(self.open) < DEPTH:
            sector = self.life.rng.choice([sector for sector in range(SECTORS) if sector not in self.open])
            self.last[sector] += 1
            self._submit(sector, self.host)
        self.life.after(self.life.rng.uniform(0.01, 0.1), self.live)

    def _submit(self, sector: int, host: Host) -> None:
        request = Request(Kind.WRITE, sector, 1, memoryview(self.last[sector].to_bytes(512, "big")))
        self.open[sector] = request
        if host.initiator is not None:
            host.initiator.submit(request, self.life.clock.now)
            self.life.after(0, host.work)

    def done(self, request: Request, host: Host) -> None:
        sector = request.lba
        if self.open.get(sector) is not request:
            return  # of an old life of the guest, on another host
        if request.error:
            raise Violation("error", f"{host.name}: {request.reason}")
        del self.open[sector]
        self.told[sector] = self.last[sector]


class Life:
    """One seed. `run` returns, or raises Violation."""

    def __init__(
        self,
        seed: int,
        initiator: type[Initiator] = Initiator,
        fence: Callable[..., Fence] = Fence,
        resumes: bool = True,
    ) -> None:
        self.rng = rng = random.Random(seed)
        self.initiator, self._fence, self._resumes = initiator, fence, resumes
        self.clock = Clock()
        self.mode = rng.choice((Fencing.WARN, Fencing.ENFORCE, Fencing.AUTO))
        self.durable = rng.random() < 0.4
        self.loss, self.late, self.twice = rng.choice((0, 0, 0.02, 0.1)), rng.choice((0, 0.02)), rng.choice((0, 0.05))
        self.target = Target(self, self.durable, self.mode is Fencing.ENFORCE or rng.random() < 0.5)
        # A frame that a frozen host sends late is refused only by a reservation, and only while the target remembers it.
        self.freezes = self.durable and self.mode is Fencing.ENFORCE
        self.hosts = {name: Host(self, name) for name in HOSTS}
        self.guest = Guest(self)
        self.terms = 0
        self.writing = 0  # the newest term of which a write was sent
        self.troubled_until = 0.0
        self.well = False

    def after(self, seconds: float, call: Callable[..., None], *args: object) -> None:
        self.clock.at(self.clock.now + seconds, call, *args)

    def fence_of(self, name: str, note: str) -> Fence:
        return self._fence(self.mode, name, GUEST, note)

    # -- the network -------------------------------------------------------------------------------------------------

    def _delay(self) -> float:
        return self.rng.uniform(0, LIFE / 2) if self.rng.random() < self.late else self.rng.uniform(5e-5, 4e-4)

    def _lost(self, host: Host) -> bool:
        return self.clock.now < host.cut_off_until or (not self.well and self.rng.random() < self.loss)

    def _unheard(self, host: Host, reply: bytes) -> bool:
        """It is not told whose the disk is, although all else is answered."""
        return self.clock.now < host.deaf_until and reply[19] == Command.CONFIG

    def _write_on(self, host: Host) -> None:
        """Something on the source goes on writing, although the guest has left, and nothing seems to be wrong with the path."""
        if host.initiator is not None and self.clock.now < host.deaf_until:
            if host.initiator.waiting < 2 * DEPTH:
                host.initiator.submit(Request(Kind.WRITE, SECTORS, 1, memoryview(bytearray(512))), self.clock.now)
                host.work()
            self.after(0.05, self._write_on, host)

    def send(self, host: Host, frame: bytes) -> None:
        header = parse_header(frame)
        write = header.command == Command.ATA and frame[27] == Ata.WRITE_EXT
        if write:
            self.writing = max(self.writing, host.term)
        delay, overdue = self._delay(), False
        if self.freezes and write and not self.well and self.rng.random() < 0.01:
            delay, overdue = delay + self.rng.uniform(1, 8), True  # it was still on this side of the network card
        for _ in range(1 + (not self.well and self.rng.random() < self.twice)):
            if not self._lost(host):  # what the network makes two of, arrives together
                self.after(delay, self._arrive, host, frame, host.term, overdue)

    def _arrive(self, host: Host, frame: bytes, term: int, overdue: bool) -> None:
        if overdue and (host.mac in self.target.holders or term == self.writing):
            return  # only what a reservation must refuse is let through so late
        reply = self.target.handle(frame, term)
        if reply is not None and not self._lost(host) and not self._unheard(host, reply):
            self.after(self._delay(), host.receive, reply)

    def carried_out(self, sector: int, number: int, term: int) -> None:
        """The target writes."""
        if term < self.writing:
            raise Violation("late", f"a write of term {term} to sector {sector} after the first of term {self.writing}")
        told = self.guest.told[sector] if sector < SECTORS else 0
        if number < told:
            raise Violation("stale", f"write {number}, of term {term}, to sector {sector}, of which {told} is done")

    # -- trouble -----------------------------------------------------------------------------------------------------

    def _trouble(self) -> None:
        if self.well:
            return
        rng, now = self.rng, self.clock.now
        host = self.hosts[rng.choice(HOSTS)]
        match rng.randrange(4):
            case 0:  # the target is killed, and is back at once or later
                self.target.end()
                back = rng.choice((0.0, rng.uniform(0, 0.3), rng.uniform(0, 8)))
                self.after(back, self._come_back, rng.random() < 0.5)
                self._troubled(back)
            case _ if now < host.deaf_until:
                pass
            case 1:  # a host is cut off: not for as long as a GRACE, in which an owner must be heard
                host.cut_off_until = now + rng.uniform(0.1, 3)
                self._troubled(3)
            case 2 if host.initiator is not None and host is not self.moving_to:  # its bridge is killed
                self._restart(host)
            case 3:  # it stands still, as a starved machine
                host.frozen_until = now + rng.uniform(0.1, 1.5)
        self.after(rng.expovariate(1 / 4), self._trouble)

    def _come_back(self, announced: bool) -> None:
        self.target.up = True
        if announced:
            body = Config(0, self.target.string, 16, 1, 2).build()
            for host in self.hosts.values():
                host.receive(build_header(b"\xff" * 6, TARGET, *ADDRESS, Command.CONFIG, 0, RESPONSE) + body)

    def _restart(self, host: Host) -> None:
        note, term = host.note if self._resumes else "", host.term
        uses = host in (self.guest.host, self.source)
        host.end()
        if not note and self._resumes:
            return
        host.attach(term, note)
        if uses:  # the kernel asks the next bridge again
            self.guest.ask_again(host)

    def _troubled(self, seconds: float) -> None:
        self.troubled_until = max(self.troubled_until, self.clock.now + seconds)

    # -- moves -------------------------------------------------------------------------------------------------------

    moving_to: Host | None = None
    source: Host | None = None  # of a move that is under way

    def _move(self) -> None:
        """The guest is suspended, and its disk attached where it is to go."""
        source = self.guest.host
        if self.well or source is None or source.phase is not Phase.HOLDING:
            if not self.well:
                self.after(0.5, self._move)
            return
        to = self.hosts[self.rng.choice([name for name in HOSTS if name != source.name])]
        to.end()
        if self.rng.random() < 0.3:
            source.deaf_until = self.clock.now + self.rng.uniform(2, 4)
            self._troubled(4)
            self._write_on(source)
        self.moving_to, self.source = to, source
        self.after(0.3, self._leave, source, to)

    def _leave(self, source: Host, to: Host) -> None:
        self.guest.suspend()
        self.terms += 1
        to.attach(self.terms)
        self.after(0.05, self._arriving, source, to, self.clock.now + 30)

    def _arriving(self, source: Host, to: Host, limit: float) -> None:
        fence = to.initiator.fence if to.initiator is not None else None
        if fence is None or not fence.decided:
            if self.clock.now > limit:  # the hotplug script's own limit: the move has failed
                return self._give_back(source, to)
            self.after(0.05, self._arriving, source, to, limit)
            return None
        if fence.phase is not Phase.HOLDING:
            to.end()
            return self._resume(source)
        match self.rng.random():
            case chance if chance < 0.25:
                return self._give_back(source, to)
            case chance if chance < 0.4:  # the other host dies before the guest runs there
                to.end()
                return self._take_back(source)
        self.moving_to = self.source = None
        self.guest.run_at(to)
        self.after(self.rng.choice((0.05, 1, 6)), self._source_ends, source)
        self.after(self.rng.uniform(3, 15), self._move)
        return None

    def _source_ends(self, source: Host) -> None:
        if source not in (self.guest.host, self.moving_to, self.source):
            source.end()

    def _give_back(self, source: Host, to: Host) -> None:
        initiator = to.initiator
        if initiator is not None and initiator.fence is not None:
            if initiator.fence.phase is Phase.HOLDING and not initiator.fence.decided:
                initiator.change_fence(lambda fence: fence.release(self.clock.now), self.clock.now)
            elif initiator.fence.phase is Phase.HOLDING:
                initiator.quiesce()
                if not initiator.quiet(self.clock.now):
                    self.after(0.1, self._give_back, source, to)
                    return
                initiator.change_fence(lambda fence: fence.release(self.clock.now), self.clock.now)
            if initiator.fence.phase is Phase.LEAVING:
                to.work()
                self.after(0.1, self._give_back, source, to)
                return
        to.end()
        self._resume(source)

    def _take_back(self, source: Host) -> None:
        """An operator who knows that the other is dead: as soon as the source has heard of it."""
        initiator = source.initiator
        if initiator is not None and source.phase is Phase.YIELDED:
            initiator.change_fence(lambda fence: fence.take_over(self.clock.now), self.clock.now)
            source.work()
            self._resume(source)
        elif (
            initiator is not None
            and source.phase is Phase.HOLDING
            and b"owner=%b " % source.name.encode() in self.target.string
        ):
            self._resume(source)
        else:
            self.after(0.2, self._take_back, source)

    def _resume(self, source: Host) -> None:
        """The guest goes on where it was, with the device that it had."""
        self.moving_to = self.source = None
        self.guest.back_to(source)
        self.after(3, self._operate, source)
        self.after(self.rng.uniform(3, 15), self._move)

    def _operate(self, source: Host) -> None:
        """What was given back may have been forgotten by the target before it was read: an operator knows where the guest is."""
        if self.guest.host is source and source.initiator is not None and source.phase is Phase.YIELDED:
            source.initiator.change_fence(lambda fence: fence.take_over(self.clock.now), self.clock.now)
            source.work()

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(self, seconds: float = 60.0) -> None:
        self.terms = 1
        first = self.hosts["a"]
        first.attach(1)
        self._first(first)
        self.after(8, self._move)
        self.after(8, self._trouble)
        self.clock.run(seconds)
        self.well = True
        began = max(self.clock.now, self.troubled_until)
        self.clock.run(began + PATIENCE, lambda: self.guest.host is not None)
        before = list(self.guest.told)
        self.clock.run(
            self.clock.now + PATIENCE, lambda: all(a < b for a, b in zip(before, self.guest.told, strict=True))
        )
        if not all(a < b for a, b in zip(before, self.guest.told, strict=True)):
            phases = {host.name: host.phase for host in self.hosts.values()}
            raise Violation("stuck", f"the guest does not go on: {phases}, {self.target.string!r}")

    def _first(self, host: Host) -> None:
        if host.initiator is None or host.initiator.fence is None or not host.initiator.fence.decided:
            self.after(0.1, self._first, host)
        else:
            self.guest.run_at(host)
            self.guest.live()


def play(seed: int, **without: object) -> str:
    """Which rule a seed breaks, and how; "" for none."""
    try:
        Life(seed, **without).run()  # type: ignore[arg-type]
    except Violation as violation:
        return str(violation)
    return ""
