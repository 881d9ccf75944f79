# SPDX-License-Identifier: BSD-3-Clause
"""Xen's configuration store, as far as a hotplug script needs it: read, write, remove, list, and which domains there are.

Spoken directly, one message for one question (docs/misc/xenstore.txt of Xen), by the daemon's socket or the kernel's
device, as libxenstore does: a domain that is just moving stands still meanwhile, and each `xenstore-read` would be a process.
Paths that do not begin with `/` are relative to this domain's own, /local/domain/0.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from enum import IntEnum

_HEADER = struct.Struct("=IIII")  # type, request, transaction, length of what follows
_DEVICES = ("/dev/xen/xenbus", "/proc/xen/xenbus")


class _Type(IntEnum):
    DIRECTORY = 1
    READ = 2
    WRITE = 11
    RM = 13
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17


class StoreError(OSError):
    """The store cannot be reached, or refuses; the message is one sentence."""


def _connect() -> int:
    """A file descriptor that speaks to the store."""
    path = os.environ.get("XENSTORED_PATH") or f"{os.environ.get('XENSTORED_RUNDIR') or '/run/xenstored'}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        try:
            end.connect(path)
            return end.detach()
        except OSError as error:
            why = error
    for device in () if "XENSTORED_PATH" in os.environ else _DEVICES:
        try:
            return os.open(device, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
    raise StoreError(why.errno, f"xenstore cannot be reached at {path} ({why.strerror}): is this a Xen dom0, and root?")


class Store:
    """A connection. Every method raises StoreError if the store cannot be reached or does not permit it."""

    def __init__(self) -> None:
        self._fd = _connect()

    def close(self) -> None:
        os.close(self._fd)

    def read(self, path: str) -> str | None:
        """The node's value, None if there is no such node."""
        value = self._ask(_Type.READ, path)
        return None if value is None else value.decode(errors="backslashreplace")

    def children(self, path: str) -> list[str]:
        """The names of the nodes below; none if there is no such node."""
        names = self._ask(_Type.DIRECTORY, path) or b""
        return [name.decode(errors="backslashreplace") for name in names.split(b"\0") if name]

    def write(self, path: str, value: str) -> None:
        """Set a node, and make it if there is none."""
        self._ask(_Type.WRITE, path, value)

    def remove(self, path: str) -> None:
        """Remove a node and all below it; nothing to remove is right."""
        self._ask(_Type.RM, path)

    def exists(self, domid: int) -> bool:
        """Whether there is such a domain: one that is being destroyed is none any more."""
        return self._ask(_Type.IS_DOMAIN_INTRODUCED, str(domid)) == b"T\0"

    def _ask(self, kind: _Type, path: str, value: str = "") -> bytes | None:
        """Put one question. None if the store has no such node."""
        payload = path.encode() + b"\0" + value.encode()
        try:
            self._send(_HEADER.pack(kind, 0, 0, len(payload)) + payload)
            while True:
                answered, _, _, length = _HEADER.unpack(self._take(_HEADER.size))
                answer = self._take(length)
                if answered != _Type.WATCH_EVENT:
                    break
        except OSError as error:
            raise StoreError(error.errno, f"xenstore has gone: {error.strerror}") from None
        if answered == kind:
            return answer
        refusal = answer.rstrip(b"\0").decode(errors="backslashreplace")
        if refusal == "ENOENT":
            return None
        raise StoreError(getattr(errno, refusal, errno.EIO), f"xenstore refuses {kind.name} of {path}: {refusal}")

    def _send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _take(self, count: int) -> bytes:
        taken = b""
        while len(taken) < count:
            more = os.read(self._fd, count - len(taken))
            if not more:
                raise StoreError(errno.ECONNRESET, "it has ended the connection")
            taken += more
        return taken
