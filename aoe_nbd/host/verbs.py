# SPDX-License-Identifier: BSD-3-Clause
"""What a running bridge does when it is asked by its control socket.

status                  what it is and how it does (see `report`)
quiesce  timeout=30     park new requests, and answer once no copy of any write of this host can still land
resume                  carry out what was parked
leave    timeout=30     quiesce for good, and give up the ownership, if there is one (see `core.fence`)
takeover timeout=30     take a LUN back that another host has taken over, and has not written to
drain    timeout=30     take no more from the NBD clients there are, and answer once they are gone with all their answers
wait     since=n        answer once something has happened (see `control.Feed`): growth, death, revival of the target, …

`address` chooses one LUN of a bridge that serves several; without it all are meant.

Who was told "quiet" must be able to rely on it, even if the bridge is killed and started again by its supervisor. So what
is quiesced is noted in a file beside the control socket, and a bridge that finds it there begins quiesced.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from ..bridge import Bridge
from ..device import Device
from ..wire.address import parse_address
from . import report
from .clients import Clients
from .control import ControlError, Server, seconds

log = logging.getLogger("aoe_nbd")

_PATIENCE = 30.0  # s for quiet, and for the clients to go
_LOOK = 0.01  # s between looks whether they have gone

Question = Mapping[str, Any]
Answer = dict[str, Any]


class Verbs:
    """The verbs of one bridge. Each takes a question and returns the answer, or raises an OSError or ValueError."""

    def __init__(self, bridge: Bridge, clients: Clients) -> None:
        self.bridge, self.clients = bridge, clients
        self._note: str | None = None  # the file in which the addresses of quiesced LUNs are, a line each
        self._noting = threading.Lock()

    def serve(self, path: str) -> Server:
        """Make the control socket. Raises ControlError."""
        server = Server(
            path,
            {
                "status": self.status,
                "quiesce": self.quiesce,
                "resume": self.resume,
                "leave": self.leave,
                "takeover": self.takeover,
                "drain": self.drain,
                "wait": lambda question: self.bridge.feed.wait(question, server.closing),
            },
        )
        self.clients.spared.add(server.name)
        self._note = f"{server.path}.quiesced"
        self.bridge.on_open = self._as_before
        return server

    def status(self, question: Question) -> Answer:
        return report.of_bridge(self.bridge, self.clients.count, self._luns(question))

    def quiesce(self, question: Question) -> Answer:
        began, limit = time.monotonic(), seconds(question, _PATIENCE)
        for device in self._luns(question):
            self._remember(device, True)
            try:
                device.quiesce(max(0.0, began + limit - time.monotonic()))
            finally:
                if not device.initiator.quiesced:
                    self._remember(device, False)
        return {"took": time.monotonic() - began}

    def leave(self, question: Question) -> Answer:
        limit = time.monotonic() + seconds(question, _PATIENCE)
        for device in self._luns(question):
            self._remember(device, True)
            try:
                device.leave(max(0.0, limit - time.monotonic()))
            finally:
                if not device.initiator.quiesced:
                    self._remember(device, False)
        return {}

    def takeover(self, question: Question) -> Answer:
        began, limit = time.monotonic(), seconds(question, _PATIENCE)
        for device in self._luns(question):
            device.take_over(max(0.0, began + limit - time.monotonic()))
        now = time.monotonic()
        return {
            "took": now - began,
            "luns": [report.of_fence(each.initiator, now) for each in self._luns(question)],
        }

    def resume(self, question: Question) -> Answer:
        resumed = 0
        for device in self._luns(question):
            self._remember(device, False)
            resumed += device.resume()
        return {"resumed": resumed}

    def drain(self, question: Question) -> Answer:
        deadline = time.monotonic() + seconds(question, _PATIENCE)
        self.clients.stop_reading()
        while self.clients.count:
            if time.monotonic() >= deadline:
                raise ControlError(errno.ETIMEDOUT, self._undrained())
            time.sleep(_LOOK)
        return {}

    def _noted(self) -> set[str]:
        try:
            with open(self._note or os.devnull) as file:
                return set(file.read().split())
        except FileNotFoundError:
            return set()

    def _remember(self, device: Device, quiesced: bool) -> None:
        """Note that the LUN is quiesced, or is not. Raises ControlError if that cannot be kept."""
        if self._note is None:
            return
        with self._noting:
            before = self._noted()
            noted = before | {str(device.address)} if quiesced else before - {str(device.address)}
            if noted == before:
                return
            try:
                if noted:
                    with open(f"{self._note}.new", "w") as file:
                        file.write("".join(f"{address}\n" for address in sorted(noted)))
                    os.replace(f"{self._note}.new", self._note)
                else:
                    os.unlink(self._note)
            except OSError as error:
                what = f"{self._note} cannot be written, which is to outlive the bridge: {error.strerror}"
                raise ControlError(error.errno or errno.EIO, what) from None

    def _as_before(self, device: Device) -> None:
        """A LUN has been attached: quiesced, if an older bridge at this place was told to."""
        if str(device.address) in self._noted():
            device.engine.change(device.initiator, lambda now: device.initiator.quiesce())
            log.warning("%s was quiesced before: `aoe-nbd resume %s` lets requests go on", *[device.address] * 2)

    def _undrained(self) -> str:
        waiting = sum(device.initiator.waiting for device in self.bridge.devices)
        dead = [str(device.address) for device in self.bridge.devices if device.initiator.dead]
        why = f": {waiting} requests wait for {', '.join(dead)}, which does not answer" if dead else ""
        return f"{self.clients.count} clients of the bridge are not done yet{why}"

    def _luns(self, question: Question) -> list[Device]:
        which = question.get("address")
        if which is None:
            return self.bridge.devices
        if not isinstance(which, str):
            raise ValueError(f"address={which!r} is not an address such as e1.0")
        address = parse_address(which)
        found = [device for device in self.bridge.devices if device.address == address]
        if not found:
            served = ", ".join(str(device.address) for device in self.bridge.devices) or "none yet"
            raise ControlError(errno.ENODEV, f"this bridge does not serve {address}: it serves {served}")
        return found
