# SPDX-License-Identifier: BSD-3-Clause
"""Frames of one shape that are sent together: their memory and its description for sendmmsg, prepared once."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

from .packet import IOVEC, MMSGHDR, Link, _libc, address_of


class Outbox:
    """Room for `count` frames, each of a header of `size` bytes and its share of `room` bytes of payload.

    Fill `headers` (a row each) and `payload` (page-aligned; share after share, without gaps), then `send`. Frames
    without a share are filled up with zeros to `least` bytes.
    """

    def __init__(self, count: int, size: int, room: int, least: int) -> None:
        self.headers = np.zeros((count, size), np.uint8)
        self.payload = memoryview(mmap.mmap(-1, room))
        self._zeros = np.zeros(least - size, np.uint8)
        self._described: dict[int, tuple[int, Any, Any]] = {}

    def _describe(self, share: int) -> tuple[int, Any, Any]:
        """The address of the `mmsghdr` array for frames with this share, and what must live as long as it does."""
        count, size = self.headers.shape
        at = np.arange(count, dtype="u8")
        iov = np.zeros((count, 2), IOVEC)
        iov["base"][:, 0] = address_of(self.headers) + at * size
        iov["base"][:, 1] = address_of(self.payload) + at * share if share else address_of(self._zeros)
        iov["length"] = size, share or len(self._zeros)
        messages = np.zeros(count, MMSGHDR)
        messages["iov"] = address_of(iov) + at * (2 * IOVEC.itemsize)
        messages["iovlen"] = 2
        return address_of(messages), messages, iov

    def send(self, link: Link, count: int, share: int) -> int:
        """Send the first `count` frames, each with `share` bytes of payload.

        Returns how many were sent, fewer than all after an error, whose errno is then in `link.failure`.
        """
        described = self._described.get(share)
        if described is None:
            described = self._described[share] = self._describe(share)
        done = 0
        while done < count:
            sent = _libc.sendmmsg(link.fileno(), described[0] + done * MMSGHDR.itemsize, count - done, 0)
            if sent <= 0:
                link.failure = ctypes.get_errno()
                break
            done += sent
        return done

    def frames(self, first: int, count: int, share: int) -> list[bytes]:
        """Frames `first` to `count` - 1 as bytes of their own: those that could not be sent yet."""
        zeros = b"" if share else self._zeros.tobytes()
        return [
            self.headers[i].tobytes() + bytes(self.payload[i * share : (i + 1) * share]) + zeros
            for i in range(first, count)
        ]
