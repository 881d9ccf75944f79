# SPDX-License-Identifier: BSD-3-Clause
"""The engine: moves frames between the sans-IO core and the links. The only clock, and the only thread of ours that waits.

A caller's thread submits its request and sends what the window lets out at once, under the engine's lock; then it sleeps
on its slot's eventfd. The I/O thread receives, runs the timers and sends the rest. A caller who is alone receives its
answer itself, which saves two task switches. It looks for it for a moment (`busypoll`), and then waits in an epoll set of
its own, which the kernel asks before the I/O thread's (EPOLLEXCLUSIVE: a frame wakes one of them, in the order of
registration, if it is waiting; so one that comes while nobody is alone, or too late for him, wakes the I/O thread). Before
`start` there is no such thread (nbdkit forks between discovery and service): a waiting caller then turns the loop itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import secrets
import select
import struct
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from .busypoll import BusyPoll
from .core import encode
from .core.batch import Array, common, lone
from .core.batch import receive as receive_rows
from .core.copies import Run
from .core.exchange import Exchange
from .core.flight import FOREVER
from .core.initiator import Event, Initiator
from .core.request import Kind, Request
from .core.turns import Turns
from .link import Interface, InterfaceWatch, Link, interfaces
from .link.packet import BATCH, address_of, errno_name
from .wire.address import Address
from .wire.codes import SECTOR
from .wire.frames import HEADER_SIZE

log = logging.getLogger("aoe_nbd")

_ADDRESS = struct.Struct(">HB")
_ADDRESS_OFFSET: Final = 16
_BATCH: Final = 4  # frames waiting, from which on they are looked at as an array
_LONE: Final = 32  # frames that are looked at one by one where the first is the only one of its request
_EXCLUSIVE: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE
_EVERY: Final = 0.002  # how often a caller of `wait` looks, once the I/O thread runs
_LATE: Final = (
    0.01  # s from asking the core for frames to their sending, after which it must know: quarantines count from there
)
_WATCH_AFTER: Final = 0.3  # s from the start
_FAULTS: Final = 20  # unexpected exceptions of the loop in a row, until it gives up

_libc = ctypes.CDLL(None, use_errno=True)


def _stretches(addresses: bytes) -> Iterator[tuple[bytes, int]]:
    """Each address in an array of such, and how many times in a row it comes there."""
    size = _ADDRESS.size
    while addresses:
        address = addresses[:size]
        count = common(addresses, address * (len(addresses) // size)) // size
        yield address, count
        addresses = addresses[count * size :]


class _Timer:
    """A timerfd: epoll's own timeout is too coarse for a network with round trips of 100 µs."""

    def __init__(self) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, flags)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = (ctypes.c_long * 4)()
        self.at = FOREVER

    def set(self, at: float) -> None:
        """Fire at monotonic time `at`, if that is earlier than what is set. It may fire for nothing."""
        if at >= self.at:
            return
        self.at = at
        self._spec[2] = int(at)
        self._spec[3] = max(1, int((at - int(at)) * 1e9))
        _libc.timerfd_settime(self.fd, 1, ctypes.byref(self._spec), None)  # 1: absolute

    def fired(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)
        self.at = FOREVER

    def close(self) -> None:
        os.close(self.fd)


