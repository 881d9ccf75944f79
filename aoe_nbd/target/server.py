# SPDX-License-Identifier: BSD-3-Clause
"""The server loop: exports on one side, links on the other, one thread and one epoll between them.

A round: take the batch that a link has, let the exports carry it out, send the replies. Interfaces come and go, and
their MTU changes, without an end to it.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Sequence
from typing import Final

from ..link import Accept, Interface, InterfaceWatch, Link, LinkError, interface, interfaces
from ..link.packet import errno_name
from ..wire.address import Address
from ..wire.codes import ALL_SHELVES, ALL_SLOTS
from ..wire.frames import HEADER, HEADER_SIZE, mtu_sectors
from .batch import LEAST, MOST, Batch
from .faults import Faults
from .lun import Frame, Lun, Replies
from .personality import Order

_TICK: Final = 1.0  # seconds between looks at the sizes of the exports
_RETRY: Final = 0.001  # until a send is tried again that the driver had no room for
_QUEUE_MOST: Final = 4096  # replies that wait to be sent on one link
_LEAST_SLOTS: Final = 512
_ROUNDS: Final = 8  # batches that are taken from a link before another has its turn
_BATCH: Final = 256  # frames that are taken from a link at a time


class TargetError(Exception):
    """A target that cannot start; the message is one sentence that says what is wrong and what to do."""


class _Port:
    """One interface: its link, and what waits to go out."""

    def __init__(self, name: str, slots: int, number: int, address: Address | None) -> None:
        self.link = Link(name, Accept.REQUESTS, slots, address)
        self.number = number
        self.queue: collections.deque[bytes | bytearray] = collections.deque()
        self.gathered: list[bytes] = []  # requests that are held back for others to join them
        self.due = 0.0  # when the gathered ones are carried out
        self.retry = 0.0  # when a send is tried again; 0: nothing waits


class Target:
    """Several exports on several interfaces. `open()`, then `run()`; or `with Target(...)`: served by a thread.

    `counters` counts what happened to frames outside the exports, by reason; each `Lun` counts its own.
    """

    def __init__(self, exports: Sequence[Lun], interfaces: Sequence[str], faults: Faults | None = None) -> None:
        """Raises TargetError where one address is exported twice."""
        self.exports = list(exports)
        self.names = list(dict.fromkeys(interfaces))
        self.faults = faults
        self.counters: collections.Counter[str] = collections.Counter()
        self._by_address: dict[tuple[int, int], Lun] = {}
        for lun in self.exports:
            if lun.address in self._by_address:
                raise TargetError(f"{lun.address} is exported twice: give each export its own shelf and slot")
            self._by_address[lun.address] = lun
        self._gather = max((lun.like.gather for lun in self.exports), default=0.0)
        self._dies = any(lun.like.dies_of_errors for lun in self.exports)
        self._batch = Batch(self._by_address)
        self._announced: dict[Address, int] = {}
        self._ports: list[_Port] = []
        self._wake = -1
        self._stopping = False
        self._loop_thread: threading.Thread | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the links, in the caller's network namespace. Raises LinkError, TargetError."""
        # A slot is free again only when its whole batch is done, and some clients have their replies by then.
        slots = max(_LEAST_SLOTS, sum(lun.buffers for lun in self.exports) + _BATCH)
        # With a process an export, as is usual, each would be woken by the requests to all the others.
        alone = self.exports[0].address if len(self.exports) == 1 else None
        try:
            for name in self.names:
                port = _Port(name, slots, len(self._ports), alone)
                self._ports.append(port)
                if not mtu_sectors(port.link.mtu):
                    raise TargetError(
                        f"interface {name} has MTU {port.link.mtu}, too small for one sector:"
                        f" set 548 or more with `ip link set {name} mtu 1500`"
                    )
            self._watch = InterfaceWatch()
        except BaseException:
            self._close_ports()
            raise
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._watching = self._watch.fileno()
        self._epoll.register(self._watching, select.EPOLLIN)
        for port in self._ports:
            self._follow(port)
        self._stopping = False

    def clipped(self) -> list[str]:
        """A sentence for each link whose socket got less memory than the buffer counts ask for."""
        return [port.link.clipped for port in self._ports if port.link.clipped]

    def run(self) -> None:
        """Announce the exports and serve until `stop()`; then close the links."""
        try:
            for port in self._ports:
                self._announce(port, self.exports)
            self._announced = {lun.address: lun.backend.sectors for lun in self.exports}
            next_tick = time.monotonic() + _TICK
            while not self._stopping:
                self._wait(next_tick)
                now = time.monotonic()
                for port in self._ports:
                    self._serve(port, now)
                if now >= next_tick:
                    self._tick()
                    next_tick = now + _TICK
        finally:
            self._close()

    def stop(self) -> None:
        """End `run()` soon. May be called from any thread or signal handler."""
        self._stopping = True
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def start(self) -> Target:
        """`open()` here, `run()` in a thread of its own."""
        self.open()
        self._loop_thread = threading.Thread(target=self.run, name="aoe-target", daemon=True)
        self._loop_thread.start()
        return self

    def join(self) -> None:
        """Stop the thread of `start()` and wait for its end."""
        if self._loop_thread is not None:
            self.stop()
            self._loop_thread.join()
            self._loop_thread = None

    def __enter__(self) -> Target:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.join()

    def _close_ports(self) -> None:
        for port in self._ports:
            port.link.close()
        self._ports.clear()

    def _close(self) -> None:
        self._close_ports()
        self._watch.close()
        self._epoll.close()
        wake, self._wake = self._wake, -1
        os.close(wake)

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _follow(self, port: _Port) -> None:
        """Have epoll watch the port's present socket; a closed one has left by itself."""
        descriptor = port.link.fileno()
        if descriptor >= 0:
            # A reopened link may have its old number, which epoll has already forgotten.
            with contextlib.suppress(FileExistsError):
                self._epoll.register(descriptor, select.EPOLLIN)

    def _deadline(self, next_tick: float) -> float:
        """When there is something to do though nothing comes in."""
        due = next_tick
        for port in self._ports:
            if port.gathered:
                due = min(due, port.due)
            if port.retry:
                due = min(due, port.retry)
        if self.faults:
            for line in (self.faults.inbound, self.faults.outbound):
                if (when := line.next_time()) is not None:
                    due = min(due, when)
        return due

    def _wait(self, next_tick: float) -> None:
        timeout = self._deadline(next_tick) - time.monotonic()
        for descriptor, events in self._epoll.poll(max(0.0, timeout)):
            if descriptor == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            elif descriptor == self._watching:
                self._interfaces_changed()
            elif events & (select.EPOLLERR | select.EPOLLHUP):
                for port in self._ports:
                    if port.link.fileno() == descriptor:
                        self._link_error(port)

    def _link_error(self, port: _Port) -> None:
        code = port.link.error()
        if code:
            self.counters[errno_name(code)] += 1
            if self._dies:
                raise OSError(code, f"interface {port.link.name}: {os.strerror(code)}")

    def _tick(self) -> None:
        for lun in self.exports:
            lun.refresh()
            if self._announced.get(lun.address) != lun.backend.sectors:
                self._announced[lun.address] = lun.backend.sectors
                for port in self._ports:
                    self._announce(port, [lun])
        for port in self._ports:
            if port.link.fileno() >= 0:
                self.counters["ring-full"] += port.link.dropped()
            elif (found := interface(port.link.name)) is not None:
                self._update(port, found, True)

    # -- interfaces --------------------------------------------------------------------------------------------------

    def _interfaces_changed(self) -> None:
        changes = self._watch.read()
        if changes is None:
            changes = [(found, True) for found in interfaces()]
        for found, exists in changes:
            for port in self._ports:
                if found.name == port.link.name:
                    self._update(port, found, exists)

    def _update(self, port: _Port, found: Interface, exists: bool) -> None:
        link = port.link
        before, up = (link.mtu, link.mac), link.up
        try:
            link.update(found, exists)
        except OSError:
            self.counters["reopen-failed"] += 1  # the tick tries again
            link.up = False
        self._follow(port)
        if link.up and (not up or (link.mtu, link.mac) != before):
            self._announce(port, [lun for lun in self.exports if lun.like.announces_changes])

    def _announce(self, port: _Port, exports: Sequence[Lun]) -> None:
        for lun in exports:
            self._send(port, lun.announce(port.link.mac, port.link.mtu), time.monotonic())

    # -- frames ------------------------------------------------------------------------------------------------------

    def _serve(self, port: _Port, now: float) -> None:
        link = port.link
        if port.retry and now >= port.retry:
            self._flush(port)
        if link.fileno() < 0:  # a reopen failed; what waits here has nowhere to go
            port.gathered.clear()
            if self.faults:
                self.faults.inbound.pop(now, port.number)
                self.faults.outbound.pop(now, port.number)
            return
        if not self.faults and not self._gather:
            self._serve_rows(port)
            try:
                self._serve_each(port, link.receive(LEAST - 1))  # what follows may be a stretch again: the next round's
            finally:
                link.release()
            return
        frames: Sequence[Frame] = link.receive(_BATCH)
        try:
            if self.faults:
                for frame in frames:
                    self.faults.inbound.push(frame, now, port.number)
                frames = self.faults.inbound.pop(now, port.number)
            if self._gather:
                if frames and not port.gathered:
                    port.due = now + self._gather
                port.gathered += [bytes(frame) for frame in frames]
                if not port.gathered or now < port.due:
                    frames = []
                else:
                    frames, port.gathered = port.gathered, []
            if frames:
                self._send(port, self._carry_out(frames, link.mac, link.mtu), now)
        finally:
            link.release()
        if self.faults:
            self._put(port, self.faults.outbound.pop(now, port.number))

    def _serve_rows(self, port: _Port) -> None:
        """Serve what has come in while it comes in numbers."""
        link, batch = port.link, self._batch
        for _ in range(_ROUNDS):
            found = link.receive_rows(MOST) if link.waiting(LEAST) else None
            if found is None:
                return
            try:
                batch.serve(
                    *found,
                    link.mac,
                    link.mtu,
                    lambda count, share: self._send_stretch(port, count, share),
                    lambda frames: self._serve_each(port, frames),
                )
            finally:
                link.release()

    def _serve_each(self, port: _Port, frames: Sequence[memoryview]) -> None:
        """Serve these one by one."""
        link = port.link
        for frame in frames:
            reply = self._batch.one(frame, link.mac, link.mtu)
            if reply is None:
                self._put(port, self._carry_out([frame], link.mac, link.mtu))
                continue
            try:
                if not port.queue:
                    link.send(reply)
                    continue
            except OSError:
                pass  # `_put` tries again, and knows what to do
            self._put(port, [bytes(reply)])

    def _carry_out(self, frames: Sequence[Frame], mac: bytes, mtu: int) -> Replies:
        """The replies to a batch of requests."""
        together: dict[Lun, list[Frame]] = {}  # for exports that keep an order of their own
        replies: Replies = []
        for frame in frames:
            if len(frame) < HEADER_SIZE:
                self.counters["short"] += 1
                continue
            _, _, _, _, _, major, minor, _, _ = HEADER.unpack_from(frame)
            for lun in self._addressed(major, minor):
                if self.faults and (refusal := self.faults.answer(frame, mac)):
                    replies.append(refusal)
                elif lun.like.order is Order.ARRIVAL:
                    replies += lun.handle(frame, mac, mtu)
                else:
                    together.setdefault(lun, []).append(frame)
        for lun, batch in together.items():
            replies += lun.handle_batch(batch, mac, mtu)
        return replies

    def _addressed(self, major: int, minor: int) -> Sequence[Lun]:
        """The exports that a request to this address may be for."""
        lun = self._by_address.get((major, minor))
        if lun is not None:
            return (lun,)
        if major != ALL_SHELVES and minor != ALL_SLOTS:
            self.counters["other-address"] += 1
            return ()
        return [
            lun
            for lun in self.exports
            if major in (lun.address.shelf, ALL_SHELVES) and minor in (lun.address.slot, ALL_SLOTS)
        ]

    def _send(self, port: _Port, replies: Replies, now: float) -> None:
        if self.faults:
            for reply in replies:
                self.faults.outbound.push(reply, now, port.number)
            replies = list(self.faults.outbound.pop(now, port.number))
        self._put(port, replies)

    def _send_stretch(self, port: _Port, count: int, share: int) -> None:
        """Send the replies that are in the outbox, behind those that wait already."""
        outbox = self._batch.outbox
        sent = 0 if port.queue else outbox.send(port.link, count, share)
        if sent < count:
            self._put(port, outbox.frames(sent, count, share))

    def _put(self, port: _Port, replies: Sequence[bytes | bytearray]) -> None:
        room = _QUEUE_MOST - len(port.queue)
        if len(replies) > room:
            self.counters["queue-full"] += len(replies) - room
            replies = replies[:room]
        port.queue.extend(replies)
        if port.queue:
            self._flush(port)

    def _flush(self, port: _Port) -> None:
        """Send what waits, as far as the driver takes it."""
        queue, link = port.queue, port.link
        port.retry = 0.0
        while queue:
            try:
                link.send(queue[0])
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENOBUFS) and link.up:
                    port.retry = time.monotonic() + _RETRY
                    return
                self.counters[errno_name(error.errno or 0)] += 1
                if self._dies:
                    raise
            queue.popleft()


__all__ = ["LinkError", "Target", "TargetError"]
