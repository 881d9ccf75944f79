# SPDX-License-Identifier: BSD-3-Clause
"""The NBD clients of this process: nbdkit holds their connections, and its plugin can only count them and find their sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator


class Clients:
    """`count` is of clients that have chosen an export. `spared` are the names of stream sockets that are no client's."""

    def __init__(self) -> None:
        self.count = 0
        self.spared: set[object] = set()
        self._counting = threading.Lock()

    def came(self) -> None:
        """A client has chosen its export."""
        with self._counting:
            self.count += 1

    def went(self) -> None:
        """A client's connection is closed, and all that it asked is answered."""
        with self._counting:
            self.count -= 1

    def stop_reading(self) -> None:
        """Take no further requests: what lies in the clients' sockets is still read and answered, then nbdkit closes them.

        A client that sends more meets EPIPE.
        """
        self._shut(socket.SHUT_RD)

    def hang_up(self) -> None:
        """End their connections."""
        self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        for connection in self._connections():
            with connection, contextlib.suppress(OSError):
                connection.shutdown(how)

    def _connections(self) -> Iterator[socket.socket]:
        """All stream sockets of this process that neither listen nor are spared, as copies to be closed."""
        for name in os.listdir("/proc/self/fd"):
            try:
                copy = os.dup(int(name))
            except OSError:
                continue  # closed meanwhile
            if not stat.S_ISSOCK(os.fstat(copy).st_mode):
                os.close(copy)
                continue
            found = socket.socket(fileno=copy)
            with contextlib.suppress(OSError):
                if (
                    found.type == socket.SOCK_STREAM
                    and not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    and found.getsockname() not in self.spared
                ):
                    yield found
                    continue
            found.close()