class Engine:
    """Initiators and exchanges over a set of links. All public methods may be called from any thread."""

    def __init__(
        self,
        links: Iterable[Link],
        on_event: Callable[[Initiator, Event], None] | None = None,
        busy_poll: float = 0.0,
    ) -> None:
        """`busy_poll`: for how many seconds at most a lone caller looks for its answer before it sleeps."""
        self.links = {link.name: link for link in links}
        self.counters: Counter[str] = Counter()
        self._on_event = on_event or (lambda initiator, event: None)
        self._initiators: dict[Address, Initiator] = {}
        self._exchanges: list[Exchange] = []
        self._lock = threading.RLock()
        self._turns = Turns(1)  # of several initiators
        self._slots: deque[int] = deque()  # idle eventfds
        self._inbox: deque[tuple[Initiator, Request]] = deque()  # not submitted yet
        self._loop_thread: threading.Thread | None = None
        self._watch: InterfaceWatch | None = None
        self._watcher: threading.Thread | None = None  # who makes that
        self._stopped = False
        self._ending = threading.Event()
        self._finished = 0
        self._faults = 0  # in a row
        self._touched: set[Initiator] = set()  # in this turn: to be flushed
        self._told: deque[tuple[Initiator, Event]] = deque()
        self._timer = _Timer()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._alone = select.epoll()  # who waits there, one at a time, holds `_solo`
        self._alone_wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._alone.register(self._alone_wake, select.EPOLLIN)
        self._solo = threading.Lock()
        self._polling = BusyPoll(busy_poll)
        self._listening = True  # whether frames wake the I/O thread
        self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._by_fd: dict[int, Link] = {}
        self._headers = {link: encode.Headers(link.headers) for link in self.links.values()}
        for link in self.links.values():
            self._register(link)

    def _register(self, link: Link) -> None:
        self._by_fd[link.fileno()] = link
        self._alone.register(link.fileno(), _EXCLUSIVE)  # first
        if self._listening:
            self._epoll.register(link.fileno(), _EXCLUSIVE)

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the loop in a thread of its own from now on. Call it in the process that serves, after any fork."""
        self._loop_thread = threading.Thread(target=self._run, name="aoe-io", daemon=True)
        self._loop_thread.start()
        self._watcher = threading.Thread(target=self._watch_interfaces, name="aoe-links", daemon=True)
        self._watcher.start()

    def _watch_interfaces(self) -> None:
        """Have the loop hear of changes of our interfaces, and of those that there were before it did.

        Not at once, for that takes much of the CPU time of a start, and a bridge may be made for a single short use.
        """
        if self._ending.wait(_WATCH_AFTER):
            return
        watch = InterfaceWatch()
        with self._lock:
            if self._epoll.closed:
                watch.close()
                return
            self._watch = watch
            self._epoll.register(watch.fileno(), select.EPOLLIN)
            self._refresh()
        self._submit()

    def stop(self) -> None:
        """Fail what waits, end the thread and close everything. May be called twice."""
        self.abandon(errno.ESHUTDOWN, "the bridge is shutting down")
        self._stopped = True
        self._ending.set()
        os.eventfd_write(self._wake, 1)
        if self._loop_thread is not None and self._loop_thread is not threading.current_thread():
            self._loop_thread.join()
        if self._watcher is not None:
            self._watcher.join()
        with self._lock:
            if self._epoll.closed:
                return
            self._epoll.close()
            self._alone.close()
            if self._watch is not None:
                self._watch.close()
            for link in self.links.values():
                link.close()
            self._timer.close()
            os.close(self._wake)
            os.close(self._alone_wake)
            for fd in self._slots:
                os.close(fd)

    def abandon(self, error: int, reason: str) -> None:
        """Fail all that is under way, and all that comes after it."""
        with self._lock:
            self._stopped = True
            for initiator in self._initiators.values():
                initiator.abandon(error, reason, time.monotonic())
                self._collect(initiator)
        self._submit()

    # -- work --------------------------------------------------------------------------------------------------------

    def add(self, initiator: Initiator) -> None:
        """Run this initiator from now on. One a LUN: the interval lock is its own."""
        with self._lock:
            if initiator.address in self._initiators:
                raise ValueError(f"{initiator.address} has an initiator already")
            self._initiators[initiator.address] = initiator
            self._share()
        self.kick()

    def remove(self, initiator: Initiator) -> None:
        """Run it no longer."""
        with self._lock:
            self._initiators.pop(initiator.address, None)
            self._turns.forget(initiator)
            self._share()
        self.kick()  # others may have waited for its room

    def _share(self) -> None:
        """All answers that all initiators together may be owed must find room in a link's ring."""
        room = min(link.slots for link in self.links.values()) * 3 // 4  # others send frames too
        self._turns.resize(room)
        for initiator in self._initiators.values():
            initiator.share = room

    def find(self, address: Address) -> Initiator | None:
        """The initiator of this LUN, if there is one."""
        return self._initiators.get(address)

    def execute(self, initiator: Initiator, request: Request) -> None:
        """Submit `request` and wait until it is done; its `error` tells how it went."""
        others = initiator.waiting
        if not others and self._loop_thread is not None and self._solo.acquire(blocking=False):
            try:
                self._execute_alone(initiator, request)
            finally:
                self._solo.release()
            return
        if others > 1:
            self._polling.crowd()
        slots = self._slots
        try:
            slot = slots.pop()
        except IndexError:
            slot = os.eventfd(0, os.EFD_CLOEXEC)
        request.token = slot
        self._inbox.append((initiator, request))
        self._submit()
        if self._loop_thread is None:
            self.wait(lambda: request.done, FOREVER)
        os.eventfd_read(slot)
        while not request.done:
            os.eventfd_read(slot)
        slots.append(slot)

    def _execute_alone(self, initiator: Initiator, request: Request) -> None:
        """The same for one that nobody else waits with: its caller receives the answer."""
        request.token = self._alone_wake
        self._inbox.append((initiator, request))
        self._submit(request)
        now = time.monotonic()
        if self._polling.wanted(now):
            self._poll(request, now + self._polling.limit)
        while not request.done:
            self._guarded_turn(self._alone, request)
        for link in self.links.values():
            if link.waiting():
                self.kick()  # nobody else has been told of those frames

    def _poll(self, request: Request, until: float) -> None:
        """Look for the answer until then. The I/O thread hears nothing of frames meanwhile: each would wake it."""
        self._listen(False)
        try:
            while not request.done and time.monotonic() < until:
                self._guarded_turn(self._alone, request, 0.0)
        finally:
            self._listen(True)
        self._polling.over(request.done)

    def _listen(self, listening: bool) -> None:
        """Whether the I/O thread is to be woken by frames."""
        with self._lock:
            self._listening = listening
            for fd in () if self._epoll.closed else self._by_fd:
                if listening:
                    self._epoll.register(fd, _EXCLUSIVE)
                else:
                    self._epoll.unregister(fd)
        self._submit()

    def _submit(self, own: Request | None = None) -> None:
        """Take in what lies in the inbox, unless another thread holds the lock: then that one does, as it lets go of it.

        Callers never queue up for the lock. With the interpreter's own lock behind it, each would cost a task switch.
        """
        while self._inbox and self._lock.acquire(blocking=False):
            try:
                now = time.monotonic()
                touched: set[Initiator] = set()
                while self._inbox:
                    initiator, request = self._inbox.popleft()
                    if self._stopped:
                        request.error, request.reason = errno.ESHUTDOWN, "the bridge is ending"
                        request.data, request.done = None, True
                        os.eventfd_write(request.token, 1)
                        continue
                    initiator.submit(request, now)
                    touched.add(initiator)
                for initiator in touched:
                    self._flush(initiator, now, own)
            finally:
                self._lock.release()

    def _flush(self, initiator: Initiator, now: float, own: Request | None = None) -> None:
        """After anything has happened to it: send what may be sent, wake those whose requests are done, set the timer."""
        if len(self._initiators) > 1:
            self._take_turns(initiator, now)
        else:
            self._transmit(initiator, now)
        self._collect(initiator, own)
        self._timer.set(initiator.timer())

    def _take_turns(self, initiator: Initiator, now: float) -> None:
        """Send what it may send, and what others may that have waited for room."""
        turns = self._turns
        turns.begin(initiator)
        self._transmit(initiator, now)
        turns.end(initiator)
        while (other := turns.next()) is not None:
            self._transmit(other, now)
            turns.end(other)
            self._timer.set(other.timer())

    def release(self, initiator: Initiator, lock: Request) -> None:
        """Give back the range of a LOCK request."""
        self.change(initiator, lambda now: initiator.release(lock, now))

    def change(self, initiator: Initiator, change: Callable[[float], None]) -> None:
        """Have the initiator's state changed between two turns of the loop, at a time that `change` is told."""
        with self._lock:
            now = time.monotonic()
            change(now)
            self._flush(initiator, now)
        self._submit()

    def ask(self, exchange: Exchange, grace: float | None = None) -> Exchange:
        """Put a question and wait for its answers. With `grace`, stop that many seconds after the first of them."""
        first = FOREVER

        def over() -> bool:
            nonlocal first
            now = time.monotonic()
            if exchange.answers and first == FOREVER:
                first = now
            return exchange.done(now) or (grace is not None and now >= first + grace)

        self.begin(exchange)
        try:
            self.wait(over, FOREVER)
        finally:
            self.end(exchange)
        return exchange

    def begin(self, exchange: Exchange) -> None:
        """Put a question without waiting, among others perhaps. It is asked until `end`."""
        with self._lock:
            self._exchanges.append(exchange)
        self.kick()

    def end(self, exchange: Exchange) -> None:
        """Ask it no longer: what answers come later are dropped."""
        with self._lock:
            self._exchanges.remove(exchange)
        self._submit()

    def stuck_at(self) -> int | None:
        """None if no request waits; else how many are finished so far."""
        if not any(initiator.waiting for initiator in list(self._initiators.values())):
            return None
        return self._finished

    def addresses(self) -> list[tuple[str, bytes]]:
        """(name, MAC) of each link, as `Exchange` wants them."""
        return [(link.name, link.mac) for link in self.links.values()]

    def seed(self) -> int:
        """An unpredictable number to start tags from."""
        return secrets.randbits(62)

    def wait(self, over: Callable[[], bool], deadline: float) -> bool:
        """Let things happen until `over()`, or until monotonic time `deadline`. Returns the last `over()`."""
        while not over():
            now = time.monotonic()
            if now >= deadline or self._stopped:
                return over()
            if self._loop_thread is None:
                self._step(min(0.01, deadline - now))
            else:
                time.sleep(_EVERY)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the loop off, to read a state that it changes."""
        with self._lock:
            yield
        self._submit()  # what callers have left in the inbox meanwhile

    def kick(self) -> None:
        """Have the loop look at everything now."""
        os.eventfd_write(self._wake, 1)

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            self._guarded_turn(self._epoll)

    def _guarded_turn(self, waiting: select.epoll, own: Request | None = None, timeout: float | None = None) -> None:
        """A turn that lives through a fault of ours: it must not leave a guest's request waiting for ever."""
        try:
            ready = waiting.poll(timeout)
            if ready:
                self._turn(ready, own)
            self._faults = 0
        except Exception:
            self.counters["faults"] += 1
            self._faults += 1
            log.error("internal error: %s", traceback.format_exc())
            if self._faults >= _FAULTS:
                self.abandon(errno.EIO, "internal error")
            else:
                time.sleep(0.01)

    def _step(self, timeout: float | None) -> None:
        self._turn(self._epoll.poll(timeout))

    def _turn(self, ready: list[tuple[int, int]], own: Request | None = None) -> None:
        """Deal with what is `ready`. The caller looks himself whether his `own` request is done."""
        with self._lock:
            if self._stopped:
                return
            now = time.monotonic()
            touched = self._touched
            for fd, events in ready:
                link = self._by_fd.get(fd)
                if link is not None:
                    self._receive(link, now)
                    if events & select.EPOLLERR:
                        self.counters[f"link_error_{errno_name(link.error())}"] += 1
                elif fd == self._timer.fd:
                    self._timer.fired()
                elif fd in (self._wake, self._alone_wake):
                    with contextlib.suppress(BlockingIOError):
                        os.eventfd_read(fd)
                    for link in self.links.values():
                        self._receive(link, now)
                    touched.update(self._initiators.values())
                else:
                    self._links_changed(now)
                    touched.update(self._initiators.values())
            for exchange in self._exchanges:
                for name, frame in exchange.due(now):
                    self._send_frame(self.links[name], frame)
                if not exchange.done(now):
                    self._timer.set(exchange.timer())
            for initiator in self._initiators.values():
                at = initiator.timer()
                if at <= now:
                    initiator.tick(now)
                elif initiator not in touched:
                    self._timer.set(at)
                    continue
                self._flush(initiator, now, own)
            touched.clear()
        self._submit(own)
        while self._told:
            self._on_event(*self._told.popleft())

    def _receive(self, link: Link, now: float) -> None:
        most = _BATCH - 1  # what follows may be an array again, in the next turn
        try:
            if link.waiting(_BATCH):
                if self._in_a_row(link) and (batch := link.receive_rows()):
                    self._receive_rows(link, *batch, now)
                    return
                most = _LONE
            for frame in link.receive(most):
                self._dispatch(link, frame, now)
        finally:
            link.release()

    def _in_a_row(self, link: Link) -> bool:
        """Whether the frames that wait are answers to requests of many frames, and not to small ones: an array is worth it."""
        head = link.peek(HEADER_SIZE)
        initiator = self._initiators.get(_ADDRESS.unpack_from(head, _ADDRESS_OFFSET))  # type: ignore[call-overload]
        return initiator is not None and not lone(initiator, head)

    def _receive_rows(self, link: Link, rows: Array, lengths: Array, now: float) -> None:
        def otherwise(frame: memoryview) -> None:
            self._dispatch(link, frame, now)

        at = 0
        for address, count in _stretches(rows[:, _ADDRESS_OFFSET : _ADDRESS_OFFSET + _ADDRESS.size].tobytes()):
            initiator = self._initiators.get(_ADDRESS.unpack(address))  # type: ignore[call-overload]
            if initiator is not None:
                self._touched.add(initiator)
            end = at + count
            receive_rows(initiator, link.name, rows[at:end], lengths[at:end], now, otherwise)
            at = end

    def _dispatch(self, link: Link, frame: memoryview, now: float) -> None:
        for exchange in self._exchanges:
            if exchange.receive(link.name, frame, now):
                return
        if len(frame) < HEADER_SIZE:
            self.counters["dropped_short"] += 1
            return
        initiator = self._initiators.get(_ADDRESS.unpack_from(frame, _ADDRESS_OFFSET))  # type: ignore[call-overload]
        if initiator is None:
            self.counters["dropped_address"] += 1
        else:
            self._touched.add(initiator)
            initiator.receive(link.name, frame, now)

    def _transmit(self, initiator: Initiator, now: float) -> None:
        for runs in encode.together(initiator.transmit(now), BATCH):
            sent, failure = self._send(initiator, runs)
            left = time.monotonic()
            for run in runs:
                if left > now + _LATE:
                    initiator.left_late(run, left)
                if sent < run.count:
                    initiator.unsent(run, sent, errno_name(failure), now)
                sent = max(0, sent - run.count)

    def _send(self, initiator: Initiator, runs: Sequence[Run]) -> tuple[int, int]:
        """Send runs that go together. Returns how many of their frames went out, and the errno if not all did."""
        run = runs[0]
        link = self.links[run.path.link]
        if run.count > 1 or len(runs) > 1:
            return self._send_rows(initiator, runs, link), link.failure
        header, payload = encode.frame(initiator, run)
        try:
            if payload is None:
                link.send(header)
            else:
                link.send(header, payload)
        except OSError as error:
            return 0, error.errno or errno.EIO
        return 1, 0

    def _send_rows(self, initiator: Initiator, runs: Sequence[Run], link: Link) -> int:
        """Send them as arrays. Returns how many of their frames went out."""
        size = self._headers[link].fill(initiator, runs)
        count = sum([run.count for run in runs])
        if runs[0].request.kind is Kind.READ:
            return link.send_rows(count, size)
        payloads = [
            (run.count, address_of(run.request.data) + run.offset * SECTOR, run.length * SECTOR) for run in runs
        ]
        return link.send_rows(count, size, runs[0].step * SECTOR, payloads)

    def _send_frame(self, link: Link, frame: bytes) -> None:
        try:
            link.send(frame)
        except OSError as error:
            self.counters[f"send_failed_{errno_name(error.errno or errno.EIO)}"] += 1

    def _collect(self, initiator: Initiator, own: Request | None = None) -> None:
        """Wake those whose requests are done; keep the events for outside the lock."""
        if initiator.completed:
            self._finished += len(initiator.completed)
            for request in initiator.completed:
                if request.token is not None and request is not own:
                    os.eventfd_write(request.token, 1)
            initiator.completed.clear()
        if initiator.events:
            self._told += [(initiator, event) for event in initiator.events]
            initiator.events.clear()
            if self._loop_thread is not None and self._loop_thread is not threading.current_thread():
                self.kick()

    # -- links -------------------------------------------------------------------------------------------------------

    def _links_changed(self, now: float) -> None:
        assert self._watch is not None
        changes = self._watch.read()
        if changes is None:
            self._refresh()
            return
        for found, exists in changes:
            link = self.links.get(found.name)
            if link is not None:
                self._update(link, found, exists, now)

    def _refresh(self) -> None:
        """Look at all our interfaces, for changes may have been missed."""
        present = {found.name: found for found in interfaces()}
        for link in self.links.values():
            found = present.get(link.name)
            if found is not None:
                self._update(link, found, True, time.monotonic())

    def _update(self, link: Link, found: Interface, exists: bool, now: float) -> None:
        def closing() -> None:
            del self._by_fd[link.fileno()]
            if self._listening:
                self._epoll.unregister(link.fileno())
            self._alone.unregister(link.fileno())

        if not link.update(found, exists, closing):
            return
        if link.fileno() not in self._by_fd:
            self._register(link)
        log.info("interface %s: %s, mtu %d", link.name, "up" if link.up else "down", link.mtu)
        self.counters["link_changes"] += 1
        self._share()
        for initiator in self._initiators.values():
            initiator.link_changed(link.name, link.mac, link.mtu, link.up, now)
