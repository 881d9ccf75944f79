# SPDX-License-Identifier: BSD-3-Clause
"""A Link: AoE frames of one direction on one named interface, by an AF_PACKET socket.

Receiving is batched through a ring in shared memory; sending gathers headers and payload (sendmsg, sendmmsg) so that
the payload is copied once, by the kernel. All of it needs CAP_NET_RAW when the link is opened, and never afterwards.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np

from ..wire.address import Address
from . import filter as bpf
from .filter import Accept
from .interfaces import Interface, LinkError, interface, raw_sockets_hint
from .ring import SOL_PACKET, Ring

Buffer = bytes | bytearray | memoryview
_PACKET_QDISC_BYPASS: Final = 20
_PACKET_IGNORE_OUTGOING: Final = 23
_SO_SNDBUFFORCE: Final = 32
_SEND_BUFFER: Final = 4 << 20
_PER_FRAME: Final = 1024  # bytes that the kernel counts for a frame beyond its length, and more
_SLOTS_LEAST: Final = 128  # frames that a link's ring holds, if not told otherwise: between these two, as many as fill
_SLOTS_MOST: Final = 512
_RING: Final = 1 << 20  # so many bytes: what is used again that soon is still in the CPU's cache
BATCH: Final = 256  # most frames of one `send_rows`
ROW: Final = 64  # bytes from one header in `Link.headers` to the next

IOVEC = np.dtype([("base", "u8"), ("length", "u8")])
MMSGHDR = np.dtype(
    [
        ("name", "u8"),
        ("namelen", "u4"),
        ("pad0", "u4"),
        ("iov", "u8"),
        ("iovlen", "u8"),
        ("control", "u8"),
        ("controllen", "u8"),
        ("flags", "i4"),
        ("pad1", "u4"),
        ("sent", "u4"),
        ("pad2", "u4"),
    ]
)

_INDEX = np.arange(BATCH, dtype="u8")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]


def address_of(buffer: Any) -> int:
    """The memory address of a contiguous buffer. It stays valid only while the buffer does."""
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])


class Link:
    """One interface, one direction. Not safe for two threads at once.

    Attributes: `name`, `index`, `mac` (6 bytes), `mtu` (bytes), `up` (running, as last told by `update`); `slots`, frames
    that its ring holds; `headers`, BATCH rows of ROW bytes, is where `send_rows` takes headers from.
    """

    def __init__(self, name: str, accept: Accept, slots: int | None = None, address: Address | None = None) -> None:
        """Open interface `name`, for frames of one LUN (`address`) or of all; `slots` are the ring's. Raises LinkError."""
        found = interface(name)
        if found is None:
            raise LinkError(errno.ENODEV, f"interface {name} does not exist: `ip link` lists those that do")
        if found.loopback:
            raise LinkError(errno.EINVAL, f"interface {name} is the loopback: AoE needs an Ethernet interface")
        if not found.ethernet:
            raise LinkError(errno.EINVAL, f"interface {name} is not an Ethernet interface")
        if not found.up:
            raise LinkError(errno.ENETDOWN, f"interface {name} is down: bring it up with `ip link set {name} up`")
        self.name, self.accept, self.address = name, accept, address
        self.index, self.mac, self.mtu, self.up = found.index, found.mac, found.mtu, found.running
        self.failure = 0
        self._slots = slots
        self.headers = np.zeros((BATCH, ROW), np.uint8)
        iov, messages = np.zeros((BATCH, 2), IOVEC), np.zeros(BATCH, MMSGHDR)
        iov["base"][:, 0] = address_of(self.headers) + _INDEX * ROW
        messages["iov"] = address_of(iov) + _INDEX * (2 * IOVEC.itemsize)
        self._messages, self._parts = messages, messages["iovlen"]
        self._messages_at = address_of(messages)
        self._header_length, self._length, self._base = iov["length"][:, 0], iov["length"][:, 1], iov["base"][:, 1]
        self._shape = (0, 0)  # of the frames that were described last: bytes of header and of payload
        self._odd: list[int] = []  # those of them with less payload than the others
        self._open()

    def _open(self) -> None:
        self.slots = self._slots or min(max(_SLOTS_LEAST, _RING // self.mtu), _SLOTS_MOST)
        try:
            # Protocol 0 receives nothing, so not one frame comes in before the filter is on.
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise LinkError(errno.EPERM, f"no permission for a raw socket: {raw_sockets_hint()}") from None
        try:
            self._socket.setblocking(False)
            for option in (_PACKET_IGNORE_OUTGOING, _PACKET_QDISC_BYPASS):
                self._socket.setsockopt(SOL_PACKET, option, 1)
            self._size_send_buffer(max(_SEND_BUFFER, self.slots * (self.mtu + _PER_FRAME)))
            bpf.attach(self._socket, self.accept, self.address)
            self._ring = Ring(self._socket, self.mtu, self.slots)
            self._socket.bind((self.name, bpf.ETHERTYPE))
        except OSError as error:
            self._socket.close()
            if error.errno == errno.ENOMEM:
                raise LinkError(
                    errno.ENOMEM,
                    f"interface {self.name}: no memory to receive {self.slots} frames of {self.mtu} bytes: allow fewer",
                ) from None
            raise LinkError(error.errno, f"interface {self.name} cannot be opened: {error.strerror}") from None

    def _size_send_buffer(self, size: int) -> None:
        """Have room for as many frames on their way out as the ring has for those that come in."""
        self.clipped = ""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
        except PermissionError:  # needs CAP_NET_ADMIN; the unforced option is clipped to net.core.wmem_max
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            got = (
                self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2
            )  # the kernel doubles what it is given
            if got < size:
                self.clipped = (
                    f"interface {self.name}: the system allows {got} bytes of send buffer where {size} are wanted, so"
                    f" bursts are slower: set sysctl net.core.wmem_max={size}, or give the process CAP_NET_ADMIN"
                )

    def fileno(self) -> int:
        return self._socket.fileno()

    def update(self, now: Interface, exists: bool = True, closing: Callable[[], None] = lambda: None) -> bool:
        """Take what rtnetlink says of this interface. Returns whether MAC, MTU or state changed.

        Where that takes a new socket (the interface was made anew, or its frames outgrew the ring), `closing` is called
        before the old one goes: an epoll set must let go of it, for a forked process may keep the old socket alive.
        """
        before = (self.mac, self.mtu, self.up)
        anew = exists and now.index != self.index
        if exists and (anew or now.mtu + 14 > self._ring.capacity):
            closing()
            self.close()
            self.index, self.mtu = now.index, now.mtu
            self._open()
        self.mac, self.mtu, self.up = now.mac, now.mtu, exists and now.running
        return anew or before != (self.mac, self.mtu, self.up)

    # -- receiving ---------------------------------------------------------------------------------------------------

    def receive(self, most: int = 256) -> list[memoryview]:
        """Up to `most` whole frames that have arrived, without waiting; good until `release()`."""
        return self._ring.frames(most)

    def receive_rows(self, most: int = 256) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
        """What has arrived as one array of frames and their lengths (see `Ring.rows`), or None where that cannot be."""
        rows, lengths = self._ring.rows(most)
        return (rows, lengths) if len(rows) else None

    def waiting(self, count: int = 1) -> bool:
        """Whether so many frames have arrived that were not taken yet, and that an array could show at once."""
        return self._ring.waiting(count)

    def peek(self, size: int) -> bytes:
        """The first bytes of the oldest of them."""
        return self._ring.peek(size)

    def release(self) -> None:
        """Give the memory of the last `receive()` back to the kernel."""
        self._ring.release()

    def error(self) -> int:
        """The socket's pending errno (ENETDOWN after the interface went down), cleared by asking; 0 if there is none."""
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def dropped(self) -> int:
        """Frames that the kernel dropped since the last call because the ring was full."""
        stats = self._socket.getsockopt(SOL_PACKET, 6, 8)  # PACKET_STATISTICS: packets, drops
        return int(struct.unpack("II", stats)[1])

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(self, *parts: Buffer) -> None:
        """Send one frame, given in up to a few parts. Raises OSError (ENETDOWN, ENOBUFS, EMSGSIZE, EAGAIN)."""
        if len(parts) == 1:
            self._socket.send(parts[0])
        else:
            self._socket.sendmsg(parts)

    def send_all(self, frames: Sequence[Buffer] | Iterable[Buffer]) -> int:
        """Send whole frames in order until one fails. Returns how many were sent."""
        sent = 0
        for frame in frames:
            try:
                self._socket.send(frame)
            except OSError:
                break
            sent += 1
        return sent

    def send_rows(self, count: int, size: int, step: int = 0, payloads: Iterable[tuple[int, int, int]] = ()) -> int:
        """Send `count` frames, BATCH at most: the first `size` bytes of each row of `headers`, then its share of payload.

        `payloads` tells of stretches of rows, one after the other, with `step`: (frames, address, bytes). Each frame takes
        `step` bytes there, the last one what is left. Returns how many were sent, fewer than all after an error, whose
        errno is then in `failure`.
        """
        if (size, step) != self._shape:
            self._shape = (size, step)
            self._header_length[:], self._length[:] = size, step
            self._parts[:] = 2 if step else 1
        elif self._odd:
            self._length[self._odd] = step
        self._odd.clear()
        at = 0
        for frames, address, total in payloads:
            end = at + frames
            self._base[at:end] = _INDEX[:frames] * step + address
            short = total - (frames - 1) * step
            if short < step:
                self._odd.append(end - 1)
                self._length[end - 1] = short
            at = end
        done = 0
        while done < count:
            at = self._messages_at + done * MMSGHDR.itemsize
            sent = _libc.sendmmsg(self._socket.fileno(), at, count - done, 0)
            if sent <= 0:
                self.failure = ctypes.get_errno()
                break
            done += sent
        return done

    def close(self) -> None:
        """Close the socket and unmap its ring."""
        self._socket.close()
        self._ring.close()


def errno_name(code: int) -> str:
    """`ENETDOWN` and so on, for counters."""
    return errno.errorcode.get(code, os.strerror(code))
