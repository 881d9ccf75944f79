# SPDX-License-Identifier: BSD-3-Clause
"""The things that are compared, each on a private LAN of two hosts: `near` has the clients, `far` has the disk's file.

    Aoe     client - bridge ~~~~~ AoE target            (vblade or ours)
    Iscsi   client - qemu-nbd with libiscsi ~~~~~ tgtd
    Tcp     client ~~~~~ nbdkit file

~~~~~ is a veth pair. Every program runs as its users run it, with its defaults, unless said here.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from lab import PLUGIN, PYTHON, ROOT, Bridge, Host, Lan, Process

from .measure import Failed, Run, observe, tool

WINDOW = 64  # buffers of either target, and the floor's window
AT_ONCE = 8  # bridges that are starting
_PORTAL, _NAME = "10.0.0.2", "iqn.2001-04.com.example:disk"


class Places:
    """Where things are, and where they run: the same for all that is compared."""

    def __init__(self, folder: Path, pin: bool) -> None:
        self.folder, self._pin = folder, pin
        self._serial = 0

    def near(self, *words: object) -> list[str]:
        """The command, where initiators and clients belong."""
        return self._on(0, words)

    def far(self, *words: object) -> list[str]:
        """The command, where targets belong."""
        return self._on(1, words)

    def _on(self, cpu: int, words: Sequence[object]) -> list[str]:
        return [*(("taskset", "-c", str(cpu)) if self._pin else ()), *map(str, words)]

    def file(self, stem: str, suffix: str) -> Path:
        """A name that nothing has yet."""
        self._serial += 1
        return self.folder / f"{stem}-{self._serial}.{suffix}"


class Stack:
    """Programs and a LAN that live together. `processes` are those on the servers' side, by what they are called in tables."""

    name = ""

    def __init__(self, places: Places, mtu: int) -> None:
        self.places, self.mtu = places, mtu
        self.processes: dict[str, int] = {}
        self._ends = contextlib.ExitStack()
        self.lan = Lan(mtu)
        self._ends.callback(self.lan.close)
        self.near, self.far = self.lan.hosts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._ends.close()

    def start(self, label: str, host: Host, command: Sequence[object]) -> Process:
        """Run it on that host until `close()`."""
        process = Process(
            label, host.command(*command), self.places.file(label.split()[0], "log"), {"PYTHONPATH": str(ROOT)}
        )
        self._ends.callback(end, process)
        self.processes[label] = process.pid
        return process

    def launch(self, label: str, command: Callable[[Path], Sequence[object]]) -> Bridge:
        """Start an NBD server on a Unix socket at the near host."""
        socket = self.places.file("nbd", "sock")
        log = self.places.file(label.split()[0], "log")
        server = Bridge(self.near.command(*self.places.near(*command(socket))), socket, log)
        self._ends.callback(end, server)
        self.processes[label] = server.pid
        return server

    def serve(self, label: str, command: Callable[[Path], Sequence[object]]) -> str:
        """Start an NBD server, wait for it, and return its socket."""
        server = self.launch(label, command)
        server.wait_for_socket(server.socket)
        return str(server.socket)

    @property
    def uri(self) -> str:
        """Where NBD clients on the near host find the disk."""
        raise NotImplementedError

    def client(self) -> list[str]:
        """What to put before a client's command."""
        return self.near.command(*self.places.near())

    def run(self, action: Callable[[], Run]) -> Run:
        """Do it, and account for the CPU time of all that is here."""
        return observe(self.processes, action)


def end(process: Process) -> None:
    process.popen.kill()
    process.stop()


