# SPDX-License-Identifier: BSD-3-Clause
"""A client of the target that sends any frame and shows each one that comes back."""

from __future__ import annotations

import select
import socket
import struct
import time

from lab import PATIENCE, Host

EVERYONE = b"\xff" * 6
_ETHERTYPE = 0x88A2


class Client:
    """A raw socket on a host's interface."""

    def __init__(self, host: Host, target: Host, shelf: int = 1, slot: int = 0) -> None:
        self.mac, self.target = (bytes.fromhex(h.mac.replace(":", "")) for h in (host, target))
        self.shelf, self.slot = shelf, slot
        self._tag = 0x80000000
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
            self._socket.bind((host.interface, _ETHERTYPE))

    def frame(self, command: int, body: bytes, verfl: int = 0x10, dst: bytes | None = None, **address: int) -> bytes:
        self._tag += 1
        shelf, slot = address.get("shelf", self.shelf), address.get("slot", self.slot)
        head = struct.pack(">HBBHBBI", _ETHERTYPE, verfl, 0, shelf, slot, command, self._tag)
        return ((dst or self.target) + self.mac + head + body).ljust(60, b"\0")

    def ata(
        self, opcode: int, lba: int = 0, n: int = 1, data: bytes = b"", flags: int = 0x40, feature: int = 0
    ) -> bytes:
        return self.frame(0, bytes([flags, feature, n, opcode]) + lba.to_bytes(6, "little") + b"\0\0" + data)

    def read(self, lba: int, n: int = 1) -> bytes:
        return self.ata(0x24, lba, n)

    def write(self, lba: int, data: bytes) -> bytes:
        return self.ata(0x34, lba, len(data) // 512, data, 0x41)

    def config(self, ccmd: int = 0, string: bytes = b"", **address: int) -> bytes:
        dst = EVERYONE if address else None
        return self.frame(1, struct.pack(">HHBBH", 0, 0, 0, ccmd, len(string)) + string, dst=dst, **address)

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self, timeout: float = PATIENCE) -> bytes | None:
        """The next frame that came in; None if none does in time."""
        deadline = time.monotonic() + timeout
        while select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            frame, address = self._socket.recvfrom(65536)
            if address[2] != 4:  # PACKET_OUTGOING
                return frame
        return None

    def ask(self, frame: bytes) -> bytes:
        """The reply to `frame`; whatever else comes in before it is passed over."""
        self.send(frame)
        while (reply := self.receive()) is not None:
            if reply[20:24] == frame[20:24]:
                return reply
        raise AssertionError(f"no reply to {frame[14:36].hex()}")

    def silence(self, frame: bytes) -> None:
        """`frame` gets no answer: that of an IDENTIFY sent after it comes first."""
        self.send(frame)
        probe = self.ata(0xEC)
        self.send(probe)
        while (reply := self.receive()) is not None:
            assert reply[20:24] != frame[20:24], reply.hex()
            if reply[20:24] == probe[20:24]:
                return
        raise AssertionError("no reply to the IDENTIFY after it")

    def announcement(self, sectors: int | None = None) -> bytes:
        """The next unsolicited config response (with that sector count)."""
        while (frame := self.receive()) is not None:
            if frame[19] == 1 and frame[20:24] == bytes(4) and frame[14] & 8 and sectors in (None, frame[28]):
                return frame
        raise AssertionError("no announcement")

    def error(self) -> int:
        """Take the socket's pending error away (ENETDOWN after the interface was down)."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def drain(self) -> list[bytes]:
        """All that has come in."""
        found = []
        while (frame := self.receive(0)) is not None:
            found.append(frame)
        return found

    def close(self) -> None:
        self._socket.close()
