# SPDX-License-Identifier: BSD-3-Clause
"""Initiators with one rule switched off: each is a fault that the simulation must find, or it proves nothing.

Every mutant changes as little as it can, from outside, and is otherwise the true initiator. `--without NAME` runs one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from aoe_nbd.core.copies import GHOST, LOST, MASK, PROBED, STALE, Run, tag_of
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.lock import IntervalLock, Range
from aoe_nbd.core.path import Path, PathState
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.codes import ERROR, RESPONSE, Command

from .driver import Driver


class Mutant(NamedTuple):
    """What runs in place of the true initiator and driver."""

    initiator: type[Initiator]
    driver: type[Driver]
    rule: str  # of the house plan, section 3
    theme: str = ""  # seeds about this show it soonest


MUTANTS: dict[str, Mutant] = {}


def _mutant(
    name: str, rule: str, driver: type[Driver] = Driver, theme: str = ""
) -> Callable[[type[Initiator]], type[Initiator]]:
    def register(kind: type[Initiator]) -> type[Initiator]:
        MUTANTS[name] = Mutant(kind, driver, rule, theme)
        return kind

    return register


# -- 1: a tag per copy -------------------------------------------------------------------------------------------------


class _OneTag(Driver):
    """All copies of the same sectors carry the first one's tag; its answer is taken for the newest copy's."""

    def encode(self, run: Run, i: int) -> tuple[bytes, memoryview | None]:
        header, payload = super().encode(run, i)
        names: dict[Any, int] = self.__dict__.setdefault("names_of", {})
        newest: dict[int, int] = self.__dict__.setdefault("newest", {})
        mine = tag_of(run.seq + i)
        tag = names.setdefault((id(run.request), run.offset + i * run.step), mine)
        table = self.initiator.copies
        older = table.find(newest.get(tag, 0))
        if older >= 0 and table.state[older & MASK] in (LOST, PROBED):
            table.free(older)  # there is but one entry for a tag
        newest[tag] = mine
        self.__dict__.setdefault("keep", []).append(run.request)  # so that its id stays its own
        return header[:20] + tag.to_bytes(4, "big") + header[24:], payload

    def _receive(self, link: str, frames: list[bytes], now: float) -> None:
        newest: dict[int, int] = self.__dict__.setdefault("newest", {})
        for frame in frames:
            tag = int.from_bytes(frame[20:24], "big")
            self.initiator.receive(link, frame[:20] + newest.get(tag, tag).to_bytes(4, "big") + frame[24:], now)


_mutant("tag-per-copy", "1", _OneTag)(Initiator)


class _LooseTagCheck(_OneTag):
    """The same, with the check of tags on the wire off: that the data suffer must be seen too."""

    checks_tags = False


_mutant("tag-per-copy-by-data", "1", _LooseTagCheck, "stale")(Initiator)


class _Bit31(Driver):
    """Tags look like those of the kernel's driver."""

    def encode(self, run: Run, i: int) -> tuple[bytes, memoryview | None]:
        header, payload = super().encode(run, i)
        return header[:20] + bytes((header[20] & 0x7F,)) + header[21:], payload


_mutant("tag-bit-31", "1", _Bit31)(Initiator)


# -- 2: interval lock with ghosts --------------------------------------------------------------------------------------


class _NoLock(IntervalLock):
    def acquire(self, r: Range) -> bool:
        self.keep(r)
        return True


class _ByData(Driver):
    """Does not look at what is under way, so that the data must show it."""

    checks_overlap = False


@_mutant("interval-lock", "2")
class _Unlocked(Initiator):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = _NoLock()


_mutant("interval-lock-by-data", "2", _ByData)(_Unlocked)


class _ReadsPass(IntervalLock):
    def acquire(self, r: Range) -> bool:
        if not r.exclusive:
            self.keep(r)
            return True
        return super().acquire(r)


@_mutant("reads-wait", "2")
class _PassingReads(Initiator):
    """Reads do not wait for writes before them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lock = _ReadsPass()


class _Forgetful(Initiator):
    """Ghosts vanish as soon as they are born."""

    def _forgets(self, request: Request) -> bool:
        return True

    def _settle(self, request: Request, copies: list[int], now: float) -> None:
        before = set(self._ghosts)
        super()._settle(request, copies, now)
        if self._forgets(request):
            for seq in [seq for seq in self._ghosts if seq not in before]:
                self._let_go(seq, now)
                if self.copies.state[seq & MASK] == GHOST:
                    self.copies.state[seq & MASK] = STALE


_mutant("ghosts", "2", theme="stale")(_Forgetful)


@_mutant("ghosts-of-failures", "2", theme="fail")
class _NoFailedGhosts(_Forgetful):
    """A write that failed leaves no ghosts."""

    def _forgets(self, request: Request) -> bool:
        return bool(request.error)


@_mutant("quarantine", "2", theme="stale")
class _NoQuarantine(Initiator):
    """Ghosts are forgotten at once, and a new process writes at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, quarantine=0.0)


