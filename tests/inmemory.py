# SPDX-License-Identifier: BSD-3-Clause
"""An Ethernet in memory: the initiator joined to targets without sockets, threads or a real clock.

A `Lan` plays the engine (submit, transmit, encode, receive, tick) and the cables. At the other ends are `Port`s: the
project's own target with any personality, or a scripted peer that answers as a test likes. Every frame that was sent or
heard is kept as bytes. Time is virtual: it stands still but for `Lan.step`.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from aoe_nbd import device
from aoe_nbd.core import encode
from aoe_nbd.core.batch import receive as receive_rows
from aoe_nbd.core.copies import Run
from aoe_nbd.core.exchange import Exchange
from aoe_nbd.core.initiator import Event, Initiator
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.core.turns import Turns
from aoe_nbd.device import Device
from aoe_nbd.link.packet import BATCH as ROWS
from aoe_nbd.target import OURS, PERSONALITIES, Line, Lun
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import BROADCAST_MAC, ERROR, MIN_FRAME, RESPONSE, SECTOR, Ata, Command, Status
from aoe_nbd.wire.frames import ATA, Config, FrameHeader, build_header, parse_ata, parse_header
from aoe_nbd.wire.identify import Identify

E1_0 = Address(1, 0)
LINK = "eth0"
LOCAL = bytes.fromhex("020000000101")
REMOTE = bytes.fromhex("020000000201")
REMOTE2 = bytes.fromhex("020000000202")
STRANGER = bytes.fromhex("0200000002ff")
DELAY = 50e-6  # of each frame, one way
BATCH = 4  # frames that come at one moment, from which on they are taken as an array
IDENTITY = Identify(serial="peer", firmware="1", model="scripted peer", sectors=1 << 20)


class MemoryBackend:
    """Sparse storage for the target, of any size; what was never written reads as zeros."""

    block = False
    rotating = False
    path = "/memory"

    def __init__(self, sectors: int, *, read_only: bool = False, sync: bool = False, name: str = "memory") -> None:
        self.sectors, self.read_only, self.sync, self.name = sectors, read_only, sync, name
        self.physical_size = 4096
        self.trims = not read_only
        self.content: dict[int, bytes] = {}
        self.log: list[tuple[str, int, int]] = []  # (what, first sector, sectors), in order

    def read_into(self, buffer: memoryview, offset: int) -> None:
        first, count = offset // SECTOR, len(buffer) // SECTOR
        if first + count > self.sectors:
            raise OSError(5, "the storage ends here")
        for i in range(count):
            buffer[i * SECTOR : (i + 1) * SECTOR] = self.content.get(first + i, bytes(SECTOR))
        self.log.append(("read", first, count))

    def write(self, data: bytes | memoryview, offset: int) -> None:
        first, count = offset // SECTOR, len(data) // SECTOR
        for i in range(count):
            self.content[first + i] = bytes(data[i * SECTOR : (i + 1) * SECTOR])
        self.sectors = max(self.sectors, first + count)  # as a file grows; a target that checks does not let it
        self.log.append(("write", first, count))

    def zero(self, offset: int, length: int) -> None:
        first, count = offset // SECTOR, length // SECTOR
        for lba in [lba for lba in self.content if first <= lba < first + count]:
            del self.content[lba]
        self.log.append(("zero", first, count))

    def flush(self) -> None:
        self.log.append(("flush", 0, 0))

    def sector(self, lba: int) -> bytes:
        return self.content.get(lba, bytes(SECTOR))

    def whole(self, first: int, count: int) -> bytes:
        return b"".join(self.sector(first + i) for i in range(count))

    def refresh(self) -> bool:
        return False

    def identity(self) -> str:
        return self.name

    def close(self) -> None:
        pass


Script = Callable[[bytes], Iterable[bytes]]


class Port:
    """One end of a cable: a target's network card, or a scripted peer. `to` brings requests, `back` replies."""

    def __init__(self, who: Lun | Script, link: str, mac: bytes, mtu: int, hub: bool) -> None:
        self.link, self.mac, self.mtu = link, mac, mtu
        self.hub = hub  # it sees every frame on the link, not only those addressed to it
        self.to, self.back = Line(delay=DELAY), Line(delay=DELAY)
        self.unplugged = False
        self._who = who
        self._gathered: list[bytes] = []
        self._due = 0.0

    @property
    def lun(self) -> Lun:
        assert isinstance(self._who, Lun)
        return self._who

    @property
    def disk(self) -> Any:
        return self.lun.backend

    def become(self, who: Lun | Script) -> None:
        """Another target, or the same anew, answers here from now on."""
        self._who = who

    def announce(self, now: float) -> None:
        for frame in self.lun.announce(self.mac, self.mtu):
            self.back.push(frame, now)

    def serve(self, now: float) -> None:
        """Carry out the requests that have come in."""
        frames = self.to.pop(now)
        gather = self._who.like.gather if isinstance(self._who, Lun) else 0.0
        if gather:
            if frames and not self._gathered:
                self._due = now + gather
            self._gathered += frames
            if not self._gathered or now < self._due:
                return
            frames, self._gathered = self._gathered, []
        if isinstance(self._who, Lun):
            replies: Iterable[bytes | bytearray] = self._who.handle_batch(frames, self.mac, self.mtu)
        else:
            replies = [reply for frame in frames for reply in self._who(frame)]
        for reply in replies:
            if not self.unplugged and len(reply) <= self.mtu + 14:
                self.back.push(reply, now)

    def next_time(self) -> float:
        times = [t for t in (self.to.next_time(), self.back.next_time()) if t is not None]
        if self._gathered:
            times.append(self._due)
        return min(times, default=float("inf"))


