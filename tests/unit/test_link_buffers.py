# SPDX-License-Identifier: BSD-3-Clause
"""The send buffer of a link: sized from its ring, and a sentence where the system's limit clips it."""

from __future__ import annotations

import socket

import pytest

from aoe_nbd.link import Link


class Socket:
    """A socket in a system that limits send buffers to `limit` bytes, for those without CAP_NET_ADMIN."""

    def __init__(self, limit: int, admin: bool) -> None:
        self.limit, self.admin, self.size = limit, admin, 0

    def setsockopt(self, _level: int, option: int, size: int) -> None:
        if option != socket.SO_SNDBUF and not self.admin:
            raise PermissionError
        self.size = size if self.admin else min(size, self.limit)

    def getsockopt(self, _level: int, _option: int) -> int:
        return 2 * self.size


def clipped(limit: int, admin: bool) -> str:
    link = object.__new__(Link)
    link.name = "eth1"
    link._socket = Socket(limit, admin)  # type: ignore[assignment]
    link._size_send_buffer(5000)
    return link.clipped


@pytest.mark.sources  # it makes half a Link
def test_a_clipped_send_buffer_is_told() -> None:
    assert clipped(1000, admin=True) == ""
    assert clipped(5000, admin=False) == ""
    said = clipped(4999, admin=False)
    assert "eth1" in said
    assert "net.core.wmem_max=5000" in said
