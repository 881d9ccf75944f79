# SPDX-License-Identifier: BSD-3-Clause
"""One LUN's initiator: requests in, frames out, answers in, requests done. No sockets, no threads, no clock.

    submit(request, now)   take a request; it is done at once only if it cannot be served
    transmit(now)          the runs of frames to send now (see `encode`); call it after each of the other three
    receive(link, frame, now)  one frame from the network, which may be anything
    tick(now)              the time `timer()` named has come
    completed              requests that are done, for the caller to take away
    events                 what an operator or the device should hear of

Rules that keep data safe, and where they are: a tag per copy (`copies`); one write at a time for an LBA, and ghosts
(`lock`, `_finish`); what a reply must match (`receive`); no write to a disk that has not shown the pinned identity
(`_identified`); an answer is final (`reply`); nothing to a disk that another host may own (`fence`, `_heed_fence`).
"""

from __future__ import annotations

import errno
import heapq
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from ..wire.address import Address
from ..wire.codes import ERROR, ETHERTYPE, FAILED, RESPONSE, SECTOR, AoeError, Ata, Command
from ..wire.frames import ATA_DTYPE, ATA_SIZE, HEADER, HEADER_SIZE, Config, FrameError, Reserve
from ..wire.identify import SIZE as IDENTIFY_SIZE
from ..wire.identify import Identify
from .constants import (
    KEEPALIVE,
    PROBE_MIN,
    PROBE_OUT_FIRST,
    PROBE_OUT_MOST,
    PROBE_STRANGER,
    QUARANTINE,
    REFUSALS,
    RESENDS_AT_ONCE,
    RESENT_MANY,
    STREAM_LEAST,
    STREAM_SHARE,
    STRIKES_OUT,
    WINDOW_MOST,
)
from .copies import FLYING, GHOST, LOST, MASK, PROBED, STALE, Copies, Run
from .fence import NEVER, Fence, Phase
from .flight import FOREVER, Class, Flight
from .lock import IntervalLock, Range
from .path import Path, PathState
from .policy import HOLD, OnDead
from .reply import OK, aoe_refusal, ata_verdict
from .request import CHANGES, RANGED, Kind, Request

# What an older process's last writes must not come between: writing, and reading in order to write.
_AFTER_QUARANTINE = CHANGES | {Kind.LOCK}
_LOSSES = CHANGES | {Kind.FLUSH}
_SIZE_PROBES = {Kind.PROBE_REPLY: Kind.READ, Kind.PROBE_REQUEST: Kind.WRITE}
_OWNERSHIP = {Kind.SET, Kind.RESERVE}
_COMMAND = [Command.ATA] * len(Kind)
_COMMAND[Kind.QUERY] = _COMMAND[Kind.SET] = Command.CONFIG
_COMMAND[Kind.RESERVE] = Command.RESERVE


class Event(NamedTuple):
    """`what` is a fixed word (see the calls of `_tell`), `text` a sentence."""

    what: str
    text: str


_REGISTER, _STATUS = ATA_DTYPE.fields["error_feature"][1], ATA_DTYPE.fields["command_status"][1]  # type: ignore[index]

_FAILED: Final = int(FAILED)  # of an IntFlag every & would take microseconds


class Identity(NamedTuple):
    """What must stay the same of a disk. Capacity is looked at apart, for it may grow."""

    serial: str
    model: str
    wwn: int

    @classmethod
    def of(cls, identify: Identify) -> Identity:
        return cls(identify.serial, identify.model, identify.wwn)