class Lan:
    """The cables, the initiator's host and its clock."""

    def __init__(self, mtu: int = 1500) -> None:
        self.now = 1000.0
        self.mtu = mtu
        self.ports: list[Port] = []
        self.links: dict[str, Any] = {}
        self.initiators: list[Initiator] = []
        self.exchanges: list[Exchange] = []
        self.turns: Turns | None = None  # of the initiators, where they share the room for answers
        self.sent: list[bytes] = []
        self.heard: list[bytes] = []
        self.events: list[Event] = []
        self.refuse: Callable[[Run], int] | None = None  # how many frames of a run our own interface takes
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._steps = 0

    # -- building ----------------------------------------------------------------------------------------------------

    def _link(self, name: str) -> Any:
        if name not in self.links:
            mac = LOCAL[:5] + bytes([len(self.links) + 1])
            self.links[name] = SimpleNamespace(name=name, mac=mac, mtu=self.mtu)
        return self.links[name]

    def target(
        self,
        like: str = "ours",
        sectors: int = 1 << 16,
        *,
        disk: MemoryBackend | None = None,
        address: Address = E1_0,
        link: str = LINK,
        mac: bytes = REMOTE,
        mtu: int | None = None,
        buffers: int | None = None,
        hub: bool = False,
        serial: str | None = None,
    ) -> Port:
        """Plug a target in, with the personality of that name."""
        personality = OURS if like == "ours" else PERSONALITIES[like]
        backend: Any = disk or MemoryBackend(sectors)
        lun = Lun(address, backend, buffers=buffers, serial=serial, like=personality, seed=1)
        port = self.peer(lun, link=link, mac=mac, mtu=mtu, hub=hub)
        lun.announce(mac, port.mtu)  # nobody was there to hear it
        return port

    def peer(
        self, who: Lun | Script, *, link: str = LINK, mac: bytes = REMOTE, mtu: int | None = None, hub: bool = False
    ) -> Port:
        """Plug in whatever answers."""
        self._link(link)
        port = Port(who, link, mac, mtu or self.mtu, hub)
        self.ports.append(port)
        return port

    def attach(
        self, address: Address = E1_0, *, wait: bool = True, links: Sequence[str] | None = None, **options: Any
    ) -> Initiator:
        """An initiator with a path to each target that answers Query Config (on `links`), as the device makes it.

        With `wait` it is then up, and its first write need not wait any more.
        """
        initiator = Initiator(address, seed=7, now=self.now, **options)
        shelf, slot = address
        exchange = self.ask(Config(), shelf=shelf, slot=slot)
        self.initiators.append(initiator)
        for answer in exchange.answers:
            link = self.links[answer.link]
            if links is not None and link.name not in links:
                continue
            config = Config.parse(answer.frame)
            initiator.add_path(link.name, link.mac, answer.mac, link.mtu, config, self.now)
        if wait:
            self.run(lambda: initiator.up)
            self.pause(initiator.quarantine)
        return initiator

    @property
    def initiator(self) -> Initiator:
        return self.initiators[0]

    # -- time --------------------------------------------------------------------------------------------------------

    def later(self, after: float, what: Callable[[], None]) -> None:
        """Do this so many seconds from now."""
        self._later.append((self.now + after, what))

    def step(self) -> None:
        """Go to the next moment at which something is due, and let it happen."""
        times = [port.next_time() for port in self.ports if not port.unplugged]
        times += [initiator.timer() for initiator in self.initiators]
        times += [exchange.timer() for exchange in self.exchanges]
        times += [when for when, _ in self._later]
        at = min(times, default=float("inf"))
        assert at < float("inf"), "nothing will ever happen again"
        self.now = max(self.now + 1e-9, at)
        for when, what in self._later[:]:
            if when <= self.now:
                self._later.remove((when, what))
                what()
        for port in self.ports:
            port.serve(self.now)
        for port in self.ports:
            frames = port.back.pop(self.now)
            if len(frames) >= BATCH:
                self.hear_batch(port.link, frames)
            else:
                for frame in frames:
                    self.hear(port.link, frame)
        self.work()

    def work(self) -> None:
        """What the engine does after each thing that happened."""
        for exchange in self.exchanges:
            for link, frame in exchange.due(self.now):
                self._send(link, frame)
        for initiator in self.initiators:
            if initiator.timer() <= self.now:
                initiator.tick(self.now)
            if self.turns is None:
                self._transmit(initiator)
            else:
                self.turns.begin(initiator)
                self._transmit(initiator)
                self.turns.end(initiator)
                while (other := self.turns.next()) is not None:
                    self._transmit(other)
                    self.turns.end(other)
            initiator.completed.clear()
            self.events += initiator.events
            initiator.events.clear()

    def _transmit(self, initiator: Initiator) -> None:
        for runs in encode.together(initiator.transmit(self.now), ROWS):
            self._send_runs(initiator, runs)

    def hear_batch(self, link: str, frames: list[bytes]) -> None:
        """Frames that reach the initiator's host together are looked at as the engine does: as an array."""
        rows, lengths = rows_of(frames)
        address = Address._make(struct.unpack_from(">HB", frames[0], 16))
        concerned: list[Initiator | None] = [i for i in self.initiators if i.address == address]
        for initiator in concerned or [None]:
            heard = len(self.heard)
            receive_rows(initiator, link, rows, lengths, self.now, lambda f: self.hear(link, bytes(f)))
            del self.heard[heard:]
        self.heard += frames

    def hear(self, link: str, frame: bytes) -> None:
        """A frame reaches the initiator's host."""
        self.heard.append(frame)
        if any(exchange.receive(link, frame, self.now) for exchange in self.exchanges):
            return
        for initiator in self.initiators:
            initiator.receive(link, memoryview(frame), self.now)

    def run(self, until: Callable[[], bool], most: float = 120.0) -> None:
        """Step until that is true; AssertionError if it is not after so many virtual seconds."""
        end = self.now + most
        while not until():
            assert self.now < end, f"still not so after {most} s: {self.initiators and self.initiator.counters}"
            self._steps += 1
            assert self._steps < 2_000_000, "time stands still"
            self.step()

    def pause(self, seconds: float) -> None:
        """Let that much time pass."""
        end = self.now + seconds
        self.later(seconds, lambda: None)
        self.run(lambda: self.now >= end, most=seconds + 1)

    # -- frames ------------------------------------------------------------------------------------------------------

    def _send_runs(self, initiator: Initiator, runs: Sequence[Run]) -> None:
        frames = encode_runs(initiator, runs)
        for run in runs:
            room = run.count if self.refuse is None else min(run.count, self.refuse(run))
            for frame in frames[:room]:
                self._send(run.path.link, frame)
            if room < run.count:
                initiator.unsent(run, room, "ENOBUFS", self.now)
            del frames[: run.count]

    def _send(self, link: str, frame: bytes) -> None:
        self.sent.append(frame)
        for port in self.ports:
            if port.link != link or port.unplugged or len(frame) > port.mtu + 14:
                continue
            if port.hub or frame[:6] in (port.mac, BROADCAST_MAC):
                port.to.push(frame, self.now)

    # -- what a client does ------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Request:
        self.initiator.submit(request, self.now)
        self.work()
        return request

    def do(self, request: Request, most: float = 120.0) -> Request:
        """Submit a request and run until it is done."""
        self.submit(request)
        self.run(lambda: request.done, most)
        return request

    def finish(self, *requests: Request, most: float = 120.0) -> None:
        """Run until all of these are done."""
        self.run(lambda: all(request.done for request in requests), most)

    def read(self, lba: int, count: int) -> bytes:
        buffer = bytearray(count * SECTOR)
        done = self.do(Request(Kind.READ, lba, count, memoryview(buffer)))
        assert not done.error, done.reason
        return bytes(buffer)

    def write(self, lba: int, data: bytes) -> None:
        done = self.do(write_request(lba, data))
        assert not done.error, done.reason

    def flush(self) -> Request:
        return self.do(Request(Kind.FLUSH))

    def ask(self, arg: Any, **options: Any) -> Exchange:
        """Put a question as the command line and the discovery do."""
        options = {"seed": 3, "now": self.now, "timeout": 0.5, **options}
        links = [(link.name, link.mac) for link in self.links.values()]
        exchange = Exchange(links, arg, **options)
        self.exchanges.append(exchange)
        self.work()
        self.run(lambda: exchange.done(self.now))
        self.exchanges.remove(exchange)
        return exchange

    # -- what was sent -----------------------------------------------------------------------------------------------

    def requests(self, *opcodes: int) -> list[bytes]:
        """The ATA requests with one of these opcodes (all if none is given) that were sent, in order."""
        return [
            f for f in self.sent if f[19] == Command.ATA and (not opcodes or parse_ata(f).command_status in opcodes)
        ]


