# SPDX-License-Identifier: BSD-3-Clause
"""A LAN of this test's own, and the programs on it: network namespaces, targets, bridges, and what went over the wire.

Everything here is named after the process that made it, ends with it, and is taken down by `close()`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from pyroute2 import netns

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "aoe_nbd" / "plugin.py"
PYTHON = "/usr/bin/python3"  # nbdkit embeds this one, whatever python3 is first on PATH
PATIENCE = 30.0  # seconds for what takes milliseconds: only a hang fails by it
MIB = 1 << 20

_serial = itertools.count()


def run(*command: object, timeout: float = 600, **options: object) -> str:
    """Run a command to its end and return what it printed; AssertionError with all it said if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}"
    return str(done.stdout)


def answer_signals() -> None:
    """Have a terminated run take down what it made just as an interrupted one does. Call it before anything is started.

    Whoever starts a run in the background may have it ignore SIGINT; what the run starts, and interrupts, must not.
    """
    if threading.current_thread() is threading.main_thread():  # else a worker's, of which only the run itself is told
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.default_int_handler)


class Host:
    """One machine of the LAN: a network namespace with one Ethernet interface."""

    def __init__(self, namespace: str, interface: str) -> None:
        self.namespace, self.interface = namespace, interface

    def command(self, *words: object) -> list[str]:
        """The command line that runs `words` on this host, and ends it when this process ends."""
        inside = ["ip", "netns", "exec", self.namespace]
        return ["setpriv", "--pdeathsig=KILL", *inside, *map(str, words)]

    def run(self, *words: object, timeout: float = 600) -> str:
        return run(*self.command(*words), timeout=timeout)

    def ip(self, *words: object) -> None:
        run("ip", "-n", self.namespace, *words)

    def up(self) -> None:
        self.ip("link", "set", self.interface, "up")

    def down(self) -> None:
        self.ip("link", "set", self.interface, "down")

    def set_mtu(self, mtu: int) -> None:
        self.ip("link", "set", self.interface, "mtu", mtu)

    @property
    def mac(self) -> str:
        return self.run("cat", f"/sys/class/net/{self.interface}/address").strip()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread in the host's namespace: sockets that are opened meanwhile stay there."""
        netns.pushns(self.namespace)
        try:
            yield
        finally:
            netns.popns()


class Lan:
    """Hosts on one Ethernet: two joined by a cable (a veth pair), more by a switch (a bridge in one more namespace)."""

    def __init__(self, mtu: int = 1500, hosts: int = 2) -> None:
        assert hosts >= 2
        prefix = f"aoe-{os.getpid()}-{next(_serial)}"
        self.mtu = mtu
        self.hosts = [Host(f"{prefix}-{i}", f"eth{i}") for i in range(hosts)]
        self._namespaces: list[str] = []
        try:
            self._build(prefix)
        except BaseException:
            self.close()
            raise

    def _namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._namespaces.append(name)

    def _build(self, prefix: str) -> None:
        for host in self.hosts:
            self._namespace(host.namespace)
        if len(self.hosts) == 2:
            a, b = self.hosts
            self._cable(a, b.namespace, b.interface)
        else:
            switch = f"{prefix}-sw"
            self._namespace(switch)
            run("ip", "-n", switch, "link", "add", "br0", "mtu", self.mtu, "type", "bridge")
            run("ip", "-n", switch, "link", "set", "br0", "up")
            for i, host in enumerate(self.hosts):
                self._cable(host, switch, f"port{i}")
                run("ip", "-n", switch, "link", "set", f"port{i}", "master", "br0", "up")
        for host in self.hosts:
            host.up()

    def _cable(self, host: Host, namespace: str, peer: str) -> None:
        mtu = ("mtu", self.mtu)
        end = ("peer", "name", peer, *mtu, "netns", namespace)
        host.ip("link", "add", host.interface, *mtu, "type", "veth", *end)

    def close(self) -> None:
        for name in reversed(self._namespaces):
            subprocess.run(["ip", "netns", "del", name], check=False)
        self._namespaces.clear()