class Initiator:
    """State of one LUN. Attributes for reading: `identify` (None until a path has answered), `paths`, `counters`."""

    def __init__(
        self,
        address: Address,
        *,
        seed: int,
        now: float,
        cap: int = 255,
        on_dead: OnDead = HOLD,
        quarantine: float = QUARANTINE,
        learn_paths: bool = False,
        fence: Fence | None = None,
    ) -> None:
        self.address = address
        self.fence = fence
        self.cap, self.on_dead, self.quarantine = cap, on_dead, quarantine
        self.share = WINDOW_MOST  # frames that may be outstanding, where others share the room for answers (`turns`)
        self.learn_paths = learn_paths  # whether an unasked announcement from a new MAC makes it a candidate
        self.identify: Identify | None = None
        self.paths: list[Path] = []
        self.counters: Counter[str] = Counter()
        self.served = [0] * len(Kind)  # clients' requests that were carried out, by kind
        self.sectors = [0] * len(Kind)  # and how many sectors they were about
        self.completed: list[Request] = []
        self.events: list[Event] = []
        self.history: deque[Event] = deque(maxlen=100)  # the last of them
        self._rng = random.Random(seed)
        self.copies = Copies(self._rng.randrange(1, 1 << 31))
        self._by_source: dict[tuple[str, bytes], Path] = {}
        self._lock = IntervalLock()
        self._ready: deque[Request] = deque()  # may be sent, and are not sent whole
        self._control: list[Request] = []  # pinned to a path
        self._again: list[tuple[float, int, Request, int, int]] = []  # heap: (when, serial, request, offset, length)
        self._serial = 0
        self._ghosts: dict[int, Range] = {}  # copy -> the range it keeps closed
        self._ghost_ends: list[tuple[float, int]] = []  # heap
        self._pending: dict[int, Request] = {}  # all that are not done, by id
        self._window_full = False
        self._gaps = False  # whether some flight has a gap
        self._timer = FOREVER  # a time at or before the one at which `tick` has something to do, and
        self._timer_stale = True  # whether that must be found out anew
        # Another process of this host may have died with writes on the wire: none of ours before those are gone.
        self._quarantined_until = now + quarantine
        self._writes_from = self._quarantined_until if fence is None else FOREVER  # or when the LUN has become ours
        self._early: list[Request] = []  # writes that wait for that
        self._parked: list[Request] | None = None  # while quiesced: what came since
        self._lost = ""  # why every request fails: the LUN is another host's
        self._locks = 0  # LOCKs held
        self._alive = now  # when any path last answered
        self._dead = False

    # -- paths -------------------------------------------------------------------------------------------------------

    def add_path(self, link: str, local: bytes, remote: bytes, mtu: int, config: Config, now: float) -> Path:
        """A way the LUN may be reached by. It carries requests once its IDENTIFY has shown the same disk."""
        known = self._by_source.get((link, remote))
        if known:
            return known
        path = Path(link, local, remote, mtu, config, self.cap, self.copies, self._rng, now)
        self._timer_stale = True
        self.paths.append(path)
        self._by_source[link, remote] = path
        return path

    def link_changed(self, link: str, local: bytes, mtu: int, up: bool, now: float) -> None:
        """Our interface has this MAC, MTU and carrier from now on."""
        self._timer_stale = True
        for path in self.paths:
            if path.link != link:
                continue
            path.local = local
            if mtu != path.mtu:
                path.resize(mtu, now)
                self._ask(path, Kind.QUERY)
            if not up and path.state is not PathState.DOWN:
                self._take_out(path, PathState.DOWN, now, f"{link} has no carrier")
            elif up and path.state is PathState.DOWN:
                path.state = PathState.NEW
                path.next_probe, path.probe_interval = now, PROBE_OUT_FIRST

    @property
    def up(self) -> bool:
        """Whether some path carries requests now."""
        return PathState.UP in [path.state for path in self.paths]

    @property
    def dead(self) -> bool:
        """Whether the target has been silent for so long that requests are being held or failed."""
        return self._dead

    @property
    def heard(self) -> float:
        """When the target last owed us nothing: it had answered, or nobody had asked."""
        return self._alive

    @property
    def writes_from(self) -> float:
        """When an older process's writes have landed or vanished, and the first of ours may go."""
        return self._quarantined_until

    def outstanding(self) -> int:
        """Copies under way by all paths. A question to a path that is not up does not count: perhaps nobody is there."""
        used = 0
        for path in self.paths:
            used += path.outstanding
            if path.state is not PathState.UP:
                used -= path.flights[Class.CONTROL].count
        return used

    def owed(self) -> int:
        """Copies of reads and writes under way, but for those of paths that have gone silent: their answers will come soon."""
        owed = 0
        for path in self.paths:
            for flight in (path.by_kind[Kind.READ], path.by_kind[Kind.WRITE]):
                if not flight.probes and not flight.backoff:
                    owed += flight.count
        return owed

    @property
    def wants_room(self) -> bool:
        """Whether anything waits to be sent, now or later."""
        return bool(self._ready or self._again or self._control)

    @property
    def ghosts(self) -> int:
        """Copies of finished writes that may still arrive somewhere."""
        return len(self._ghosts)

    @property
    def waiting(self) -> int:
        """Requests that are not done."""
        return len(self._pending) + len(self._parked or ())

    @property
    def withheld(self) -> int:
        """Parked requests whose loss would be one: those that change data, and flushes."""
        return sum(request.kind in _LOSSES for request in self._parked or ())

    def _take_out(self, path: Path, state: PathState, now: float, why: str) -> None:
        """`path` carries nothing for now: what is under way there goes elsewhere, or waits."""
        was_up = path.up
        self._timer_stale = True
        if self.fence is not None:
            self.fence.path_gone(path)
        path.state = state
        path.next_probe, path.probe_interval = now + PROBE_OUT_FIRST, PROBE_OUT_FIRST
        if state is PathState.STRANGER:
            path.next_probe = now + PROBE_STRANGER
        for flight in path.flights.values():
            for seq in flight.members():
                self._lose(seq, flight, now, at_once=True)
            flight.backoff, flight.probes = 0, 0
        path.strikes = 0
        if was_up or state is PathState.STRANGER:
            self.counters[f"path_{state.value}"] += 1
            self._tell(f"path-{state.value}", f"{self.address} by {path}: {why}")

    def _come_up(self, path: Path, now: float) -> None:
        if path.up:
            return
        path.state = PathState.UP
        self._timer_stale = True
        if self.fence is not None:
            self.fence.path_up(path, now)
        path.next_probe = now + KEEPALIVE
        path.sizes.restart(now)
        path.strikes = 0
        self.counters["path_up"] += 1
        self._tell("path-up", f"{self.address} is reached by {path}")
        self._heard(now)

    def _heard(self, now: float) -> None:
        """Our disk has answered."""
        self._alive = now
        if self._dead:
            self._dead = False
            self._timer_stale = True
            self._tell("alive", f"{self.address} answers again")

    def _tell(self, what: str, text: str) -> None:
        event = Event(what, text)
        self.history.append(event)
        if len(self.events) < 1000:
            self.events.append(event)

    # -- requests in -------------------------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> None:
        """Take a request. Ranged ones wait here for those before them that overlap."""
        request.submitted = now
        if self._parked is not None and (self._lost or request.under is None):  # what a LOCK has begun is ended
            if self._lost:
                self._fail(request, errno.EPERM, self._lost, now)
                return
            self.counters["held_quiesced"] += 1
            self._parked.append(request)
            return
        up = self.up
        if not self._pending:
            if up:
                self._alive = now  # the target owes no answer for the time in which nobody asked
            self._timer = min(self._timer, self._alive + self.on_dead.limit)
        self._pending[id(request)] = request
        if self._dead and self.on_dead.after is not None:
            self._fail(request, errno.EIO, "target does not answer", now)
            return
        if not up:
            self.counters["held_target_away"] += 1
        kind = request.kind
        if kind in RANGED and request.under is None:
            request.range = held = Range(request.lba, request.lba + request.count, kind is not Kind.READ, request)
            if not self._lock.acquire(held):
                self.counters["held_overlap"] += 1
                return
        self._granted(request, now)

    def release(self, lock: Request, now: float) -> None:
        """Give back the range of a done LOCK request."""
        if lock.range:
            self._locks -= 1
            held, lock.range = lock.range, None
            for ghost in lock.ghosts:
                ghost.owner = None
            for granted in self._lock.release(held, lock.ghosts):
                self._granted(granted.owner, now)

    def _granted(self, request: Request, now: float) -> None:
        if request.done:
            return
        if now < self._writes_from and request.kind in _AFTER_QUARANTINE:
            self.counters["held_quarantine"] += 1
            self._timer_stale = True
            self._early.append(request)
            if self.fence is not None:
                self.fence.want_write(now)
        elif request.kind is Kind.LOCK:
            self._locks += 1
            self._complete(request)
        else:
            self._ready.append(request)

    # -- quiesce -----------------------------------------------------------------------------------------------------

    def quiesce(self) -> None:
        """Carry out what is under way, and park what comes from now on, until `resume`. `quiet` says when it is over."""
        if self._parked is None:
            self._parked = []
            self._tell("quiesced", f"{self.address} takes no further requests: quiesced")

    def resume(self, now: float) -> None:
        """Carry out what was parked, in the order in which it came."""
        if self._lost:
            return
        parked, self._parked = self._parked, None
        if parked is not None:
            self._tell("resumed", f"{self.address} takes requests again ({len(parked)} were waiting)")
            for request in parked:
                self.submit(request, now)

    @property
    def quiesced(self) -> bool:
        """Whether new requests are parked."""
        return self._parked is not None and not self._lost

    def quiet(self, now: float) -> bool:
        """Whether it is quiesced and no copy of any write of this host, not even of an older process, can still land."""
        idle = not self._pending and not self._locks
        return self.quiesced and idle and not self._ghosts and now >= self._quarantined_until

    # -- a second host -----------------------------------------------------------------------------------------------

    def change_fence(self, change: Callable[[Fence], object], now: float) -> None:
        """Have something changed about who owns the LUN (`Fence.begin`, `release`, `take_over`), and heed what follows."""
        if self.fence is not None:
            change(self.fence)
            self._heed_fence(now)

    def _heed_fence(self, now: float) -> None:
        """After anything has happened to the fence: let writes go that it held back, or fail all if the LUN is lost."""
        fence = self.fence
        assert fence is not None
        self._timer_stale = True
        for what, text in fence.events:
            self._tell(what, f"{self.address}: {text}")
        fence.events.clear()
        if self._writes_from == FOREVER and fence.may_write:
            self._writes_from = self._quarantined_until
        if self._early and fence.record is not None:
            fence.want_write(now)  # which it may have been too early for, when they came
        if fence.phase is Phase.LOST and not self._lost:
            self._lost = f"{self.address} belongs to another host: {fence.why}"
            self.abandon(errno.EPERM, self._lost, now)
            self._parked = self._parked or []

    def _ask_fence(self, now: float) -> None:
        """Put the questions that are due about who owns the LUN."""
        fence = self.fence
        assert fence is not None
        for path, arg in fence.due(now, [path.local for path in self.paths]):
            kind = Kind.RESERVE if isinstance(arg, Reserve) else Kind.SET if arg.ccmd else Kind.QUERY
            request = Request(kind, path=path)  # type: ignore[arg-type]
            request.arg = arg
            self._control.append(request)
        self._heed_fence(now)

    def _ask(self, path: Path, kind: Kind, count: int = 0) -> None:
        """Have a question put to `path`: who it is, its configuration, or whether frames of `count` sectors get through."""
        asked = (q.path is path and q.kind is kind and q.count == count for q in self._control)
        self._timer_stale = True
        if not any(asked):  # one that waits will do
            self._control.append(Request(kind, count=count, path=path))

    # -- frames out --------------------------------------------------------------------------------------------------

    def transmit(self, now: float) -> list[Run]:
        """What to send now, in order. The caller must send it, or say what it could not by `unsent`."""
        runs: list[Run] = []
        if self._gaps:
            self._weigh_gaps(now)
        if self._control:
            self._transmit_control(runs, now)
        if not self._again and not self._ready:
            self._window_full = False
            return runs
        if self.fence is not None and now >= self.fence.closes_at:
            return runs  # what waits, waits
        carriers: list[Path] = []
        for path in self.paths:
            if path.hold_until and path.hold_until <= now:
                path.hold_until = 0.0
            if path.hold_until:
                self._timer_stale = True
            elif path.state is PathState.UP:
                carriers.append(path)
        if not carriers:
            return runs
        buffers = self._buffers()
        room = buffers - self.outstanding()
        while room > 0:
            again = bool(self._again and self._again[0][0] <= now)
            if not again and not self._ready:
                break
            request = self._again[0][2] if again else self._ready[0]
            carrier = self._choose(carriers, request.kind, now)
            if carrier is None:
                room = 0
                break
            space = min(room, carrier.room)
            if again:
                room -= self._resend(runs, carrier, space, now)
                continue
            used = self._send_next(runs, carrier, request, space, buffers, now)
            if used < 0:
                room = 0
                break
            room -= used
        if self._again:
            self._timer_stale = True
        self._window_full = room <= 0
        return runs

    def _transmit_control(self, runs: list[Run], now: float) -> None:
        """Questions to single paths. They too take no more than the target's buffers; what finds no room waits."""
        waiting: list[Request] = []
        for request in self._control:
            path = request.path
            assert path is not None
            if request.done or path.state is PathState.DOWN:
                continue
            if request.kind in _SIZE_PROBES and (
                not path.up or (self.fence is not None and now >= self.fence.closes_at)
            ):
                continue
            if path.outstanding >= path.buffers or (path.up and self.outstanding() >= self._buffers()):
                waiting.append(request)
            else:
                self._emit(runs, path, request, 0, 1, 1, now)
        self._control = waiting

    def _buffers(self) -> int:
        """Frames that the target, and we, can take at once. Its paths share them."""
        most = 1
        for path in self.paths:
            if path.state is PathState.UP and path.buffers > most:
                most = path.buffers
        return min(most, self.share)

    @staticmethod
    def _choose(carriers: list[Path], kind: Kind, now: float) -> Path | None:
        """The path by which an answer is to be expected soonest, of those whose window has room."""
        if len(carriers) == 1:
            return carriers[0] if carriers[0].room > 0 else None
        open_paths = [p for p in carriers if p.room > 0]
        return min(open_paths, key=lambda p: p.expected(kind, now), default=None)

    def _send_next(self, runs: list[Run], path: Path, request: Request, space: int, buffers: int, now: float) -> int:
        """First copies of the next part of the first ready request. Returns how many frames; -1 if it had better wait."""
        if request.done:
            self._ready.popleft()
            return 0
        if request.kind > Kind.WRITE:
            self._ready.popleft()
            return self._emit(runs, path, request, 0, 1, 1, now)
        step = path.sizes.limit[request.kind]
        length = request.count - request.unsent
        if length > space * step:
            if len(self.paths) > 1:
                space = min(space, 4)  # in small portions, so that each goes where it is answered soonest
            else:
                share = buffers // STREAM_SHARE
                if STREAM_LEAST <= buffers <= path.window.size and space < share <= path.by_kind[request.kind].count:
                    return -1  # enough is under way, and nothing got lost: what that brings back goes out in one go
            length = space * step
        used = self._emit(runs, path, request, request.unsent, length, step, now)
        run = runs[-1]
        request.unsent = run.offset + run.length
        if request.unsent == request.count:
            self._ready.popleft()
        return used

    def _resend(self, runs: list[Run], path: Path, space: int, now: float) -> int:
        """Further copies of what was lost longest ago and is not answered yet. Returns how many frames."""
        _, _, request, offset, length = heapq.heappop(self._again)
        if request.done:
            return 0
        used = 0
        step = path.sizes.limit[request.kind] if request.kind <= Kind.WRITE else 1
        for start, size in request.open_parts(offset, length):
            part = min(size, max(0, space - used) * step)
            if part:
                used += self._emit(runs, path, request, start, part, step, now)
                run = runs[-1]
                request.resent += tuple(range(run.seq, run.seq + run.count))
                self.counters["resent"] += run.count
                part = run.length
            if part < size:
                self._requeue(request, start + part, size - part, now)
        return used

    def _emit(
        self, runs: list[Run], path: Path, request: Request, offset: int, length: int, step: int, now: float
    ) -> int:
        """Number the copies of units [offset, offset + length) and have them sent, as far as one run goes."""
        copies, flight = self.copies, path.by_kind[request.kind]
        count = -(-length // step)
        allowed = copies.room(count, now - self.quarantine)
        if allowed < count:
            count, length = allowed, allowed * step
        run = Run(path, flight, request, copies.next, count, offset, length, step, now)
        first = not flight.count
        copies.add(run)
        flight.sent(run)
        if first and self._timer > now + PROBE_MIN:  # the least that a flight waits before anything must be done
            self._timer = min(self._timer, flight.timer())
        self.counters["sent"] += count
        runs.append(run)
        return count

    def unsent(self, run: Run, sent: int, reason: str, now: float) -> None:
        """Only the first `sent` frames of `run` left the host; the others are to be sent again a moment later."""
        self._timer_stale = True
        self.counters[f"send_failed_{reason}"] += run.count - sent
        run.flight.gone(run, run.count - sent)
        for seq in range(run.seq + sent, run.seq + run.count):
            self.copies.free(seq)
            if run.request.path is None and not run.request.done:
                self._requeue(run.request, *run.part(seq), now)
        if run.request.path is not None:
            self._control_lost(run.request, now + 1e-3)
        run.path.hold_until = now + 1e-3

    def left_late(self, run: Run, now: float) -> None:
        """The frames of `run` left the host only now, for it was held up: they are as young as that."""
        self._timer_stale = True
        run.sent = run.flight.moved = now

    # -- answers in --------------------------------------------------------------------------------------------------

    def _drop(self, reason: str) -> None:
        self.counters[f"dropped_{reason}"] += 1

    def receive(self, link: str, frame: bytes | memoryview, now: float) -> None:
        """Take one frame. It counts only if everything about it matches a copy that was sent to this LUN."""
        size = len(frame)
        if size < HEADER_SIZE:
            return self._drop("short")
        _, source, ethertype, flags, error, major, minor, command, tag = HEADER.unpack_from(frame)
        if ethertype != ETHERTYPE:
            return self._drop("ethertype")
        if not flags & RESPONSE:
            return self._drop("request")
        if major != self.address.shelf or minor != self.address.slot:
            return self._drop("address")
        path = self._by_source.get((link, source))
        if tag == 0 and command == Command.CONFIG and not flags & ERROR:
            return self._announced(link, path, source, frame, now)
        if path is None:
            return self._drop("source")
        seq = self.copies.find(tag)
        if seq < 0:
            return self._drop("tag")
        run = self.copies.owner(seq)
        request = run.request
        kind = request.kind
        if request.path is not None:
            if path is not request.path:  # who answers for another must not lend it his identity
                return self._drop("path")
        elif not path.believed:
            return self._drop("stranger")
        if command != _COMMAND[kind]:
            return self._drop("command")
        offset, length = run.part(seq)
        if flags & ERROR:
            self._answered(seq, run, path, now)
            return self._refused(request, path, offset, length, error, now)
        if command != Command.ATA:
            try:
                answer = Reserve.parse(frame) if command == Command.RESERVE else Config.parse(frame)
            except FrameError as problem:
                return self._drop(problem.reason)
            self._answered(seq, run, path, now)
            return self._configured(request, path, answer, run.sent, now)
        if size < ATA_SIZE:
            return self._drop("short")
        register, status = frame[_REGISTER], frame[_STATUS]
        verdict = ata_verdict(kind, self.opcode(request), status, register) if status & _FAILED else OK
        if not verdict.error:
            if kind is Kind.READ:
                wanted = length * SECTOR
            elif kind is Kind.PROBE_REPLY:
                wanted = request.count * SECTOR
            else:
                wanted = IDENTIFY_SIZE if kind in (Kind.IDENTIFY, Kind.PROBE_REQUEST) else 0
            if size < ATA_SIZE + wanted:
                return self._drop("runt")
        self._answered(seq, run, path, now)
        if verdict.error:
            self.counters[f"ata_error_{status:02x}_{register:02x}"] += 1
            if kind <= Kind.WRITE and length > path.sizes.most and not request.done:
                # ggaoed and kvblade abort what is too long for them; we have heard of the new limit meanwhile.
                self.counters["split_smaller"] += 1
                return self._requeue(request, offset, length, now)
            return self._fail(request, verdict.error, verdict.reason, now)
        fresh = request.answered.count(0, offset, offset + length)
        if request.done or not fresh:
            self.counters["spurious"] += 1
            return None
        if kind is Kind.READ:
            assert request.data is not None
            if fresh == length:
                at = offset * SECTOR
                request.data[at : at + wanted] = frame[ATA_SIZE : ATA_SIZE + wanted]
            else:
                for start, part in request.open_parts(offset, length):
                    data = ATA_SIZE + (start - offset) * SECTOR
                    request.data[start * SECTOR : (start + part) * SECTOR] = frame[data : data + part * SECTOR]
        request.answered[offset : offset + length] = b"\1" * length
        request.left -= fresh
        if kind <= Kind.WRITE:
            path.sizes.answered(kind, length, seq)
        elif kind in _SIZE_PROBES and request.path is not None:
            request.path.sizes.answered(_SIZE_PROBES[kind], request.count, seq)
        if kind is Kind.IDENTIFY:
            request.result = bytes(frame[ATA_SIZE : ATA_SIZE + IDENTIFY_SIZE])
            if request.path is not None:
                self._identified(request.path, request.result, now)
        if not request.left:
            self._finish(request, now)
        return None

    def path_of(self, link: str, source: bytes) -> Path | None:
        """The path by which frames come from MAC `source` on `link`."""
        return self._by_source.get((link, source))

    def answered_run(self, path: Path, run: Run, seq: int, count: int, now: float) -> None:
        """Book the prompt answers, which came by `path`, to copy `seq` of `run` and the `count` - 1 before it.

        Their data are in place (see `batch`), and the places of the copies are still theirs.
        """
        i = (seq & MASK) + 1
        self._heard_promptly(path, run, seq, count, now)
        self.copies.free_run(i - count, i)
        request = run.request
        path.sizes.answered(request.kind, min(run.step, run.length), seq)
        if path.state is PathState.OUT and path.verified:
            self._come_up(path, now)
        if not request.left:
            self._finish(request, now)

    def _heard_promptly(self, path: Path, run: Run, seq: int, count: int, now: float) -> None:
        """Copy `seq` of `run`, and the `count` - 1 copies before it, were answered while they were under way."""
        path.heard = now
        path.strikes = 0
        if path.state is PathState.UP:
            self._heard(now)
        flight = run.flight
        if self.copies.state[(seq - count) & MASK] == FLYING:  # it has overtaken another
            flight.gap = self._gaps = True
        if flight.backoff or flight.probes or not flight.rtt.srtt:
            self._timer_stale = True  # something may have to be done sooner than was thought
        flight.answered(run, seq, now, count)
        window = path.window
        if self._window_full:
            window.answered(flight.rtt, count)
        window.settled(seq)

    def _answered(self, seq: int, run: Run, path: Path, now: float) -> None:
        """Book the answer to a copy, in time or late, and let its ghost go."""
        state = self.copies.state[seq & MASK]
        if state == FLYING:
            self._heard_promptly(path, run, seq, 1, now)
        else:
            self._heard_late(path, run, seq, state, now)
        if path.state is PathState.OUT and path.verified and run.request.path is None:
            self._come_up(path, now)  # it knows a tag of ours from before: it is the target that we knew
        if seq in self._ghosts:
            self._let_go(seq, now)
        self.copies.free(seq)

    def _heard_late(self, path: Path, run: Run, seq: int, state: int, now: float) -> None:
        """Copy `seq` of `run` was answered after it had been given up."""
        self._timer_stale = True
        path.heard = now
        path.strikes = 0
        if path.state is PathState.UP:
            self._heard(now)
        run.flight.late(seq, run.sent, now)
        if state == PROBED:
            self.counters["probes_needless"] += 1
        else:
            self.counters["late"] += 1
            run.flight.false_alarm(now)
            path.window.undo()

    def _refused(self, request: Request, path: Path, offset: int, length: int, code: int, now: float) -> None:
        self.counters[f"aoe_error_{code}"] += 1
        fence = self.fence
        if fence is not None and request.path is None and code == AoeError.TARGET_RESERVED and fence.refused(now):
            self._heed_fence(now)
            if (
                not request.done and not self._lost
            ):  # it was not carried out: it waits until it is known whose the LUN is
                self._requeue(request, offset, length, now)
            return
        if request.kind in _OWNERSHIP:
            request.done = True
            if fence is not None and request.kind is Kind.RESERVE:
                fence.reserved(path, None, now)
                self._heed_fence(now)
            return
        if (
            code == AoeError.BAD_ARGUMENT
            and request.kind <= Kind.WRITE
            and length > 1
            and request.refusals < REFUSALS
            and not request.done
        ):
            # A size that it used to take: its MTU has changed. Ask, and meanwhile send less.
            if length <= path.sizes.most:  # the first frame to say so, of many that are under way
                request.refusals += 1
                path.sizes.refused(length)
                self._ask(path, Kind.QUERY)
            self.counters["split_smaller"] += 1
            self._requeue(request, offset, length, now)
            return
        verdict = aoe_refusal(code)
        self._fail(request, verdict.error, verdict.reason, now)

    def _announced(self, link: str, path: Path | None, source: bytes, frame: bytes | memoryview, now: float) -> None:
        """A target tells of itself unasked: it has started, or its MTU has changed."""
        try:
            config = Config.parse(frame)
        except FrameError as problem:
            return self._drop(problem.reason)
        self.counters["announced"] += 1
        self._timer_stale = True
        if path is None:
            if not self.learn_paths or self.identify is None or len(self.paths) >= 64 or source[0] & 1:
                return self._drop("source")  # before our disk is known, this might be taken for it
            like = next((p for p in self.paths if p.link == link), None)
            if like is None:
                return self._drop("source")
            self.add_path(link, like.local, source, like.mtu, config, now)
            return None
        path.heard = now
        if config.buffer_count > path.buffers:  # anything with tag 0 passes for an announcement: more must be asked for
            self._ask(path, Kind.QUERY)
            config = replace(config, buffer_count=path.buffers)
        path.configured(config, now)
        if path.state is not PathState.DOWN:
            if path.state in (PathState.UP, PathState.OUT):
                if self.fence is not None:
                    self.fence.path_gone(path)
                path.state = PathState.NEW  # perhaps with another disk: look before the next request goes there
            path.next_probe, path.probe_interval = now, PROBE_OUT_FIRST
        return None

    def _configured(self, request: Request, path: Path, answer: Config | Reserve, sent: float, now: float) -> None:
        """A question that is none of the disk's was answered; `sent` is when that copy of it went out."""
        self._timer_stale = True
        request.left = 0
        self._finish(request, now)
        if isinstance(answer, Config):
            path.configured(answer, now)
        if self.fence is not None:
            if isinstance(answer, Reserve):
                self.fence.reserved(path, answer.macs, now)
            elif request.kind is Kind.QUERY:
                self.fence.read(path, answer.string, sent, now)
            self._heed_fence(now)

    def _identified(self, path: Path, data: bytes, now: float) -> None:
        """A path's IDENTIFY has come: pin the first, compare all others, notice growth, refuse shrinkage."""
        self._timer_stale = True
        found = Identify.parse(data)
        pinned = self.identify
        if pinned is None:
            if not found.sectors:
                path.next_probe = now + PROBE_STRANGER
                return self._tell("empty", f"{self.address} by {path} has a capacity of zero")
            self.identify = pinned = found
        if Identity.of(found) != Identity.of(pinned) or (not path.verified and found.sectors != pinned.sectors):
            if path.state is not PathState.STRANGER:
                self._take_out(
                    path,
                    PathState.STRANGER,
                    now,
                    f"another disk answers there (serial {found.serial!r}, model {found.model!r}, {found.sectors} "
                    f"sectors; ours has {pinned.serial!r}, {pinned.model!r}, {pinned.sectors}); it gets nothing from us",
                )
            path.next_probe = now + PROBE_STRANGER
            return None
        if found.sectors < pinned.sectors:
            if path.state is not PathState.STRANGER:
                self._take_out(
                    path,
                    PathState.STRANGER,
                    now,
                    f"its capacity has shrunk from {pinned.sectors} to {found.sectors} sectors; requests wait",
                )
            path.next_probe = now + PROBE_OUT_MOST
            return None
        if found.sectors > pinned.sectors:
            self.identify = replace(pinned, sectors=found.sectors)
            self._tell("grown", f"{self.address} has grown from {pinned.sectors} to {found.sectors} sectors")
        path.verified = True
        self._come_up(path, now)
        return None

    # -- the end of a request ----------------------------------------------------------------------------------------

    def _finish(self, request: Request, now: float) -> None:
        """All of it is answered: free its range, but for copies of a write that may still arrive."""
        if request.done:
            return
        self._settle(request, request.resent, now)
        self._complete(request)

    def _fail(self, request: Request, error: int, reason: str, now: float) -> None:
        """It ends here. Copies of it that are under way keep their ranges as ghosts, for they may still be executed."""
        if request.done:
            return
        request.error, request.reason = error, reason
        if request.path is not None and request.kind not in _SIZE_PROBES:
            self._tell("refused", f"{self.address} by {request.path}, {request.kind.name}: {reason}")
        alive = [
            seq
            for path in self.paths
            for flight in path.flights.values()
            for seq in flight.members()
            if self.copies.owner(seq).request is request
        ]
        self._settle(request, (*request.resent, *alive), now)
        self._complete(request)

    def _settle(self, request: Request, copies: Sequence[int], now: float) -> None:
        """Give its range back, but for what those of these `copies` that may still arrive would change."""
        ghosts: list[Range] = []
        for seq in self._may_land(request, copies, now):
            i = seq & MASK
            run, state = self.copies.owner(seq), self.copies.state
            if request.kind in CHANGES:
                if request.kind is Kind.WRITE:
                    offset, length = run.part(seq)
                    ghost = Range(request.lba + offset, request.lba + offset + length, False)
                else:
                    ghost = Range(request.lba, request.lba + request.count, False)
                ghosts.append(ghost)
                self._ghosts[seq] = ghost
                heapq.heappush(self._ghost_ends, (run.sent + self.quarantine, seq))
                self._timer_stale = True
                if state[i] != FLYING:
                    state[i] = GHOST
                self.counters["ghosts"] += 1
            elif state[i] != FLYING:
                state[i] = STALE
        if request.range is not None:
            held, request.range = request.range, None
            for granted in self._lock.release(held, ghosts):
                self._granted(granted.owner, now)
        elif request.under is not None:
            for ghost in ghosts:  # they take the place of the LOCK's range once that is released
                ghost.owner = request.under
            request.under.ghosts += tuple(ghosts)

    def _may_land(self, request: Request, copies: Sequence[int], now: float) -> list[int]:
        """Those of these `copies` of the request that may still arrive somewhere. The others are forgotten."""
        table, found = self.copies, []
        for seq in dict.fromkeys(copies):
            i = seq & MASK
            run, state = table.run[i], table.state[i]
            if run is None or run.request is not request or not run.seq <= seq < run.seq + run.count:
                continue
            if state not in (FLYING, LOST, PROBED):
                continue
            if now < run.sent + self.quarantine:
                found.append(seq)
            elif state != FLYING:
                table.state[i] = STALE
        return found

    def _complete(self, request: Request) -> None:
        request.done = True
        request.data = None
        self._pending.pop(id(request), None)
        if request.path is None:
            self.completed.append(request)
            if request.error:
                self.counters[f"failed_{errno.errorcode.get(request.error, request.error)}"] += 1
            else:
                self.served[request.kind] += 1
                self.sectors[request.kind] += request.count

    def _let_go(self, seq: int, now: float) -> None:
        """No copy `seq` can land any more."""
        ghost = self._ghosts.pop(seq)
        if ghost.owner is not None:
            ghost.owner.ghosts = tuple(other for other in ghost.owner.ghosts if other is not ghost)
            return
        for granted in self._lock.release(ghost):
            self._granted(granted.owner, now)

    def abandon(self, error: int, reason: str, now: float) -> None:
        """Fail all requests (the process is ending, or the operator said so)."""
        parked = self._parked or ()
        if self._parked is not None:
            self._parked = []
        for request in [*self._pending.values(), *parked]:
            self._fail(request, error, reason, now)

    # -- loss --------------------------------------------------------------------------------------------------------

    def _requeue(self, request: Request, offset: int, length: int, when: float) -> None:
        """Have that part of a request sent again, from time `when` on. What is due is sent at once, or has no room."""
        self._serial += 1
        heapq.heappush(self._again, (when, self._serial, request, offset, length))

    def _lose(self, seq: int, flight: Flight, now: float, at_once: bool = False) -> None:
        """Copy `seq` counts as lost: no longer outstanding, and what it was for is sent again."""
        i = seq & MASK
        run, state = self.copies.owner(seq), self.copies.state
        request = run.request
        flight.gone(run)
        flight.given_up += 1
        self.counters["lost"] += 1
        if request.done:
            state[i] = GHOST if seq in self._ghosts else STALE
            return
        if request.path is not None:
            state[i] = STALE
            self._timer_stale = True
            alive = request.path.heard > run.sent  # then there is no hurry: it may be too busy for questions
            self._control_lost(request, now + PROBE_OUT_MOST if alive else now)
            return
        state[i] = LOST
        request.resent += (seq,)
        if len(request.resent) > request.resent_most:  # trouble may last for days
            request.resent = tuple(self._may_land(request, request.resent, now))
            request.resent_most = 2 * len(request.resent) + RESENT_MANY
        offset, length = run.part(seq)
        times = request.losses.get(offset, 0) + 1
        request.losses = {**request.losses, offset: times}
        wait = 0.0
        if times > RESENDS_AT_ONCE and not at_once:
            self._timer_stale = True
            wait = min(flight.rtt.rto * (1 << min(times - RESENDS_AT_ONCE, 8)), flight.rtt.most) * self._rng.uniform(
                0.9, 1.1
            )
        self._requeue(request, offset, length, now + wait)

    def _control_lost(self, request: Request, again: float) -> None:
        """A question to one path went unanswered: the path's own schedule asks again, one that is up at time `again`."""
        path = request.path
        assert path is not None
        request.done = True
        if path.up and request.kind not in _SIZE_PROBES:
            path.next_probe = again

    # -- time --------------------------------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `tick` is to be called next, at the latest. It may be for nothing, but not again and again.

        Finding the exact time out anew for every frame would cost more than all else about it. Traffic that goes well
        only puts deadlines off, so what was found out last holds for as long as nothing else happens.
        """
        if self._timer_stale:
            self._timer_stale = False
            self._timer = self._next_due()
        return self._timer

    def _next_due(self) -> float:
        at, shut = FOREVER, False
        if self.fence is not None:
            at, shut = self.fence.timer(), self.fence.closes_at == NEVER
        for path in self.paths:
            for flight in path.flights.values():
                if flight.count:
                    at = min(at, flight.timer())
            if path.state is PathState.DOWN:
                continue
            at = min(at, path.next_probe)
            if path.up:
                at = min(at, path.sizes.next_probe)
            if path.hold_until and path.up and (self._ready or self._again) and not shut:
                at = min(at, path.hold_until)
        if (
            self._again
            and not shut
            and not self._window_full
            and any(path.up and not path.hold_until for path in self.paths)
        ):
            at = min(at, self._again[0][0])
        if self._ghost_ends:
            at = min(at, self._ghost_ends[0][0])
        if self._early:
            at = min(at, self._writes_from)
        if self._pending and not self._dead:
            at = min(at, self._alive + self.on_dead.limit)
        return at

    def tick(self, now: float) -> None:
        """Do what is due by `now`. Harmless at any time."""
        self._timer_stale = True
        for path in self.paths:
            for flight in path.flights.values():
                if flight.count:
                    self._check(path, flight, now)
            self._look_after(path, now)
        if self.fence is not None and now >= self.fence.timer():
            self._ask_fence(now)
        while self._ghost_ends and self._ghost_ends[0][0] <= now:
            seq = heapq.heappop(self._ghost_ends)[1]
            if seq in self._ghosts:
                self._let_go(seq, now)
                if self.copies.state[seq & MASK] == GHOST:
                    self.copies.state[seq & MASK] = STALE
        if self._early and now >= self._writes_from:
            early, self._early = self._early, []
            for request in early:
                self._granted(request, now)
        self._check_alive(now)

    def _check(self, path: Path, flight: Flight, now: float) -> None:
        self._lose_overtaken(path, flight, flight.overtaken(now), now)
        head = flight.head()
        if head < 0:
            return
        wait = flight.probe_after
        if wait < FOREVER:
            if now >= flight.moved + wait:
                self._probe_tail(path, flight, head, now)
        elif now >= flight.moved + flight.rto:
            self._timed_out(path, flight, now)

    def _probe_tail(self, path: Path, flight: Flight, head: int, now: float) -> None:
        """Nothing moves: send the oldest once more, by which its loss or its neighbours' shows. No window is cut for it."""
        flight.probes += 1
        flight.moved = now
        run = self.copies.owner(head)
        request = run.request
        if request.done or request.path is not None:
            return
        self.counters["probes"] += 1
        flight.gone(run)  # its twin takes its place in the count, so that the target's buffers are not exceeded
        flight.given_up += 1
        self.copies.state[head & MASK] = PROBED
        request.resent += (head,)
        self._requeue(request, *run.part(head), 0.0)

    def _timed_out(self, path: Path, flight: Flight, now: float) -> None:
        silent = path.heard <= flight.moved
        flight.moved = now
        if flight.kind is Class.PROBE:
            for seq in flight.members():
                self._lose(seq, flight, now)
            return None
        self.counters["timeouts"] += 1
        flight.backoff += 1
        if silent:
            path.window.silent(self.copies.next)
            path.strikes += 1
            others = any(p.up for p in self.paths if p is not path)
            if path.strikes >= STRIKES_OUT and path.up and (others or now - path.heard > 0.2):
                return self._take_out(path, PathState.OUT, now, f"no answer for {now - path.heard:.3f} s")
        for seq in flight.members():
            if silent:
                self._lose(seq, flight, now)
            else:
                self._lose_alone(seq, path, flight, now)
        return None

    def _weigh_gaps(self, now: float) -> None:
        """After answers that overtook others: what is lost for sure is lost now, the rest is left to the reorder window."""
        self._gaps = False
        for path in self.paths:
            for flight in path.flights.values():
                if flight.gap:
                    self._lose_overtaken(path, flight, flight.passed(now), now)
                if flight.gap:
                    self._gaps = True
                    if not flight.timed:
                        flight.timed = self._timer_stale = True

    def _lose_overtaken(self, path: Path, flight: Flight, lost: list[int], now: float) -> None:
        if lost:
            self.counters["lost_overtaken"] += len(lost)
            for seq in lost:
                self._lose_alone(seq, path, flight, now)

    def _lose_alone(self, seq: int, path: Path, flight: Flight, now: float) -> None:
        """Copy `seq` got lost while others got through: the path is too full, or too narrow for its size."""
        if flight.kind is not Class.PROBE:
            path.window.lost(seq, self.copies.next)
        _, length = self.copies.owner(seq).part(seq)
        if flight.kind <= Class.WRITE and path.sizes.lost(flight.kind, length, seq, now):
            self.counters["size_stepped_down"] += 1
            self._timer_stale = True
            self._tell(
                "size", f"{self.address} by {path}: large frames get lost, sending {path.sizes.limit} sectors a frame"
            )
        self._lose(seq, flight, now)

    def _look_after(self, path: Path, now: float) -> None:
        """Ask a path that is not up who it is; keep one that is from going stale unnoticed."""
        if path.up and now >= path.sizes.next_probe:
            capacity = self.identify.sectors if self.identify else 0
            for way, sectors in path.sizes.due(now):
                if sectors <= capacity:
                    self._ask(path, Kind.PROBE_REQUEST if way else Kind.PROBE_REPLY, sectors)
        if path.state is PathState.DOWN or now < path.next_probe:
            return
        if not path.up:  # an earlier question that is still open is not worth a second buffer of the target
            control = path.flights[Class.CONTROL]
            for seq in control.members():
                self._lose(seq, control, now)
        self._ask(path, Kind.IDENTIFY)
        if path.up:
            path.next_probe = now + KEEPALIVE
            self._ask(path, Kind.QUERY)  # vblade looks at its MTU only when asked
        else:
            path.next_probe = now + (PROBE_STRANGER if path.state is PathState.STRANGER else path.probe_interval)
            path.probe_interval = min(path.probe_interval * 2, PROBE_OUT_MOST)

    def _check_alive(self, now: float) -> None:
        if not self._pending:
            return
        if self.up and not self.outstanding():  # they wait for a ghost, or for the quarantine
            self._alive = now
            return
        if self._dead or now < self._alive + self.on_dead.limit:
            return
        self._dead = True
        self.counters["dead"] += 1
        self._tell("dead", f"{self.address} has not answered for {now - self._alive:.1f} s: on-dead={self.on_dead}")
        if self.on_dead.after is not None:
            for request in list(self._pending.values()):
                self._fail(request, errno.EIO, f"target does not answer (on-dead={self.on_dead})", now)

    # -- what a request looks like on the wire ------------------------------------------------------------------------

    def opcode(self, request: Request) -> int:
        """The ATA opcode of a request to this LUN."""
        identify = self.identify
        lba48 = identify is None or identify.lba48
        if request.kind in (Kind.READ, Kind.PROBE_REPLY):
            return Ata.READ_EXT if lba48 else Ata.READ
        if request.kind is Kind.WRITE:
            if request.fua:
                return Ata.WRITE_DMA_FUA_EXT
            return Ata.WRITE_EXT if lba48 else Ata.WRITE
        if request.kind is Kind.FLUSH:
            # vblade aborts FLUSH CACHE EXT and says so in word 83 bit 13.
            return Ata.FLUSH_EXT if identify is not None and identify.lba48 and identify.flush_ext else Ata.FLUSH
        return {
            Kind.TRIM: Ata.DATA_SET_MANAGEMENT,
            Kind.IDENTIFY: Ata.IDENTIFY,
            Kind.PROBE_REQUEST: Ata.IDENTIFY,
            Kind.CHECK_POWER: Ata.CHECK_POWER,
        }[request.kind]