@_mutant("quarantine-at-start", "2", theme="crash")
class _NoStart(Initiator):
    """A new process writes at once, whatever the old one has left on the wire."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._writes_from = kwargs["now"]


class _Untold(Driver):
    """Does not tell the core that it was held up between asking for frames and sending them."""

    def left_late(self, run: Run, sent: int, at: float) -> None:
        pass


_mutant("quarantine-from-sending", "2", _Untold, "stale")(Initiator)


@_mutant("lock-of-modify", "2")
class _UnlockedModify(Initiator):
    """A read-modify-write does not hold its range in between."""

    def submit(self, request: Request, now: float) -> None:
        if request.kind is Kind.LOCK:
            request.lba, request.count = (1 << 46) + request.lba * 1000, 1
        elif request.under is not None:
            request.under = None
        super().submit(request, now)


@_mutant("lock-is-released", "2", theme="fail")
class _Leak(Initiator):
    """A range is not given back when its write fails."""

    def _settle(self, request: Request, copies: list[int], now: float) -> None:
        if request.error and request.kind is Kind.WRITE and request.range is not None:
            request.range = None
        super()._settle(request, copies, now)


@_mutant("quiesce-waits-for-ghosts", "2", theme="stale")
class _HastyGhosts(Initiator):
    """Quiet is said while a copy of a finished write may still arrive."""

    def quiet(self, now: float) -> bool:
        ghosts, self._ghosts = self._ghosts, {}
        try:
            return super().quiet(now)
        finally:
            self._ghosts = ghosts


@_mutant("quiesce-waits-for-older", "2", theme="crash")
class _HastyStart(Initiator):
    """Quiet is said while an older process's writes may still arrive."""

    def quiet(self, now: float) -> bool:
        return super().quiet(max(now, self._writes_from))


@_mutant("quiesce-waits-for-modify", "2")
class _HastyModify(Initiator):
    """Quiet is said in the middle of a read-modify-write."""

    def quiet(self, now: float) -> bool:
        locks, self._locks = self._locks, 0
        try:
            return super().quiet(now)
        finally:
            self._locks = locks


@_mutant("quiesce-parks", "2")
class _Porous(Initiator):
    """Requests go on being served."""

    def quiesce(self) -> None:
        super().quiesce()
        parked = self._parked
        assert parked is not None

        class Through(list[Request]):
            def append(this, request: Request) -> None:
                self._parked = None
                self.submit(request, request.submitted)
                self._parked = this

        self._parked = Through(parked)


# -- 3: what an answer must match --------------------------------------------------------------------------------------


def _receiving(name: str, change: Callable[[Initiator, str, bytes], bytes], theme: str = "") -> None:
    """A mutant to which every answer looks right in one respect."""

    class Lenient(Initiator):
        def receive(self, link: str, frame: bytes | memoryview, now: float) -> None:
            frame = bytes(frame)
            super().receive(link, change(self, link, frame) if len(frame) >= 24 else frame, now)

    MUTANTS[name] = Mutant(Lenient, _OneByOne, "3", theme)


class _OneByOne(Driver):
    """Gives the initiator each frame apart, so that a mutant's `receive` sees all of them."""

    def _receive(self, link: str, frames: list[bytes], now: float) -> None:
        for frame in frames:
            self.initiator.receive(link, frame, now)


def _any_source(initiator: Initiator, link: str, frame: bytes) -> bytes:
    table = initiator.copies
    seq = table.find(int.from_bytes(frame[20:24], "big"))
    owner = table.owner(seq).request if seq >= 0 else None
    path = owner.path if owner is not None else None
    if path is None:
        path = next((p for p in initiator.paths if p.link == link and p.verified), None)
    return frame[:6] + path.remote + frame[12:] if path is not None else frame


def _any_tag(initiator: Initiator, link: str, frame: bytes) -> bytes:
    table = initiator.copies
    i = int.from_bytes(frame[20:24], "big") & MASK
    run = table.run[i]
    if run is None or not table.state[i]:
        return frame
    return frame[:20] + tag_of(run.seq + i - (run.seq & MASK)).to_bytes(4, "big") + frame[24:]


def _any_command(initiator: Initiator, link: str, frame: bytes) -> bytes:
    table = initiator.copies
    seq = table.find(int.from_bytes(frame[20:24], "big"))
    owner = table.owner(seq).request if seq >= 0 else None
    if owner is None:
        return frame
    return frame[:19] + bytes((Command.CONFIG if owner.kind is Kind.QUERY else Command.ATA,)) + frame[20:]


def _any_length(initiator: Initiator, link: str, frame: bytes) -> bytes:
    return frame.ljust(36 + 512 * 255, b"\0") if len(frame) >= 36 else frame