def write_request(lba: int, data: bytes, **options: Any) -> Request:
    """A WRITE of its own copy of `data`."""
    return Request(Kind.WRITE, lba, len(data) // SECTOR, memoryview(bytearray(data)), **options)


def read_request(lba: int, count: int) -> tuple[Request, bytearray]:
    """A READ, and the buffer that it fills."""
    buffer = bytearray(count * SECTOR)
    return Request(Kind.READ, lba, count, memoryview(buffer)), buffer


def rows_of(frames: Sequence[bytes]) -> tuple[Any, Any]:
    """Frames as they lie in a receive ring: in rows of one width, with other people's bytes behind each."""
    width = max(60, *map(len, frames))
    rows = np.frombuffer(b"".join(frame.ljust(width, b"\xa5") for frame in frames), np.uint8).reshape(-1, width)
    return rows, np.array([len(frame) for frame in frames])


_headers = encode.Headers(np.zeros((4 * ROWS, encode.ROW), np.uint8))  # more than are ever sent at once


def encode_runs(initiator: Initiator, runs: Sequence[Run]) -> list[bytes]:
    """The frames of runs that go together, made as the engine makes them."""
    if len(runs) == 1 and runs[0].count == 1:
        header, payload = encode.frame(initiator, runs[0])
        return [bytes(header) + bytes(payload or b"")]
    size = _headers.fill(initiator, runs)
    rows = iter(_headers.rows)
    frames = []
    for run in runs:
        step, data = run.step * SECTOR, b""
        if run.request.kind is Kind.WRITE:
            assert run.request.data is not None
            data = bytes(run.request.data[run.offset * SECTOR : (run.offset + run.length) * SECTOR])
        frames += [next(rows)[:size].tobytes() + data[i * step : (i + 1) * step] for i in range(run.count)]
    return frames


# -- scripted peers ---------------------------------------------------------------------------------------------------


def reply(
    request: bytes,
    data: bytes = b"",
    *,
    status: int = Status.DRDY,
    error: int = 0,
    count: int = 0,
    flags: int = RESPONSE,
    aoe_error: int = 0,
    src: bytes = REMOTE,
    pad: bool = True,
    **header: int,
) -> bytes:
    """The reply of a well-behaved target to an ATA request, or one that differs as named."""
    asked = parse_header(request)
    fields = {"shelf": asked.major, "slot": asked.minor, "command": asked.command, "tag": asked.tag, **header}
    head = build_header(asked.src, src, flags=flags, error=aoe_error, **fields)
    ata = parse_ata(request)
    frame = head + ATA.pack(ata.flags, error, count, status, ata.lba, 0) + data
    return frame.ljust(MIN_FRAME, b"\0") if pad else frame


def refusal(request: bytes, code: int, src: bytes = REMOTE) -> bytes:
    """An AoE error, header and nothing else."""
    asked = parse_header(request)
    flags = RESPONSE | ERROR
    return build_header(asked.src, src, asked.major, asked.minor, asked.command, asked.tag, flags, code)


def config_reply(
    request: bytes, buffers: int = 16, sectors: int = 2, string: bytes = b"", src: bytes = REMOTE
) -> bytes:
    asked = parse_header(request)
    head = build_header(asked.src, src, *E1_0, Command.CONFIG, asked.tag, RESPONSE)
    return head + Config(string=string, buffer_count=buffers, sector_count=sectors).build()


class Scripted:
    """A peer that answers Query Config and IDENTIFY by itself, and leaves each other request to `script`.

    `seen` keeps those others. `script` returns the replies; the default keeps silent.
    """

    def __init__(
        self,
        script: Script = lambda frame: (),
        *,
        identify: Identify | bytes = IDENTITY,
        buffers: int = 16,
        sectors: int = 2,
        src: bytes = REMOTE,
    ) -> None:
        self.script, self.buffers, self.sectors, self.src = script, buffers, sectors, src
        self.identify = identify if isinstance(identify, bytes) else identify.build()
        self.seen: list[bytes] = []

    def __call__(self, frame: bytes) -> Iterable[bytes]:
        if frame[19] == Command.CONFIG:
            return [config_reply(frame, self.buffers, self.sectors, src=self.src)]
        if frame[19] == Command.ATA and parse_ata(frame).command_status == Ata.IDENTIFY:
            return [reply(frame, self.identify, src=self.src)]
        self.seen.append(frame)
        return self.script(frame)


def tag_of_frame(frame: bytes) -> int:
    return parse_header(frame).tag


def header_of(frame: bytes) -> FrameHeader:
    return parse_header(frame)


def lba_of(frame: bytes) -> int:
    """The LBA of a READ or WRITE, read as its opcode says."""
    ata = parse_ata(frame)
    return ata.lba28 if ata.command_status in (Ata.READ, Ata.WRITE) else ata.lba48


# -- the engine of a Device, in memory ----------------------------------------------------------------------------------


class MemoryEngine:
    """Stands in for `aoe_nbd.engine.Engine` under a Device. Alone, a caller turns the Lan itself.

    With `together` several callers run at once, each in a thread: the Lan goes on by one step whenever all of them wait,
    so that they overlap as much as they can and in the same order every time.
    """

    def __init__(self, lan: Lan) -> None:
        self.lan = lan
        self.executed: list[Request] = []
        self._together = False
        self._running = 0
        self._alive = 0
        self._waiting: dict[int, Request] = {}
        self._turn = threading.Condition()

    @property
    def links(self) -> dict[str, Any]:
        return self.lan.links

    def addresses(self) -> list[tuple[str, bytes]]:
        return [(link.name, link.mac) for link in self.lan.links.values()]

    def seed(self) -> int:
        return 11

    def add(self, initiator: Initiator) -> None:
        self.lan.initiators.append(initiator)

    def remove(self, initiator: Initiator) -> None:
        if initiator in self.lan.initiators:
            self.lan.initiators.remove(initiator)

    def find(self, address: Address) -> Initiator | None:
        return next((i for i in self.lan.initiators if i.address == address), None)

    def locked(self) -> contextlib.AbstractContextManager[object]:
        return self._turn

    def kick(self) -> None:
        self.lan.work()

    def ask(self, exchange: Exchange, grace: float | None = None) -> Exchange:
        self.lan.exchanges.append(exchange)
        self.lan.work()
        first = float("inf")

        def over() -> bool:
            nonlocal first
            if exchange.answers:
                first = min(first, self.lan.now)
            return exchange.done(self.lan.now) or (grace is not None and self.lan.now >= first + grace)

        self.wait(over, float("inf"))
        self.lan.exchanges.remove(exchange)
        return exchange

    def wait(self, over: Callable[[], bool], deadline: float) -> bool:
        while not over() and self.lan.now < deadline:
            self.lan.step()
        return over()

    def execute(self, initiator: Initiator, request: Request) -> None:
        with self._turn:
            self.executed.append(request)
            initiator.submit(request, self.lan.now)
            self.lan.work()
            if not self._together:
                self.lan.run(lambda: request.done)
            elif not request.done:
                self._waiting[id(request)] = request
                self._running -= 1
                self._turn.notify_all()
                self._turn.wait_for(lambda: id(request) not in self._waiting)

    def release(self, initiator: Initiator, lock: Request) -> None:
        self.change(initiator, lambda now: initiator.release(lock, now))

    def change(self, initiator: Initiator, change: Callable[[float], None]) -> None:
        with self._turn:
            change(self.lan.now)
            self.lan.work()

    def together(self, calls: Sequence[Callable[[], object]]) -> None:
        """Make all these calls at once; raises the first exception that one of them raised."""
        problems: list[BaseException] = []

        def run(call: Callable[[], object]) -> None:
            try:
                call()
            except BaseException as problem:
                problems.append(problem)
            finally:
                with self._turn:
                    self._running -= 1
                    self._alive -= 1
                    self._turn.notify_all()

        self._together = True
        threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
        for thread in threads:
            with self._turn:
                self._running += 1
                self._alive += 1
            thread.start()
            with self._turn:
                self._turn.wait_for(lambda: not self._running)
        with self._turn:
            while self._alive:
                self._turn.wait_for(lambda: not self._running)
                if not self._alive:
                    break
                self.lan.step()
                done = [key for key, request in self._waiting.items() if request.done]
                self._running += len(done)
                for key in done:
                    del self._waiting[key]
                self._turn.notify_all()
        for thread in threads:
            thread.join()
        self._together = False
        if problems:
            raise problems[0]


def open_device(lan: Lan, address: Address = E1_0, timeout: float = 5.0, **options: Any) -> Device:
    """A Device on this Lan, open. Its `engine` is a MemoryEngine."""
    engine: Any = MemoryEngine(lan)
    with virtual_time(lan):
        opened = Device(engine, address, **options)
        opened.open(timeout)
    return opened


def virtual_time(lan: Lan) -> contextlib.AbstractContextManager[object]:
    """The device room reads the clock of this Lan meanwhile."""
    return mock.patch.object(device, "time", SimpleNamespace(monotonic=lambda: lan.now))
