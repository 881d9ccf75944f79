# SPDX-License-Identifier: BSD-3-Clause
"""A xenstored in memory, behind a Unix socket as the real one: a flat dictionary of paths, and the domains that there are."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

OURS = "/local/domain/0/"
DIRECTORY, READ, WRITE, RM, EVENT, ERROR, INTRODUCED = 1, 2, 11, 13, 15, 16, 17


class Xenstored:
    """`nodes` by absolute path; `domains` that exist."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "xenstored")
        self.nodes: dict[str, str] = {}
        self.domains = {0}
        self.refuse = ""  # an errno's name that every answer is
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        threading.Thread(target=self._run, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def domain(self, domid: int, name: str, uuid: str) -> None:
        """Have a domain exist."""
        self.domains.add(domid)
        self.nodes |= {f"/local/domain/{domid}/name": name, f"/local/domain/{domid}/vm": f"/vm/{uuid}"}

    def vbd(self, domid: int, devid: int, params: str, mode: str = "w", vdev: str = "xvda") -> str:
        """Have libxl give a domain a disk. Returns its XENBUS_PATH."""
        path = f"backend/vbd/{domid}/{devid}"
        for name, value in (
            ("params", params),
            ("mode", mode),
            ("dev", vdev),
            ("script", "/etc/xen/scripts/block-aoe"),
        ):
            self.nodes[f"{OURS}{path}/{name}"] = value
        return path

    def ends(self, domid: int, nodes_too: bool = True) -> None:
        """Have a domain end, without its script being called."""
        self.domains.discard(domid)
        for prefix in (f"/local/domain/{domid}/", *([f"{OURS}backend/vbd/{domid}/"] if nodes_too else [])):
            self.nodes = {path: value for path, value in self.nodes.items() if not path.startswith(prefix)}

    def says(self, path: str) -> dict[str, str]:
        """The nodes right below a path."""
        start = f"{OURS}{path}/"
        return {name[len(start) :]: value for name, value in self.nodes.items() if name.startswith(start)}

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rwb") as stream:
            while len(header := stream.read(16)) == 16:
                kind, request, transaction, length = struct.unpack("=IIII", header)
                path, _, value = stream.read(length).partition(b"\0")
                answered, answer = self._answer(kind, path.decode(), value.decode())
                stream.write(struct.pack("=IIII", EVENT, 0, 0, 2) + b"a\0")  # a watch that nobody has asked for
                stream.write(struct.pack("=IIII", answered, request, transaction, len(answer)) + answer)
                stream.flush()

    def _answer(self, kind: int, path: str, value: str) -> tuple[int, bytes]:
        if self.refuse:
            return ERROR, self.refuse.encode() + b"\0"
        if kind == INTRODUCED:
            return kind, b"T\0" if int(path) in self.domains else b"F\0"
        whole = path if path.startswith("/") else OURS + path
        below = [name for name in self.nodes if name.startswith(f"{whole}/")]
        if kind == WRITE:
            self.nodes[whole] = value
            return kind, b"OK\0"
        if whole not in self.nodes and not below:
            return ERROR, b"ENOENT\0"
        if kind == READ:
            return kind, self.nodes.get(whole, "").encode()
        if kind == DIRECTORY:
            names = dict.fromkeys(name[len(whole) + 1 :].split("/")[0] for name in below)
            return kind, b"".join(name.encode() + b"\0" for name in names)
        assert kind == RM, kind
        self.nodes = {name: text for name, text in self.nodes.items() if name != whole and name not in below}
        return kind, b"OK\0"
