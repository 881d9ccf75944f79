# SPDX-License-Identifier: BSD-3-Clause
"""What each machine on a segment asks an AoE target to change, and what it is answered: seen where it is plugged in."""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import threading
from dataclasses import dataclass

from machine import Segment

_AOE, _ETH_P_ALL = 0x88A2, 3
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_HEADERS = 64  # bytes of a frame that are looked at
_CHANGES = (0x30, 0x34, 0x06)  # WRITE SECTORS, WRITE SECTORS EXT, DATA SET MANAGEMENT
REFUSED = 6  # the AoE error of a LUN that is reserved for others


@dataclass
class Change:
    """A request to change the disk: when it was sent (s since 1970), and the AoE error that answered it."""

    sent: float
    slot: int
    error: int | None = None  # 0: done; None: no answer

    @property
    def landed(self) -> bool:
        """It was carried out, as far as anybody can tell."""
        return self.error != REFUSED


class Wire:
    """`changes[port]`: what the machine there has sent, in order, repetitions too."""

    def __init__(self, segment: Segment) -> None:
        self.changes: list[list[Change]] = [[] for _ in segment.ports]
        self._open: dict[tuple[int, bytes], Change] = {}
        self._closing = threading.Event()
        # Of all protocols, and not of AoE's alone: only those are shown what goes out to the machine.
        with segment.entered():
            self._taps = [self._tap(port.interface) for port in segment.ports]
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def _tap(self, interface: str) -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        # Load the EtherType; if it is AoE's, pass the headers on, else nothing.
        steps = [(0x28, 0, 0, 12), (0x15, 0, 1, _AOE), (0x06, 0, 0, _HEADERS), (0x06, 0, 0, 0)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
        tap.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(steps), ctypes.addressof(code)))
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        tap.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        tap.bind((interface, _ETH_P_ALL))
        return tap

    def _receive(self) -> None:
        ports = {tap: port for port, tap in enumerate(self._taps)}
        while not self._closing.is_set():
            for tap in select.select(self._taps, [], [], 0.5)[0]:
                frame, extra, _, _ = tap.recvmsg(_HEADERS, 64)
                seconds, nanoseconds = struct.unpack("qq", extra[0][2])
                self._add(ports[tap], frame, seconds + nanoseconds * 1e-9)

    def _add(self, port: int, frame: bytes, now: float) -> None:
        if len(frame) < 36 or frame[19] != 0:  # ATA
            return
        tag = (port, frame[20:24])
        if frame[14] & 8:
            if change := self._open.pop(tag, None):
                change.error = frame[15] if frame[14] & 4 else 0
        elif frame[27] in _CHANGES:
            change = self._open[tag] = Change(now, frame[18])
            self.changes[port].append(change)

    def of(self, port: int, slot: int, since: float = 0.0) -> list[Change]:
        """What the machine there has sent to change e1.<slot>, after that time."""
        return [change for change in self.changes[port] if change.slot == slot and change.sent > since]

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        for tap in self._taps:
            tap.close()
