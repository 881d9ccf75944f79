# SPDX-License-Identifier: BSD-3-Clause
"""The receive ring of a packet socket (PACKET_RX_RING, TPACKET_V2): frames are read where the kernel wrote them.

Slots have one fixed size, so that a batch of equal frames can be seen as one array. A view of a frame is good until
`release()`; after that the kernel may write the next frame there.
"""

from __future__ import annotations

import mmap
import socket
import struct
import sys
from typing import Any, Final

import numpy as np

SOL_PACKET: Final = 263
PACKET_RX_RING: Final = 5
PACKET_VERSION: Final = 10
TPACKET_V2: Final = 1
_STATUS_KERNEL, _STATUS_USER, _STATUS_COPY = 0, 1, 2
_LOWEST: Final = 0 if sys.byteorder == "little" else 3  # byte of a word
# struct tpacket2_hdr: status, len, snaplen u32; mac, net u16; sec, nsec u32; vlan_tci, vlan_tpid u16; 4 bytes padding
_HEADER = struct.Struct("IIIHH")
_STATUS = struct.Struct("I")
# An odd number of cache lines a slot: were it a power of two, the headers of all slots would share a few places of the cache.
# So many slots a block fill whole pages, and blocks follow each other without a gap.
_LINE, _PER_BLOCK = 64, mmap.PAGESIZE // 64
_LOOK: Final = 32  # slots
_OVERHEAD: Final = 96  # tpacket2_hdr + sockaddr_ll, aligned, + the Ethernet header before the aligned network header


class Ring:
    """A receive ring of at least `slots` frames of up to `mtu` + 14 bytes, mapped into `sock`."""

    def __init__(self, sock: socket.socket, mtu: int, slots: int) -> None:
        size = (-(-(mtu + 14 + _OVERHEAD) // _LINE) | 1) * _LINE
        blocks = -(-slots // _PER_BLOCK)
        block = size * _PER_BLOCK
        self.slot_size = size
        self.slots = blocks * _PER_BLOCK
        self.capacity = size - _OVERHEAD  # bytes of the longest frame that arrives whole
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("IIII", block, blocks, size, self.slots))
        self._map = mmap.mmap(sock.fileno(), self.slots * size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.view = memoryview(self._map)
        self._rows = np.frombuffer(self._map, np.uint8).reshape(self.slots, size)
        self._words = self._rows.view(np.uint32)  # columns 0 to 2: status, length, length that fitted
        self._next = 0
        self._held = 0
        self.truncated = 0  # frames longer than a slot, dropped

    def frames(self, most: int = 256) -> list[memoryview]:
        """Up to `most` frames that have arrived, oldest first, without waiting. `release()` them before the next call."""
        found: list[memoryview] = []
        view, size, at = self.view, self.slot_size, self._next
        self._held = 0
        while self._held < most:
            base = at * size
            status, length, snap, mac, _net = _HEADER.unpack_from(view, base)
            if not status & _STATUS_USER:
                break
            self._held += 1
            at = at + 1 if at + 1 < self.slots else 0
            if snap < length:
                self.truncated += 1
            else:
                found.append(view[base + mac : base + mac + length])
        return found

    def waiting(self, count: int) -> bool:
        """Whether at least `count` frames have arrived that `rows` could show at once."""
        at = self._next + count - 1
        return at < self.slots and bool(_STATUS.unpack_from(self.view, at * self.slot_size)[0] & _STATUS_USER)

    def peek(self, size: int) -> bytes:
        """The first `size` bytes of the oldest frame that has arrived and was not taken yet. There must be one."""
        base = self._next * self.slot_size
        at: int = base + _HEADER.unpack_from(self.view, base)[3]
        return bytes(self.view[at : at + size])

    def rows(self, most: int = 256) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Frames as one array: row i begins with frame i, of lengths[i] bytes; oldest first. To be released like `frames`.

        It ends where the ring does, or before a frame that did not fit its slot; it may be empty though frames wait.
        """
        at = self._next
        count, found, most = 0, -1, min(most, self.slots - at)
        while found < 0 and count < most:
            # As bytes, which is several times faster: a status is zero or has its lowest bit set. And not too many at a
            # time: each lies in a page of its own.
            seen = self._rows[at + count : at + min(count + _LOOK, most), _LOWEST].tobytes()
            found = seen.find(0)
            count += len(seen) if found < 0 else found
        lengths, fitted = self._words[at : at + count, 1], self._words[at : at + count, 2]
        if lengths.tobytes() != fitted.tobytes():
            count = int((lengths == fitted).argmin())
            lengths = lengths[:count]
        self._held = count
        mac = _HEADER.unpack_from(self.view, at * self.slot_size)[
            3
        ]  # the same in all slots, as headers are equally long
        return self._rows[at : at + count, mac:], lengths

    def release(self) -> None:
        """Give the slots of the last `frames()` back to the kernel."""
        at, end = self._next, self._next + self._held
        if self._held == 1:
            _STATUS.pack_into(self.view, at * self.slot_size, _STATUS_KERNEL)
        else:
            self._words[at:end, 0] = _STATUS_KERNEL
            if end > self.slots:
                self._words[: end - self.slots, 0] = _STATUS_KERNEL
        self._next = end % self.slots
        self._held = 0

    def close(self) -> None:
        """Unmap. Views handed out must be gone by now; those that are not keep the memory alive."""
        self._rows, self._words = self._rows[:0].copy(), self._words[:0].copy()
        try:
            self.view.release()
            self._map.close()
        except BufferError:
            pass
