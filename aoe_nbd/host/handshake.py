# SPDX-License-Identifier: BSD-3-Clause
"""The NBD negotiation with a bridge, by libnbd, up to where the kernel's nbd can take the socket over."""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import nbd as libnbd

PATIENCE = 10.0  # s that a negotiation may take: the bridge answers from memory
_SOCKET_BUFFER = 4 << 20  # bytes: several of the largest requests (net.core.wmem_max may allow less)

# Transmission flags (NBD protocol; linux/nbd.h)
HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA = 1 << 0, 1 << 1, 1 << 2, 1 << 3
ROTATIONAL, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN = 1 << 4, 1 << 5, 1 << 6, 1 << 8


class HandshakeError(OSError):
    """An NBD server that cannot be used: an errno, and one sentence."""


@dataclass
class Connection:
    """A negotiated connection: nothing but requests goes through it from now on. `close` it once the kernel has it."""

    fd: int
    size: int  # bytes
    flags: int

    @property
    def inode(self) -> int:
        """The socket's number in /proc/net/unix, where it stays as long as anybody holds it."""
        return os.fstat(self.fd).st_ino

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def held(inode: int) -> bool:
    """Whether anybody, the kernel included, holds the Unix socket of that number."""
    with open("/proc/net/unix") as table:
        return any(line.split()[6] == str(inode) for line in table if line[0] != "N")


def connect(path: Path, export: str = "", patience: float = PATIENCE) -> Connection:
    """Negotiate with the server on the Unix socket `path`. Raises HandshakeError.

    Without structured replies, which the kernel does not know; and no farewell is ever sent on the connection from here.
    """
    limit = time.monotonic() + patience
    handle = libnbd.NBD()
    try:
        handle.set_export_name(export)
        handle.set_request_structured_replies(False)
        handle.aio_connect_unix(os.fspath(path))
        while handle.aio_is_connecting():
            left = limit - time.monotonic()
            if left <= 0:
                raise HandshakeError(errno.ETIMEDOUT, f"the NBD server on {path} has not answered for {patience:g} s")
            handle.poll(max(1, int(left * 1000)))
        if not handle.aio_is_ready():
            raise HandshakeError(errno.EPROTO, f"the NBD server on {path} ended the negotiation")
        size, flags = handle.get_size(), _flags(handle)
        fd = os.dup(handle.aio_get_fd())
    except libnbd.Error as error:
        raise HandshakeError(error.errnum or errno.EIO, f"no NBD connection to {path}: {error.string}") from None
    os.set_blocking(fd, True)
    _enlarge(fd)
    return Connection(fd, size, flags)


def _flags(handle: libnbd.NBD) -> int:
    offered = (
        (READ_ONLY, handle.is_read_only()),
        (SEND_FLUSH, handle.can_flush()),
        (SEND_FUA, handle.can_fua()),
        (ROTATIONAL, handle.is_rotational()),
        (SEND_TRIM, handle.can_trim()),
        (SEND_WRITE_ZEROES, handle.can_zero()),
        (CAN_MULTI_CONN, handle.can_multi_conn()),
    )
    return HAS_FLAGS | sum(flag for flag, has in offered if has)


def _enlarge(fd: int) -> None:
    """Have room for whole requests in the socket, so that the sender need not wait in the middle of one."""
    with socket.socket(fileno=os.dup(fd)) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