class Aoe(Stack):
    """An AoE target with `exports` of the one file, e1.0 and up, and (with `bridges`) one bridge for each of the first."""

    def __init__(self, places: Places, mtu: int, who: str, disk: Path, bridges: int = 1, exports: int = 1) -> None:
        super().__init__(places, mtu)
        self.name = f"aoe-nbd with {'our target' if who == 'ours' else who}"
        self.who, self.disk = who, disk
        self.sockets: list[str] = []
        try:
            for slot in range(exports if who == "vblade" else 1):
                self._target(slot, exports)
            self.bridges(bridges)
        except BaseException:
            self.close()
            raise

    def _target(self, slot: int, exports: int) -> None:
        if self.who == "vblade":
            label = "vblade" if exports == 1 else f"vblade {slot}"
            words: list[object] = ["vblade", "-b", WINDOW, 1, slot, self.far.interface, self.disk]
            self.start(label, self.far, self.places.far(*words)).wait_for("sectors O_")
            return
        words = [PYTHON, "-m", "aoe_nbd.target", "--interface", self.far.interface]
        for number in range(exports):
            words += ["--export", f"e1.{number}={self.disk}"]
        target = self.start("target", self.far, self.places.far(*words))
        target.wait_for(f"e1.{exports - 1} (")

    def plugin(self, slot: int | None = 0) -> list[object]:
        """The plugin and its parameters, for nbdkit; with None it is for clients to choose the LUN."""
        target = [] if slot is None else [f"target=e1.{slot}"]
        return ["python", PLUGIN, f"interface={self.near.interface}", *target]

    def bridges(self, count: int) -> None:
        """Bridges for e1.0 and up, some started at once; return when all of them listen."""
        for first in range(0, count, AT_ONCE):
            servers = [
                self.launch(f"bridge {slot}" if slot else "bridge", partial(self._bridge, slot))
                for slot in range(first, min(count, first + AT_ONCE))
            ]
            for server in servers:
                server.wait_for_socket(server.socket)
                self.sockets.append(str(server.socket))

    def bridge_for_all(self, count: int) -> None:
        """One bridge, at which the client chooses e1.0 and up by their export names."""
        server = self.launch("bridge", lambda socket: ["nbdkit", "-f", "-U", socket, *self.plugin(None)])
        server.wait_for_socket(server.socket)
        self.sockets += [f"{server.socket}#e1.{slot}" for slot in range(count)]

    def _bridge(self, slot: int, socket: Path) -> Sequence[object]:
        return ["nbdkit", "-f", "-U", socket, *self.plugin(slot)]

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self.sockets[0]}"

    def floor(
        self, way: str, seconds: float, size: int, sectors: int, window: int = WINDOW, order: str = "sequential"
    ) -> Run:
        """The C floor, past the bridge."""
        words = (self.places.folder / "floor", self.near.interface, 1, 0, way, order, sectors, window, seconds, size)
        return self.run(lambda: tool([*self.client(), *words], "floor"))

    def load(
        self,
        way: str,
        seconds: float,
        request: int,
        depth: int,
        order: str = "sequential",
        size: int = 0,
    ) -> Run:
        """The light NBD client, through all bridges at once."""
        words = (self.places.folder / "nbdload", way, order, request, depth, seconds, size, *self.sockets)
        return self.run(lambda: tool([*self.client(), *words], "client"))


class Iscsi(Stack):
    """tgtd (its own one, with its control socket in our folder), and qemu-nbd with libiscsi."""

    name = "qemu-nbd, libiscsi, tgt"

    def __init__(self, places: Places, mtu: int, disk: Path) -> None:
        super().__init__(places, mtu)
        try:
            address(self.near, "10.0.0.1")
            address(self.far, _PORTAL)
            control = f"TGT_IPC_SOCKET={places.file('tgt', 'ipc')}"
            target = self.start(
                "tgtd", self.far, places.far("env", control, "tgtd", "-f", "--iscsi", f"portal={_PORTAL}:3260")
            )

            def admin(*words: object) -> None:
                self.far.run("env", control, "tgtadm", "--lld", "iscsi", *words)

            def answers() -> bool:
                with contextlib.suppress(AssertionError):
                    admin("--op", "show", "--mode", "sys")
                    return True
                return False

            target.wait_until(answers, "answer tgtadm")
            admin("--op", "new", "--mode", "target", "--tid", 1, "-T", _NAME)
            admin("--op", "new", "--mode", "logicalunit", "--tid", 1, "--lun", 1, "-b", disk)
            admin("--op", "bind", "--mode", "target", "--tid", 1, "-I", "ALL")
            uri = f"iscsi://{_PORTAL}/{_NAME}/1"
            self._socket = self.serve(
                "qemu-nbd", lambda socket: ["qemu-nbd", "-t", "-e", 16, "-f", "raw", "-k", socket, uri]
            )
        except BaseException:
            self.close()
            raise

    @property
    def uri(self) -> str:
        return f"nbd+unix:///?socket={self._socket}"


class Tcp(Stack):
    """nbdkit's file plugin, over TCP."""

    name = "nbdkit file, TCP"

    def __init__(self, places: Places, mtu: int, disk: Path) -> None:
        super().__init__(places, mtu)
        try:
            address(self.near, "10.0.0.1")
            address(self.far, _PORTAL)
            pidfile = places.file("nbdkit", "pid")
            words = ("nbdkit", "-f", "-i", _PORTAL, "-p", 10809, "-P", pidfile, "file", disk)
            self.start("nbdkit file", self.far, places.far(*words)).wait_until(pidfile.exists, "listen")
        except BaseException:
            self.close()
            raise

    @property
    def uri(self) -> str:
        return f"nbd://{_PORTAL}"


def address(host: Host, ip: str) -> None:
    host.ip("address", "add", f"{ip}/24", "dev", host.interface)
    host.ip("link", "set", "lo", "up")


def sectors_of(mtu: int) -> int:
    """As many as the bridge puts in a frame: a multiple of 8 if 8 fit."""
    most = (mtu - 36) // 512
    return most // 8 * 8 or most


def needs(*programs: str) -> None:
    """Raises Failed if one is not installed."""
    for program in programs:
        if shutil.which(program) is None:
            raise Failed(f"{program} is not installed")
