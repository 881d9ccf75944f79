# SPDX-License-Identifier: BSD-3-Clause
"""Frames of one shape that are sent together: their memory and its description for sendmmsg, prepared once."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

from .packet import _IOVEC, _MMSGHDR, Link, _libc, address_of

ROW = 64  # bytes from one header to the next


class Outbox:
    """Room for `count` frames, each a header of up to 64 bytes and its share of `room` bytes of payload.

    Fill `headers` (a row each) and `payload` (page-aligned; share after share, without gaps), then `send`.
    """

    def __init__(self, count: int, room: int) -> None:
        self.count = count
        self.headers = np.zeros((count, ROW), np.uint8)
        self._memory = mmap.mmap(-1, room)
        self.payload = memoryview(self._memory)
        self._messages: dict[tuple[int, int], tuple[int, Any, Any]] = {}

    def _describe(self, header: int, share: int) -> tuple[int, Any, Any]:
        """The address of the `mmsghdr` array for frames of this shape, and what must live as long as it does."""
        at = np.arange(self.count, dtype="u8")
        iov = np.zeros((self.count, 2), _IOVEC)
        iov["base"] = np.stack([address_of(self.headers) + at * ROW, address_of(self.payload) + at * share], axis=1)
        iov["length"] = header, share
        messages = np.zeros(self.count, _MMSGHDR)
        messages["iov"] = address_of(iov) + at * (2 * _IOVEC.itemsize)
        messages["iovlen"] = 2 if share else 1
        return address_of(messages), messages, iov

    def send(self, link: Link, count: int, header: int, share: int = 0) -> int:
        """Send the first `count` frames, `header` bytes of header and `share` bytes of payload each.

        Returns how many were sent, fewer than all after an error, whose errno is then in `link.failure`.
        """
        shape = (header, share)
        described = self._messages.get(shape)
        if described is None:
            described = self._messages[shape] = self._describe(header, share)
        done = 0
        while done < count:
            sent = _libc.sendmmsg(link.fileno(), described[0] + done * _MMSGHDR.itemsize, count - done, 0)
            if sent <= 0:
                link.failure = ctypes.get_errno()
                break
            done += sent
        return done

    def frames(self, first: int, count: int, header: int, share: int = 0) -> list[bytes]:
        """Frames `first` to `count` - 1 as bytes of their own: those that could not be sent yet."""
        return [
            self.headers[i, :header].tobytes() + bytes(self.payload[i * share : (i + 1) * share])
            for i in range(first, count)
        ]
