# SPDX-License-Identifier: BSD-3-Clause
"""The supervisor of one LUN: sees to it that /dev/nbdN has a living bridge behind it, whatever happens to either.

It looks at what there is and mends what is missing: no bridge, so start one; no living socket in the kernel's device, so
negotiate a new one and have the kernel take it. Starting and recovering are therefore the same. All waiting is done in one
place, where the bridge's end, the kernel's word of a dead socket, uevents, signals and wishes from the control socket arrive.

While the device has no living socket, the kernel's NBD timeout is set: requests that were under way then come back to the
queue, and wait there without a sound. While it has one there is no timeout, so that a slow target is just slow.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ..options import Options
from . import (
    child,
    claim,
    command,
    control,
    disks,
    handshake,
    holders,
    names,
    nbd,
    parting,
    queue,
    service,
    state,
    sysfsview,
)

log = logging.getLogger("aoe_nbd")

POLL = 2.0  # s between looks at the bridge's status
THREADS = (
    128  # requests of the kernel at once: all that its queue can hold, so that it never waits in the middle of one
)
START = 300.0  # s on top of connect-timeout in which a bridge must be ready, however busy the machine is
OUTAGE = 60  # s on top of fail-after, that a bridge may be away, until the kernel fails requests by itself
OUTLAST = 60.0  # s that a host which goes down has to stop using the device
DRAIN = 5.0  # s for the answers that are under way, before a planned end of the connection
RETRY = 0.2  # s until the kernel is offered another socket, if it had not yet found the old one dead
PLANNED = 1  # s of NBD timeout around a planned pause: what it cuts off is sent again after at most twice that
SETTLE = 0.2  # s until most requests under way are ones that have begun with that timeout
HEALTHY = 10.0  # s of life after which a bridge's end counts as the first
DELAY_FIRST, DELAY_MOST = 0.5, 30.0  # s between starts of bridges that end at once
_LOOK = 0.05  # s between looks for what nobody announces

Spawn = Callable[[Sequence[str], Mapping[str, str]], child.Child]


class SupervisorError(OSError):
    """The LUN cannot be attached; the message is one sentence."""


class Ending(Exception):
    """The supervisor has been told to end."""


@dataclass
class Wish:
    """What somebody asks for by the control socket."""

    verb: str
    force: bool = False
    done: Future[dict[str, Any]] = field(default_factory=Future)


class Supervisor:
    """Of `folder`'s LUN, with these parameters for its bridge. `run` it once."""

    def __init__(
        self, folder: state.Folder, options: state.Pairs, kernel: Any, watch: Any, spawn: Spawn = child.Child
    ) -> None:
        self.folder, self.address, self.options = folder, folder.address, options
        self._kernel, self._watch, self._spawn = kernel, watch, spawn
        parsed = Options()
        for key, value in options:
            parsed.set(key, value)
        self._patience = nbd.FOREVER if parsed.on_dead.after is None else int(parsed.on_dead.after + OUTAGE)
        self._read_only = parsed.readonly
        self._ready_within = parsed.connect_timeout + START
        self._line: tuple[list[str], dict[str, str]] | None = None

        self.state: state.State | None = None  # None: no device is connected yet
        self.child: child.Child | None = None
        self.linked = False  # the device has a living socket
        self.held = False  # the target is silent, and its requests are to wait
        self.fenced = ""  # "yielded" or "lost": another host has taken it over
        self._loose = False  # the kernel has been given a timeout
        self._failures, self._started = 0, 0.0
        self._problem = ""
        self._over, self._again = False, False
        self._stopping, self._closing = False, False
        self._wishes: deque[Wish] = deque()
        self._selector = selectors.DefaultSelector()
        self._uevents: names.Uevents | None = None
        self._bell, self._ear = socket.socketpair()
        for end in (self._bell, self._ear):
            end.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ, self._hear)
        self._selector.register(watch, selectors.EVENT_READ, self._links_died)

    # -- life --------------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Until told to end. Returns whether to start over, with the program that is installed then.

        Raises SupervisorError if the LUN cannot be attached in the first place; nothing is left of it then.
        """
        server = control.Server(
            os.fspath(self.folder.supervisor),
            {"status": lambda question: self.describe(), "detach": self._ask_detach, "restart": self._ask_restart},
        )
        try:
            server.start()
            self._recover()
            while not self._over:
                self._step()
        except Ending:
            self._stop()
        except SupervisorError:
            self._leave_alone()
            self._let_go()
            raise
        finally:
            for wish in self._wishes:
                wish.done.cancel()
            server.close()
            if self.child is not None and not (self._again and self.linked):
                self.child.kill()
            self._selector.close()
            if self._uevents is not None:
                self._uevents.close()
        return self._again

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """For SIGTERM and SIGINT. A second one changes nothing."""
        self._stopping = not self._closing
        self._ring()

    def _recover(self) -> None:
        """Go on with what an earlier supervisor has left: the kernel's device, and perhaps a bridge."""
        left, holding = self.folder.state(), disks.holding(str(self.address))
        if left is not None and left.index in holding:
            self.state = left
        elif holding:
            self.state = state.State(holding[0], disks.size_of(holding[0]), disks.read_only(holding[0]))
        elif left is not None:
            log.warning("%s: /dev/nbd%d does not hold it any more: starting afresh", self.address, left.index)
        if self.state is not None:
            log.info("%s: /dev/nbd%d holds it: taking it over", self.address, self.state.index)
            self._follow(self.state.index)
            # The device is there already, even if its target is not
            service.notify(f"READY=1\nSTATUS=/dev/nbd{self.state.index} waits to be served")
        if left is not None and left.bridge and child.began(left.bridge) == left.bridge_began != 0:
            self._relieve(left.bridge, left.bridge_began)

    def _relieve(self, pid: int, began: int) -> None:
        """End the bridge that an earlier supervisor has left.

        After a restart that was this process, and the bridge serves still: the pause begins only here.
        """
        if self.state is not None and child.parent(pid) == os.getpid():
            self._prepare()
            self.linked = True
            self._drain()
        else:
            log.warning("%s: its last supervisor has left a bridge, process %d: ending it", self.address, pid)
        child.end_orphan(pid, began)
        if self.linked:
            self._unlink(PLANNED)

    def _step(self) -> None:
        """Mend one thing that is missing, or else wait for something to happen."""
        if self.child is not None and self.child.ended:
            self._lost(self.child.last_word)
        elif self._wishes:
            self._grant(self._wishes.popleft())
        elif self.child is None:
            self._start()
        elif not self.linked and not self.held:
            self._link()
        else:
            self._until(self._disturbed, POLL)
            self._look()

    def _disturbed(self) -> bool:
        return (
            bool(self._wishes)
            or self.child is None
            or self.child.ended
            or (not self.linked and not self.held)
            or self._over
        )

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool], seconds: float, every: float | None = None) -> bool:
        """Let things happen until `done`, for at most `seconds`. With `every`, look that often for what nobody announces.

        Raises Ending as soon as the supervisor is to end.
        """
        limit = time.monotonic() + seconds
        while not done():
            if self._stopping:
                raise Ending
            left = limit - time.monotonic()
            if left <= 0:
                return False
            for key, _ in self._selector.select(left if every is None else min(left, every)):
                key.data()
        return True

    def _ring(self) -> None:
        """Wake the loop, from any thread or a signal handler."""
        with contextlib.suppress(OSError):
            self._bell.send(b"!")

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._ear.recv(4096):
                pass

    def _links_died(self) -> None:
        if self._watch_says() and self.linked:
            self._unlink(queue.TIMEOUT)

    def _watch_says(self) -> bool:
        return self.state is not None and self.state.index in self._watch.read()

    def _renamed(self) -> None:
        """The device or its partitions have changed."""
        if self._uevents is not None and self.state is not None and self._uevents.changed():
            self._attempt(lambda index: names.refresh(self.address, index))

    def _attempt(self, what: Callable[[int], object]) -> None:
        """Do something about the device that is no reason to stop if it fails."""
        assert self.state is not None
        try:
            what(self.state.index)
        except OSError as error:
            log.warning("%s: %s", self.address, _sentence(error))

    # -- the bridge --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start a bridge, not too soon after one that has failed, and wait until it serves."""
        if self._failures > 1:
            self._until(lambda: bool(self._wishes), min(DELAY_MOST, DELAY_FIRST * 2 ** min(self._failures - 2, 10)))
            if self._wishes:
                return
        hindrance = self._hindrance()
        if hindrance is not None:
            if self.state is None:
                raise SupervisorError(errno.EBUSY, hindrance)
            self._fail(hindrance)
            self._failures = max(2, self._failures + 1)
            return
        self._sweep()
        self.child = self._spawn(*self._prepare())
        self._started = time.monotonic()
        self._selector.register(self.child, selectors.EVENT_READ, lambda: None)
        if self.state is not None:
            self._save()
        if not self._until(self._serves, self._ready_within, _LOOK):
            self._dismiss(f"the bridge has not become ready within {self._ready_within:g} s")

    def _sweep(self) -> None:
        """Remove the sockets that a bridge leaves behind."""
        for path in (self.folder.nbd, self.folder.control):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _hindrance(self) -> str | None:
        """Why this host must not attach it (any more): it is a disk of this host in another way."""
        try:
            names.check(self.address)
        except names.NameTaken as error:
            return _sentence(error)
        if (disks.SYS / "block" / f"etherd!{self.address}").exists():
            return f"{self.address} is attached by the kernel's aoe module: `rmmod aoe` first"
        other = None if self._read_only else claim.holder(self.address)
        if other is not None:
            return f"{self.address} is served read-write by another bridge on this host, {other}: end that first"
        return None

    def _prepare(self) -> tuple[list[str], dict[str, str]]:
        """The bridge's command line and environment. Finding out takes a moment."""
        if self._line is None:
            pairs = [("target", str(self.address)), *self.options]
            pairs += [("control", str(self.folder.control)), ("lock-memory", "true"), ("on-end", "hang-up")]
            self._line = command.supervised(self.folder.nbd, THREADS, pairs)
        return self._line

    def _serves(self) -> bool:
        assert self.child is not None
        return self.child.ended or self.folder.nbd.exists()

    def _dismiss(self, sentence: str) -> None:
        """This bridge is of no use."""
        assert self.child is not None
        self.child.kill()
        self._lost(sentence)

    def _lost(self, sentence: str) -> None:
        """The bridge has died, could not start, or was dismissed. Without a device yet that is the end of the attach."""
        self._forget_child()
        if self.state is None:
            raise SupervisorError(errno.EIO, sentence)
        if self.linked:
            self._unlink(queue.TIMEOUT)
        self._sweep()
        self._show(lambda root: sysfsview.down(self.address, root))
        self._failures = self._failures + 1 if time.monotonic() < self._started + HEALTHY else 1
        self._fail(sentence)

    def _forget_child(self) -> None:
        if self.child is not None:
            self._selector.unregister(self.child)
            self.child.close()
            self.child, self.held = None, False

    def _ask(self, verb: str, **args: Any) -> dict[str, Any]:
        """Ask the bridge. Raises ControlError."""
        return parting.client(self.folder).ask(verb, **args)

    def _look(self) -> None:
        """See how the bridge does: whether its target is silent, or has grown; and whether the device is ours still."""
        if self.state is None or self.child is None or self.child.ended or self._over:
            return
        if self.state.index not in disks.holding(str(self.address)):
            log.warning("%s: somebody has disconnected /dev/nbd%d: ending", self.address, self.state.index)
            self._leave_alone()
            self._clean(disconnect=False)
            return
        self._attempt(lambda index: names.prune(self.address, index))
        try:
            status = self._ask("status")
        except control.ControlError as error:
            if not self.child.ended:
                self._fail(_sentence(error))
            return
        self._show(lambda root: sysfsview.write(status, root))
        if self.linked and not status.get("clients"):
            self._unlink(queue.TIMEOUT)  # somebody else has taken the device from us, or the bridge's end of it is gone
        lun = parting.lun(status)
        self.held = lun.get("state") != "up" and lun.get("on_dead") == "hold"
        if not self.linked:
            return
        fence = lun.get("fence") or {}
        self.fenced = fence["state"] if fence.get("taken_over") else ""
        self._fail(self._whose(fence) if self.fenced else "")
        if self.held != self._loose:
            self._reconfigure(timeout=queue.TIMEOUT if self.held else 0)
        if lun.get("size_bytes", 0) > self.state.size and not self.held and not self.fenced:
            self._drain()  # and the next link has the new size

    @staticmethod
    def _whose(fence: Mapping[str, Any]) -> str:
        then = "requests wait" if fence["state"] == "yielded" else "requests fail: detach it here"
        return f"taken over by {fence['above'] or 'another host'}; {then}"

    def _show(self, how: Callable[[Path], object]) -> None:
        try:
            how(state.root() / "sysfs")
        except (OSError, LookupError, TypeError, ValueError) as error:
            # such as from a bridge of another version, which answers otherwise
            log.debug("%s: the view for aoe-stat: %r", self.address, error)

    # -- the kernel's device -----------------------------------------------------------------------------------------

    def _link(self) -> None:
        """Have the kernel's device served by the bridge there is."""
        assert self.child is not None
        try:
            connection = handshake.connect(self.folder.nbd)
        except handshake.HandshakeError as error:
            if self.child.ended:
                return
            if error.errno == errno.ECONNREFUSED and time.monotonic() < self._started + self._ready_within:
                self._until(_never, _LOOK)  # its socket has a name before it listens
                return
            self._dismiss(_sentence(error))
            return
        try:
            identity = self._identity()
            if self.state is None:
                self._connect(connection, identity)
            elif (objection := self._objection(connection, identity)) is not None:
                self._dismiss(objection)
            else:
                self.state.identity = identity
                self._reconnect(connection)
        except control.ControlError as error:  # who cannot say what it serves serves nobody
            self._fail(_sentence(error))
            self._until(_never, DELAY_FIRST)
        finally:
            connection.close()

    def _identity(self) -> list[str]:
        """What must stay the same of a disk. Raises ControlError."""
        found = parting.lun(self._ask("status")).get("identity", {})
        return [str(found.get(name, "")) for name in ("model", "serial", "wwn")]

    def _objection(self, connection: handshake.Connection, identity: list[str]) -> str | None:
        """Why what the bridge has found must not go on as what the device holds."""
        assert self.state is not None
        if self.state.identity and identity != self.state.identity:
            (model, serial, _), (our_model, our_serial, _) = identity, self.state.identity
            return (
                f"another disk answers there (serial {serial!r}, model {model!r}; ours has {our_serial!r}, {our_model!r}); "
                "it gets nothing from us"
            )
        if connection.size < self.state.size:
            return f"its capacity has shrunk from {self.state.size} to {connection.size} bytes; requests wait"
        if connection.flags & handshake.READ_ONLY and not self.state.read_only:
            return "it has become read-only; requests wait"
        return None

    def _connect(self, connection: handshake.Connection, identity: list[str]) -> None:
        index = self._kernel.connect(
            connection.fd,
            connection.size,
            flags=connection.flags,
            patience=self._patience,
            backend=str(self.address),
        )
        self.state = state.State(
            index,
            connection.size,
            bool(connection.flags & handshake.READ_ONLY),
            options=[f"{key}={value}" for key, value in self.options],
            identity=identity,
            queue=queue.tune(index),
            since=time.time(),
        )
        self._follow(index)
        self._linked()
        log.info("%s: attached as /dev/nbd%d, %d bytes", self.address, index, connection.size)

    def _reconnect(self, connection: handshake.Connection) -> None:
        """Have the kernel replace the dead socket. Before it has found that one dead it drops ours, and does not say so."""
        assert self.state is not None
        device, inode, old = f"/dev/nbd{self.state.index}", connection.inode, self.state.size
        try:
            self._kernel.reconfigure(
                self.state.index,
                str(self.address),
                fd=connection.fd,
                size=connection.size,
                timeout=0,
                patience=self._patience,
            )
        except nbd.NbdError as error:
            if error.errno == errno.EINVAL:
                log.warning("%s: %s was disconnected by somebody: starting afresh", self.address, device)
                self.state = None
            else:
                self._fail(_sentence(error))
                self._until(_never, DELAY_FIRST)
            return
        connection.close()
        if not handshake.held(inode):
            self._until(_never, RETRY)
            return
        self.state.size = connection.size
        queue.tune(self.state.index)  # a new NBD timeout has reset the queue's
        if connection.size != old:
            log.info("%s: %s has grown from %d to %d bytes", self.address, device, old, connection.size)
        pause = max(0.0, time.monotonic() - self.state.dead_since)
        self._linked()
        log.info("%s: %s goes on, after a pause of %.1f s", self.address, device, pause)

    def _linked(self) -> None:
        """The device has a living socket."""
        assert self.state is not None
        self.linked, self._loose, self._problem = True, False, ""
        self.state.starts += 1
        self.state.dead_since = 0.0
        self._save()
        self.folder.fail("")
        self._attempt(lambda index: names.make(self.address, index))
        service.notify(f"READY=1\nSTATUS=/dev/nbd{self.state.index}")

    def _unlink(self, timeout: int) -> None:
        """The device has lost its socket, or is about to: its requests are to wait for the next one."""
        assert self.state is not None
        self.linked = False
        self.state.dead_since = time.monotonic()
        self._save()
        self._reconfigure(timeout=timeout)

    def _reconfigure(self, *, timeout: int) -> None:
        assert self.state is not None
        try:
            self._kernel.reconfigure(self.state.index, str(self.address), timeout=timeout)
        except nbd.NbdError as error:
            self._fail(_sentence(error))
        else:
            self._loose = timeout > 0
            if not self._loose:
                queue.tune(self.state.index)  # for it is 30 s in the queue now

    def _drain(self) -> None:
        """End the connection in order: what the bridge has been asked is answered, and the kernel keeps the rest."""
        if self.state is None or not self.linked:
            return
        self._reconfigure(timeout=PLANNED)
        self._until(lambda: not self.linked, SETTLE)
        try:
            self._ask("drain", timeout=DRAIN)
        except control.ControlError as error:
            log.info("%s: %s", self.address, _sentence(error))
        self._until(lambda: not self.linked, DRAIN)

    def _follow(self, index: int) -> None:
        """Keep the names of the device and its partitions right."""
        if self._uevents is not None:
            self._selector.unregister(self._uevents)
            self._uevents.close()
        self._uevents = names.Uevents(index)
        self._selector.register(self._uevents, selectors.EVENT_READ, self._renamed)

    def _save(self) -> None:
        assert self.state is not None
        self.state.bridge = None if self.child is None else self.child.pid
        self.state.bridge_began = child.began(self.state.bridge) if self.state.bridge else 0
        self.folder.save(self.state)

    def _fail(self, sentence: str) -> None:
        """Something is wrong, or not any more (""): said once."""
        if sentence != self._problem:
            self._problem = sentence
            if sentence:
                log.warning("%s: %s", self.address, sentence)

    # -- the end -----------------------------------------------------------------------------------------------------

    def _users(self) -> list[str]:
        return [] if self.state is None else parting.users(self.folder, self.state.index)

    def _stop(self) -> None:
        """Told to end by a signal: the device is given back if nobody uses it, and else waits for the next supervisor."""
        self._stopping, self._closing = False, True
        if self.state is None:
            self._leave_alone()
            self._clean()
            return
        users = self._users()
        if users and service.going_down():
            users = self._outlast()
        if users:
            why = f"is in use ({holders.sentence(users)})"
        elif not self.linked or self.held:
            why = "cannot be flushed just now"  # and who tried would hang
        else:
            why = self._give_back()
            if not why:
                self._clean()
                return
        log.warning("%s: /dev/nbd%d %s: it stays, and waits for the next start", self.address, self.state.index, why)
        self._leave()

    def _give_back(self) -> str:
        """Flush it, and have the bridge leave it alone. Returns why that cannot be."""
        assert self.state is not None
        why = parting.obstacle(self.folder, self.state.index)
        if not why:
            try:
                parting.leave(self.folder)
            except control.ControlError as error:
                why = _sentence(error)
        return f"cannot be given back ({why})" if why else ""

    def _outlast(self) -> list[str]:
        """While the host goes down, serve until nobody uses the device, and return who does after all.

        What systemd does not know to depend on us (LVM, md, what was mounted by hand) ends at the same time as we do, and
        would wait for us.
        """
        limit = time.monotonic() + OUTLAST
        while (users := self._users()) and time.monotonic() < limit:
            self._step()
        return users

    def _leave(self) -> None:
        """End the bridge, and leave the device to the kernel."""
        self._drain()
        if self.child is not None:
            self.child.end()
            self._forget_child()
        if self.linked:
            self._unlink(queue.TIMEOUT)
        self._show(lambda root: sysfsview.down(self.address, root))

    def _clean(self, force: bool = False, disconnect: bool = True) -> None:
        """Detach it, and leave nothing. With `force` the bridge goes first: requests that wait for it fail then."""
        if self.child is not None and force:
            self.child.kill()
        if self.state is not None:
            if disconnect:
                self._attempt(self._kernel.disconnect)
            queue.restore(self.state.index, self.state.queue)
            log.info("%s: detached from /dev/nbd%d", self.address, self.state.index)
        self._let_go()
        self.folder.remove()

    def _leave_alone(self) -> None:
        """Nobody can use the device: give up the ownership of the LUN, if there is a bridge that has it."""
        if self.child is not None and not self.child.ended:
            with contextlib.suppress(control.ControlError):
                parting.leave(self.folder)

    def _let_go(self) -> None:
        """End the bridge, and remove the names: what the device was, it is not any more."""
        if self.child is not None:
            self.child.end()
            self._forget_child()
        with contextlib.suppress(OSError):
            names.remove(self.address, None if self.state is None else self.state.index)
        self._show(lambda root: sysfsview.remove(self.address, root))
        self.state, self.linked, self._over = None, False, True

    # -- wishes ------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """How it stands, for the control socket."""
        known, bridge = self.state, self.child
        return {
            "address": str(self.address),
            "pid": os.getpid(),
            "bridge": None if bridge is None else bridge.pid,
            "state": "starting" if known is None else "held" if self.held else "up" if self.linked else "paused",
            "problem": self._problem,
            "fenced": self.fenced,
            "index": None if known is None else known.index,
            "device": None if known is None else f"/dev/nbd{known.index}",
            "size_bytes": 0 if known is None else known.size,
            "read_only": known is not None and known.read_only,
            "options": [f"{key}={value}" for key, value in self.options],
            "since": 0.0 if known is None else known.since,
            "starts": 0 if known is None else known.starts,
        }

    def _ask_detach(self, question: Mapping[str, Any]) -> dict[str, Any]:
        return self._wish(Wish("detach", bool(question.get("force"))), control.seconds(question, 60.0))

    def _ask_restart(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Answered before it is done, for who answers is restarted too: `starts` of `status` counts up."""
        before = self.describe()
        self._wishes.append(Wish("restart"))
        self._ring()
        return before

    def _wish(self, wish: Wish, patience: float) -> dict[str, Any]:
        self._wishes.append(wish)
        self._ring()
        try:
            return wish.done.result(patience)
        except (TimeoutError, CancelledError):
            raise control.ControlError(errno.EBUSY, f"the supervisor of {self.address} is busy: try again") from None

    def _grant(self, wish: Wish) -> None:
        if wish.verb == "restart":
            log.info("%s: restarting", self.address)
            self._again = self._over = True  # and the next one relieves the bridge
            return
        users = self._users()
        if users and not wish.force:
            sentence = f"{self.address} is in use: {holders.sentence(users)}"
            wish.done.set_exception(control.ControlError(errno.EBUSY, sentence))
            return
        answer = self.describe()
        if not wish.force and self.child is not None and not self.child.ended:
            try:
                parting.leave(self.folder)
            except control.ControlError as error:
                wish.done.set_exception(error)
                return
        self._clean(wish.force)
        wish.done.set_result(answer)


def _sentence(error: OSError) -> str:
    return error.strerror or str(error)


def _never() -> bool:
    return False
