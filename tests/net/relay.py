# SPDX-License-Identifier: BSD-3-Clause
"""Cables that harm what passes them: hosts joined by `relay.c`, which loses, delays, duplicates and reorders as it is told.

A `Trouble` is a LAN of an initiator's host and a storage host with one or more such cables between them. Each cable is a
relay in a namespace of its own: `cable.line("to", loss=0.01)`, `cable.cut()`, `cable.rule("to", "write", lba=8, delay=0.5)`.
Times are seconds here. "to" is towards the storage, "from" comes from there.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
import subprocess
import tempfile
from pathlib import Path

from lab import Host, Process, run

SOURCE = Path(__file__).with_name("relay.c")
_TIMES = ("dupdelay", "hold", "delay", "jitter")
_serial = itertools.count()


def program() -> Path:
    """The relay, compiled if its source is new."""
    text = SOURCE.read_bytes()
    folder = Path(tempfile.gettempdir()) / f"aoe-nbd-relay-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to somebody else: remove it")
    built = folder / hashlib.sha256(text).hexdigest()[:16]
    if not built.exists():
        part = built.with_suffix(f".{os.getpid()}")
        run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", part, SOURCE)
        part.rename(built)
    return built


class Cable(Process):
    """One relay, from interface "near" (the initiator's side) to "far" of its namespace."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.inside = Host(namespace, "near")
        control = folder / "control"
        super().__init__(namespace, self.inside.command(program(), control, "near", "far"), folder / "log")
        self.wait_for("ready")
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.connect(str(control))

    def _ask(self, command: str) -> str:
        self._control.send(command.encode())
        answer = self._control.recv(8192).decode()
        assert not answer.startswith("error"), f"{command}: {answer}"
        return answer

    @staticmethod
    def _words(options: dict[str, float]) -> str:
        return " ".join(f"{key}={value * 1e6 if key in _TIMES else value:.10g}" for key, value in options.items())

    def line(self, way: str, **faults: float) -> None:
        """From now on: loss, dup, reorder, corrupt (probabilities), dupdelay, hold, delay, jitter (s), mtu (bytes), cut."""
        self._ask(f"line {way} {self._words(faults)}")

    def rule(self, way: str, operation: str, **options: float) -> None:
        """For frames of that operation (at that lba, after `skip`, `times` of them): delay (s), or drop=1."""
        self._ask(f"rule {way} {operation} {self._words(options)}")

    def cut(self, way: str = "both") -> None:
        """Nothing passes any more, and nobody is told."""
        self.line(way, cut=1)

    def mend(self, way: str = "both") -> None:
        self.line(way, cut=0)

    def unplug(self) -> None:
        """Both hosts see their carrier go."""
        for end in ("near", "far"):
            self.inside.ip("link", "set", end, "down")

    def plug(self) -> None:
        for end in ("near", "far"):
            self.inside.ip("link", "set", end, "up")

    def clear(self) -> None:
        """No faults any more; what is held back goes out."""
        self._ask("clear")

    def seed(self, seed: int) -> None:
        """Draw what befalls the frames from this seed on."""
        self._ask(f"seed {seed}")

    def stats(self) -> dict[str, int]:
        """Counts by way and reason: "to.passed", "from.lost" and so on, and "held", "rule0" ..."""
        return {key: int(value) for key, value in (word.split("=") for word in self._ask("stats").split())}

    def close(self) -> None:
        self._control.close()
        self.stop()


class Trouble:
    """Two hosts and `cables` relays between them. `near[i]` and `far[i]` are the ends of cable i, as hosts of a test."""

    def __init__(self, folder: Path, mtu: int = 9000, cables: int = 1) -> None:
        prefix = f"aoe-{os.getpid()}-t{next(_serial)}"
        self._namespaces: list[str] = []
        self.cables: list[Cable] = []
        self.near = [Host(f"{prefix}-near", f"eth{i}") for i in range(cables)]
        self.far = [Host(f"{prefix}-far", f"eth{i}") for i in range(cables)]
        try:
            self._namespace(f"{prefix}-near")
            self._namespace(f"{prefix}-far")
            for i, (near, far) in enumerate(zip(self.near, self.far, strict=True)):
                self._lay(f"{prefix}-wire{i}", near, far, mtu, folder / f"{prefix}-wire{i}")
        except BaseException:
            self.close()
            raise

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._namespaces.append(name)

    def _lay(self, wire: str, near: Host, far: Host, mtu: int, folder: Path) -> None:
        self._namespace(wire)
        for host, end in ((near, "near"), (far, "far")):
            peer = ("peer", "name", end, "mtu", mtu, "netns", wire)
            host.ip("link", "add", host.interface, "mtu", mtu, "type", "veth", *peer)
            run("ip", "-n", wire, "link", "set", end, "up")
            host.up()
        folder.mkdir()
        self.cables.append(Cable(wire, folder))

    def close(self) -> None:
        for cable in self.cables:
            cable.close()
        for name in reversed(self._namespaces):
            subprocess.run(["ip", "netns", "del", name], check=False)
        self._namespaces.clear()
