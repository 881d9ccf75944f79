# SPDX-License-Identifier: BSD-3-Clause
"""A Bridge: the devices that one nbdkit process serves, from its parameters to its end. Knows nothing of nbdkit.

With an address there is one device, attached before nbdkit forks, so that errors reach the terminal. Without, the NBD
export name of each client chooses, and a device is attached when its first client comes.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence

from .affinity import Affinity
from .core.fence import Fence
from .core.initiator import Event, Initiator
from .core.policy import Fencing
from .device import Device, DeviceError, config_of, find
from .engine import Engine
from .host import claim, memory, owner
from .host.control import Feed
from .link import Accept, Link, LinkError, interfaces
from .options import OptionError, Options
from .wire.address import Address, parse_address
from .wire.codes import SECTOR

log = logging.getLogger("aoe_nbd")

_LEAVE = 3.0  # s that the end of a bridge waits for a target, to give up the ownership of a LUN
_SLOTS_OF_MANY = 384  # frames that a link's ring holds where clients choose the LUN: room for a few that answer at a time
DISCOVERY = 1.0  # s that listing exports listens for answers


def choose_interfaces(names: Sequence[str], option: str = "interface=") -> list[str]:
    """`names`, or the one Ethernet interface that is up. Raises LinkError if that is none or not the only one.

    `option` is how a user names one, for the message.
    """
    if names:
        return list(names)
    up = [i.name for i in interfaces() if i.ethernet and i.up and not i.loopback]
    if len(up) != 1:
        what = f"{len(up)} Ethernet interfaces are up ({', '.join(up)})" if up else "no Ethernet interface is up"
        raise LinkError(None, f"{what}: say by {option} which to use")
    log.info("interface %s is the only Ethernet interface that is up: using it", up[0])
    return up


def open_links(names: Sequence[str], address: Address | None = None, slots: int | None = None) -> list[Link]:
    """Open the links of an initiator, of one LUN or of all, with rings of `slots`. Raises LinkError; then none stays open."""
    links: list[Link] = []
    try:
        for name in choose_interfaces(names):
            link = Link(name, Accept.RESPONSES, slots, address)
            links.append(link)
            if link.clipped:
                log.warning("%s", link.clipped)
    except BaseException:
        for link in links:
            link.close()
        raise
    return links


def log_to_stderr(debug: bool = False) -> None:
    """Have log lines written to stderr, as `aoe-nbd: …`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("aoe-nbd: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    log.propagate = False


def log_to_syslog_if_detached() -> None:
    """A daemon has no terminal: nbdkit has pointed stderr at /dev/null by then, so log to syslog instead, if there is one."""
    null = os.stat(os.devnull)
    here = os.fstat(2)
    if stat.S_ISCHR(here.st_mode) and here.st_rdev == null.st_rdev and os.path.exists("/dev/log"):
        try:
            handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
        except OSError:
            return
        handler.setFormatter(logging.Formatter("aoe-nbd: %(message)s"))
        log.handlers[:] = [handler]


class Bridge:
    """`ready` before the fork, `start` after it, `stop` at the end; `device` in between."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.engine: Engine | None = None
        self._devices: dict[Address, Device] = {}
        self._claims: list[socket.socket | None] = []  # see `host.claim`
        self._opening = threading.Lock()
        self.feed = Feed()  # what has happened, for those who ask by the control socket
        self.started = time.monotonic()
        self.on_open: Callable[[Device], None] = lambda device: None  # what is to be done before its first request
        self.memory_protected = False
        self.affinity = Affinity("all")

    @property
    def devices(self) -> list[Device]:
        """Those that are attached."""
        return list(self._devices.values())

    def ready(self) -> None:
        """Open the links and, with an address given, attach its device. Raises LinkError or DeviceError."""
        address = self.options.address
        slots = None if address is not None else _SLOTS_OF_MANY
        polls = not self.options.lock_memory  # with real-time priority, who looks would keep all others from the CPU
        busy_poll = self.options.busy_poll / 1e6 if polls else 0.0
        self.engine = Engine(open_links(self.options.interfaces, address, slots), self._event, busy_poll)
        if address is not None:
            self._open(address)

    def start(self) -> None:
        """Start the threads, in the process that serves."""
        assert self.engine is not None
        log_to_syslog_if_detached()
        if self.options.lock_memory:  # before there are threads, which inherit it
            self._protect()
        self.affinity = Affinity(self.options.cpu)
        self.affinity.start()
        self.engine.start()

    def _protect(self) -> None:
        failures = memory.protect()
        self.memory_protected = not failures
        try:
            memory.drop_capabilities()
        except OSError as error:
            failures.append(f"privileges are kept: {error.strerror}")
        for failure in failures:
            log.warning("%s", failure)

    def stop(self) -> None:
        """End it: what waits fails with ESHUTDOWN."""
        for device in self._devices.values():
            for line in device.figures():
                log.debug("%s: %s", device.address, line)
            if device.initiator.fence is not None and device.initiator.up and not self.options.hang_up:
                with contextlib.suppress(DeviceError):  # then it stays recorded as ours
                    device.leave(_LEAVE)
        if self.engine is not None:
            self.engine.stop()

    def abandon(self, error: int, reason: str) -> None:
        """Fail what waits, so that its threads return."""
        if self.engine is not None:
            self.engine.abandon(error, reason)

    def stuck_at(self) -> int | None:
        """None if no request waits; else how many are finished by now: while that stays the same, those that wait are stuck."""
        return None if self.engine is None else self.engine.stuck_at()

    def device(self, export: str) -> Device:
        """The device for a client that asks for `export`. Raises DeviceError or OptionError."""
        address = self.options.address
        if address is None:
            if not export:
                raise OptionError("no address was given and no export name: connect to e<shelf>.<slot>, such as e1.0")
            try:
                address = parse_address(export)
            except ValueError as error:
                raise OptionError(f"export name {error}") from None
        elif export not in ("", str(address), f"{address.shelf}.{address.slot}"):
            raise OptionError(f"export name {export!r} is not served here: this bridge serves {address}")
        with self._opening:
            device = self._devices.get(address)
            return device if device is not None else self._open(address)

    def _open(self, address: Address) -> Device:
        assert self.engine is not None
        options = self.options
        device = Device(
            self.engine,
            address,
            macs=options.macs,
            cap=options.sectors,
            on_dead=options.on_dead,
            read_only=options.readonly,
            fence=self._fence(address),
        )
        device.open(options.connect_timeout)
        if device.can_write:
            self._claims.append(claim.take(address))
        self._devices[address] = device
        self.on_open(device)
        return device

    def _fence(self, address: Address) -> Fence | None:
        options = self.options
        if options.fence is Fencing.OFF:
            return None
        kept = owner.Note(options.control, address).read()
        return Fence(options.fence, options.owner or owner.host_name(), options.owner_tag, kept)

    def exports(self) -> list[tuple[str, str]]:
        """(export name, description) of what can be served: the one LUN, or all that discovery finds."""
        assert self.engine is not None
        if self.options.address is not None:
            return [(str(self.options.address), self._devices[self.options.address].describe())]
        found: dict[Address, str] = {}
        for answer in find(self.engine, None, DISCOVERY, grace=None):
            config = config_of(answer)
            if config is not None:
                text = config.string.decode("utf-8", "replace")
                found.setdefault(
                    answer.address, f"{text + ', ' if text else ''}by {answer.link} to {answer.mac.hex(':')}"
                )
        return [(str(address), found[address]) for address in sorted(found)]

    def _event(self, initiator: Initiator, event: Event) -> None:
        size = initiator.identify.sectors * SECTOR if initiator.identify is not None else 0
        if initiator.fence is not None and event.what.startswith("fence"):
            try:
                owner.Note(self.options.control, initiator.address).write(initiator.fence.note)
            except OSError as error:
                log.warning(
                    "%s: who owns it cannot be noted for the next bridge: %s", initiator.address, error.strerror
                )
        self.feed.tell(event.what, event.text, address=str(initiator.address), size_bytes=size)
        device = self._devices.get(initiator.address)
        if device is not None:
            device.log_event(event)


__all__ = ["Bridge", "DeviceError", "LinkError", "OptionError", "choose_interfaces", "log_to_stderr", "open_links"]