_receiving("source-mac", _any_source)
_receiving("tag-check", _any_tag)
_receiving("command-check", _any_command)
_receiving("length-check", _any_length)
_receiving(
    "address-check", lambda i, _, f: f[:16] + i.address.shelf.to_bytes(2, "big") + bytes((i.address.slot,)) + f[19:]
)
_receiving("response-bit", lambda i, _, f: f[:14] + bytes((f[14] | RESPONSE,)) + f[15:])
_receiving("error-flag", lambda i, _, f: f[:14] + bytes((f[14] & ~ERROR,)) + f[15:], "fail")


# -- 4: done means done ------------------------------------------------------------------------------------------------


@_mutant("all-answers", "4", _OneByOne)
class _Early(Initiator):
    """A write is acknowledged after the first answer to any part of it."""

    def receive(self, link: str, frame: bytes | memoryview, now: float) -> None:
        super().receive(link, frame, now)
        for request in list(self._pending.values()):
            if request.kind is Kind.WRITE and 0 < request.left < request.count and request.unsent == request.count:
                self._finish(request, now)


@_mutant("flush-is-sent", "4", theme="power")
class _NoFlush(Initiator):
    """A flush is acknowledged without asking the target."""

    def _granted(self, request: Request, now: float) -> None:
        if request.kind is Kind.FLUSH:
            self._complete(request)
        else:
            super()._granted(request, now)


@_mutant("fua", "4", theme="power")
class _NoFua(Initiator):
    """FUA writes are sent as plain ones."""

    def submit(self, request: Request, now: float) -> None:
        request.fua = False
        super().submit(request, now)


# -- 5, 6: errors are answers, a dead target is a pause ----------------------------------------------------------------


@_mutant("retransmission", "6")
class _Once(Initiator):
    """What is lost stays lost."""

    def _requeue(self, *args: Any) -> None:
        pass


@_mutant("hold", "6")
class _Impatient(Initiator):
    """Requests fail while the target is silent, although they are to be held."""

    def _take_out(self, path: Path, state: PathState, now: float, why: str) -> None:
        super()._take_out(path, state, now, why)
        if not self.up:
            self.abandon(5, "target does not answer", now)


@_mutant("probing-back", "6")
class _Out(Initiator):
    """A path that is out stays out."""

    def _look_after(self, path: Path, now: float) -> None:
        if path.state is PathState.OUT:
            path.next_probe = float("inf")
        super()._look_after(path, now)


# -- 7: identity pin ---------------------------------------------------------------------------------------------------


@_mutant("identity", "7")
class _Trusting(Initiator):
    """Whatever answers to IDENTIFY is our disk."""

    def _identified(self, path: Path, data: bytes, now: float) -> None:
        if self.identify is None:
            super()._identified(path, data, now)
        else:
            path.verified = True
            self._come_up(path, now)


# -- 8: courtesy -------------------------------------------------------------------------------------------------------


@_mutant("buffer-count", "8")
class _Greedy(Initiator):
    """The window ignores the target's buffer count."""

    def transmit(self, now: float) -> list[Run]:
        for path in self.paths:
            path.buffers = max(path.buffers, 64)
            path.window.set_cap(path.buffers)
            path.window.size = float(path.buffers)
        return super().transmit(now)


# -- 9: bounded --------------------------------------------------------------------------------------------------------


@_mutant("buffer-after-completion", "9", _OneByOne)
class _Hoarder(Initiator):
    """A request's buffer is written to by late answers, after it was given back."""

    def submit(self, request: Request, now: float) -> None:
        if request.kind is Kind.READ:
            self.__dict__.setdefault("hoard", {})[id(request)] = (request, request.data)
        super().submit(request, now)

    def receive(self, link: str, frame: bytes | memoryview, now: float) -> None:
        table = self.copies
        seq = table.find(int.from_bytes(frame[20:24], "big")) if len(frame) > 36 else -1
        owner = table.owner(seq).request if seq >= 0 else None
        if owner is not None and owner.done and owner.kind is Kind.READ:
            at = table.owner(seq).part(seq)[0] * 512
            data = self.__dict__["hoard"][id(owner)][1]
            size = min(len(frame) - 36, len(data) - at)
            data[at : at + size] = frame[36 : 36 + size]
        super().receive(link, frame, now)


@_mutant("buffer-reference", "9")
class _Keeper(Initiator):
    """The reference to a done request's buffer is kept."""

    def _complete(self, request: Request) -> None:
        data = request.data
        super()._complete(request)
        request.data = data


@_mutant("no-busy-loop", "9")
class _Spinner(Initiator):
    """The timer names a moment at which nothing is done."""

    def timer(self) -> float:
        return 0.0 if self.outstanding() else super().timer()