class Process:
    """A program under test, its output in a log file that a failing test shows."""

    running: list[Process] = []  # whose logs a failing test shows

    def __init__(self, name: str, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name, self.log = name, log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(env or {})}
            )
        Process.running.append(self)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        """Until the program has printed `text`."""
        self.wait_until(lambda: text in self.output(), f"print {text!r}")

    def wait_for_socket(self, path: Path) -> None:
        """Until something listens on that Unix socket."""

        def listening() -> bool:
            with socket.socket(socket.AF_UNIX) as client:
                return client.connect_ex(str(path)) == 0

        self.wait_until(listening, f"listen on {path}")

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Until `ready()`, which is called while this program runs; `what` says what it was to do."""
        deadline = time.monotonic() + PATIENCE
        while not ready():
            status = self.popen.poll()
            assert status is None, f"{self.name} ended with status {status}:\n{self.output()}"
            assert time.monotonic() < deadline, f"{self.name} did not {what} in {PATIENCE:.0f} s:\n{self.output()}"
            time.sleep(0.005)

    def stop(self, sign: int = signal.SIGTERM) -> int:
        """Ask it to end, and return its exit status; one that does not end is killed, and that is a failure."""
        if self in Process.running:
            Process.running.remove(self)
        if self.popen.poll() is None:
            self.popen.send_signal(sign)
            try:
                self.popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
                raise AssertionError(
                    f"{self.name} went on for {PATIENCE:.0f} s after {signal.Signals(sign).name}:\n{self.output()}"
                ) from None
        return self.popen.returncode


class Bridge(Process):
    """nbdkit with our plugin, on a Unix socket."""

    def __init__(self, command: Sequence[str], socket: Path, log: Path, env: dict[str, str] | None = None) -> None:
        self.socket = socket
        super().__init__("nbdkit", command, log, env)

    def uri(self, export: str = "") -> str:
        return f"nbd+unix:///{quote(export)}?socket={self.socket}"


@dataclass(frozen=True)
class Transfer:
    """A request for data: sectors [lba, lba + count)."""

    write: bool
    lba: int
    count: int


class Sniffer:
    """Every AoE frame that comes in at a host's interface, from the sniffer's making on.

    Not what goes out there: our links bypass the queueing discipline, and with it every tap.
    """

    _SO_RCVBUFFORCE, _AOE = 33, 0x88A2

    def __init__(self, host: Host) -> None:
        with host.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, self._SO_RCVBUFFORCE, 64 * MIB)
            self._socket.bind((host.interface, self._AOE))

    def frames(self) -> list[bytes]:
        """Those since the last call, in order: surely all that were sent before one that was answered."""
        found: list[bytes] = []
        while select.select([self._socket], [], [], 0)[0]:
            found.append(self._socket.recv(65536))
        return found

    def transfers(self) -> list[Transfer]:
        """The READ and WRITE requests among them, with repeats, and with the bridge's own probes of the path."""
        found = []
        for f in self.frames():
            if not f[14] & 8 and f[19] == 0 and f[27] in (0x20, 0x24, 0x30, 0x34):
                bits = 48 if f[24] & 0x40 else 28
                lba = int.from_bytes(f[28:34], "little") & (1 << bits) - 1
                found.append(Transfer(f[27] in (0x30, 0x34), lba, f[26]))
        return found

    def close(self) -> None:
        self._socket.close()


def write_random(path: Path, size: int, seed: int) -> None:
    """A file of `size` bytes that are random, and the same for the same seed."""
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        for at in range(0, size, 16 * MIB):
            file.write(random.bytes(min(16 * MIB, size - at)))


def assert_same(a: Path, b: Path, size: int) -> None:
    """The first `size` bytes of two files are equal."""
    run("cmp", "--bytes", size, a, b)
