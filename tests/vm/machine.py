# SPDX-License-Identifier: BSD-3-Clause
"""A machine of the lab: Debian's kernel on an emulated PC, and a channel on which it runs what a test asks for.

It needs neither KVM nor a network, and leaves nothing behind: what it writes to its disk goes when it ends. If it is on
a `Segment`, its eth0 is joined to a network namespace of this host, where targets can run, and other machines are.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import Host, Process, run

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "build" / "lab"
XEN = ROOT / "build" / "hypervisor" / "xen"
GUEST = Path(__file__).parent / "guest"
PATIENCE = 300.0  # s for what takes seconds on an idle machine: only a hang fails by it
CHECKOUT = "export PATH=/root/checkout/tests/vm/guest/bin:$PATH PYTHONPATH=/root/checkout\n"
STRICT = "set -e -o pipefail\n"

_serial = itertools.count()


def build_images() -> None:
    """What machines start from, where it is not there yet."""
    subprocess.run([Path(__file__).parent / "images"], check=True)


@dataclass(frozen=True)
class Port:
    """Where one machine is plugged in: the other end of its eth0, and what that is to be."""

    interface: str
    mac: str
    address: str


class Segment(Host):
    """The host's side of the network of one machine, or of several: a namespace, and in it the other ends of their eth0."""

    def __init__(self, machines: int = 1, mtu: int = 9000) -> None:
        super().__init__(f"aoe-vm-{os.getpid()}-{next(_serial)}", "tap0" if machines == 1 else "br0")
        self.ports = [Port(f"tap{i}", f"52:54:00:00:00:{i + 1:02x}", f"10.99.0.{i + 2}") for i in range(machines)]
        run("ip", "netns", "add", self.namespace)
        try:
            self.ip("link", "set", "lo", "up")
            if machines > 1:
                self.ip("link", "add", self.interface, "mtu", mtu, "type", "bridge")
            for port in self.ports:
                self.ip("tuntap", "add", port.interface, "mode", "tap")
                self.ip("link", "set", port.interface, "mtu", mtu, "up")
                if machines > 1:
                    self.ip("link", "set", port.interface, "master", self.interface)
            self.up()
            self.ip("address", "add", "10.99.0.1/24", "dev", self.interface)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        subprocess.run(["ip", "netns", "del", self.namespace], check=False)


@dataclass(frozen=True)
class Done:
    """What a script in the machine printed, and its exit status."""

    status: int
    output: str


class Job:
    """A script that runs in the machine."""

    def __init__(self, machine: Machine, script: str) -> None:
        self._machine, self.script = machine, script
        self._began, self._cpu = time.monotonic(), machine.cpu_time()
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def output(self) -> Iterator[str | int]:
        """What it prints, as it comes, and at last its exit status."""
        while True:
            try:
                message = self.messages.get(timeout=1)
            except queue.Empty:
                self._machine.assert_running()
                continue
            if "output" in message:
                yield str(message["output"])
            if "status" in message:
                took, cpu = time.monotonic() - self._began, self._machine.cpu_time() - self._cpu
                last = self.script.strip().splitlines()[-1]
                self._machine.note(f"-> {message['status']} after {took:.1f} s, {cpu:.1f} s of CPU: {last}")
                yield int(message["status"])
                return

    def wait(self) -> Done:
        """Wait for its end."""
        *printed, status = self.output()
        assert isinstance(status, int)
        return Done(status, "".join(map(str, printed)))

    def check(self) -> str:
        """Wait for its end, and return what it printed; AssertionError if it failed."""
        done = self.wait()
        assert done.status == 0, f"exit status {done.status} of\n{self.script}\nwhich printed\n{done.output}"
        return done.output


class Machine:
    """One virtual machine, started, and ready when the constructor returns: or later, if it is not to `wait`.

    `image` is full or plain (see the script `images`); `memory` is in MiB. With `systemd`, that is its init, and the machine
    may be rebooted; else an init of the lab's own, and a machine that reboots ends. With `guests`, its first program
    is Xen, and what this class knows of it is dom0, which has `memory`; `guests` MiB are left for guests. With
    `console`, the serial port is this terminal, else it goes to the file `console` in `folder`.
    """

    running: list[Machine] = []  # for the report of a failure

    def __init__(
        self,
        *,
        image: str = "full",
        memory: int = 768,
        systemd: bool = False,
        segment: Segment | None = None,
        port: int = 0,
        name: str = "lab",
        guests: int | None = None,
        console: bool = False,
        wait: bool = True,
    ) -> None:
        self.name, self.port = name, segment.ports[port] if segment else None
        self._systemd = systemd
        self.folder = Path(tempfile.mkdtemp(prefix="aoe-vm-", dir="/var/tmp"))
        self._jobs: dict[int, Job] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._ready = threading.Semaphore(0)
        self._socket = socket.socket(socket.AF_UNIX)
        self._qemu: subprocess.Popen[bytes] | None = None
        Machine.running.append(self)
        try:
            self._start(image, memory, systemd, segment, guests, console)
            self._connect()
            if wait:
                self.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _start(
        self, image: str, memory: int, systemd: bool, segment: Segment | None, guests: int | None, console: bool
    ) -> None:
        initrd = self.folder / "initrd"
        files = subprocess.run(["find", "lab"], cwd=self._guest_files(), stdout=subprocess.PIPE, check=True).stdout
        pack = ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"]
        own = subprocess.run(pack, cwd=self.folder, input=files + b"init\n", stdout=subprocess.PIPE, check=True).stdout
        initrd.write_bytes((IMAGES / "initrd").read_bytes() + own)  # the kernel unpacks one archive after the other
        # On a starved host the emulated timer may miss its test at boot, which is a panic: no_timer_check
        options = f"quiet tsc=reliable no_timer_check random.trust_cpu=on net.ifnames=0 lab.name={self.name}"
        options += " mitigations=off init_on_alloc=0 apparmor=0 audit=0 nokaslr"  # all of it costs time when emulated
        options += " lab.systemd" if systemd else " panic=-1"
        if self.port:
            options += f" lab.address={self.port.address}"
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Nehalem", "-nodefaults", "-display", "none"]
        if guests is None:
            command += ["-M", "q35", "-smp", "2", "-m", str(memory)]
            command += ["-kernel", str(IMAGES / "vmlinux"), "-initrd", str(initrd), "-append", f"console=ttyS0 {options}"]
        else:
            command += ["-M", "pc", "-smp", "1", "-m", str(memory + guests + 96)]  # MiB for Xen itself
            xen = f"console=com1 com1=115200,8n1 dom0_mem={memory}M,max:{memory}M dom0_max_vcpus=1 noreboot"
            xen += " spec-ctrl=no xpti=no pv-l1tf=no smt=1"
            command += ["-kernel", str(XEN), "-append", xen]
            command += ["-initrd", f"{IMAGES}/vmlinux console=hvc0 {options},{initrd}"]
        command += ["-drive", f"file={IMAGES / image}.ext4,format=raw,if=virtio,snapshot=on,cache=unsafe"]
        command += ["-fsdev", f"local,id=checkout,path={ROOT},security_model=none,readonly=on,multidevs=remap"]
        command += ["-device", "virtio-9p-pci,fsdev=checkout,mount_tag=checkout"]
        command += ["-device", "virtio-serial", "-device", "virtserialport,chardev=agent,name=lab"]
        command += ["-chardev", f"socket,id=agent,path={self.folder}/agent,server=on,wait=off"]
        serial = "stdio,id=console,signal=off" if console else f"file,id=console,path={self.folder}/console"
        command += ["-chardev", serial, "-serial", "chardev:console"]
        if not systemd:
            command += ["-no-reboot"]
        if segment and self.port:
            command += ["-netdev", f"tap,id=net,ifname={self.port.interface},script=no,downscript=no"]
            command += ["-device", f"virtio-net-pci,netdev=net,mac={self.port.mac},host_mtu=9000"]
            command = segment.command(*command)
        else:
            command = ["setpriv", "--pdeathsig=KILL", *command]
        with (self.folder / "qemu").open("wb") as log:
            self._qemu = subprocess.Popen(
                command, stdin=None if console else subprocess.DEVNULL, stdout=None if console else log, stderr=log
            )

    def _guest_files(self) -> Path:
        """A folder with the lab's own files as the initrd wants them: init, and lab/ with everything."""
        shutil.copytree(GUEST, self.folder / "lab")
        shutil.copy(GUEST / "start", self.folder / "init")
        return self.folder

    def _connect(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while self._socket.connect_ex(str(self.folder / "agent")) != 0:
            self.assert_running()
            assert time.monotonic() < deadline, f"QEMU does not listen: {self.log()}"
            time.sleep(0.05)
        threading.Thread(target=self._receive, daemon=True).start()

    def wait_until_ready(self) -> None:
        """Until the machine has started, or started again."""
        deadline = time.monotonic() + PATIENCE
        while not self._ready.acquire(timeout=1):
            self.assert_running()
            assert time.monotonic() < deadline, f"the machine did not start in {PATIENCE:.0f} s:\n{self.log()}"

    def reboot(self) -> None:
        """Have systemd end everything in order and start again."""
        self.run("systemctl --no-block reboot")
        self.wait_until_ready()

    def _receive(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                message = json.loads(line)
                if message["id"] == 0:
                    self._ready.release()
                elif job := self._jobs.get(message["id"]):
                    job.messages.put(message)

    def start(self, script: str, timeout: float = PATIENCE) -> Job:
        """Begin a shell script in the machine; it is killed after `timeout` seconds."""
        self.note(script.strip().removeprefix(STRICT))
        job = Job(self, script)
        number = next(self._ids)
        self._jobs[number] = job
        with self._lock:
            self._socket.sendall(json.dumps({"id": number, "script": script, "timeout": timeout}).encode() + b"\n")
        return job

    def run(self, script: str, timeout: float = PATIENCE) -> Done:
        """Run a shell script in the machine to its end."""
        return self.start(script, timeout).wait()

    def sh(self, script: str, timeout: float = PATIENCE) -> str:
        """Run a shell script in the machine, which must succeed (each command of it), and return what it printed."""
        return self.start(STRICT + script, timeout).check()

    def note(self, text: str) -> None:
        """A line in the transcript of what was done in the machine."""
        with (self.folder / "transcript").open("a") as file:
            file.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")

    def cpu_time(self) -> float:
        """Seconds of this host's processors that the machine has had: on a busy host a better measure than the clock."""
        assert self._qemu is not None
        fields = Path(f"/proc/{self._qemu.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log(self) -> str:
        """What was done in the machine, and what its serial port and QEMU have said."""
        files = (self.folder / name for name in ("transcript", "console", "qemu"))
        return "".join(file.read_text(errors="replace") for file in files if file.exists())

    def journal(self) -> str:
        """The end of systemd's journal, for the report of a failure: why a service failed is said nowhere else.

        "" without systemd; and what there is by then of a machine that does not answer for a minute, or has ended.
        """
        parts: list[str] = []
        with contextlib.suppress(queue.Empty, OSError):
            if self._systemd:
                job = self.start("journalctl -b -n 200 --no-pager -o short-precise", 30)
                while "status" not in (message := job.messages.get(timeout=60)):
                    parts.append(str(message["output"]))
        return "".join(parts)

    def assert_running(self) -> None:
        assert self._qemu is not None
        status = self._qemu.poll()
        assert status is None, f"the machine has ended, QEMU's status is {status}:\n{self.log()}"

    def close(self) -> None:
        """Switch it off, as a power cut does."""
        if self in Machine.running:
            Machine.running.remove(self)
        if self._qemu is not None and self._qemu.poll() is None:
            self._qemu.kill()
            self._qemu.wait()
        self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def stamped(parts: Iterator[str | int]) -> int:
    """Print what a job prints, each line with the seconds since the first call, and return its status."""
    begin, line_begins, status = time.monotonic(), True, 1
    for part in parts:
        if isinstance(part, int):
            status = part
            break
        for line in part.splitlines(keepends=True):
            stamp = f"[{time.monotonic() - begin:7.2f}] " if line_begins else ""
            print(stamp + line, end="", flush=True)
            line_begins = line.endswith("\n")
    return status


def main(words: Sequence[str]) -> int:
    """`scripts/lab run` and `scripts/lab shell`."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--memory", type=int, default=768, metavar="MIB", help="the machine's memory (768)")
    common.add_argument("--systemd", action="store_true", help="with systemd as init")
    common.add_argument("--plain", action="store_true", help="a system that has none of what aoe-nbd needs")
    common.add_argument("--net", action="store_true", help="eth0, joined to a network namespace of this host")
    common.add_argument("--vblade", type=Path, action="append", default=[], metavar="FILE", help="export it there: e1.0, e1.1")
    common.add_argument("--timeout", type=float, default=86400, metavar="SECONDS", help="of the commands (a day)")
    parser = argparse.ArgumentParser(prog="scripts/lab", description="A virtual machine with this checkout.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("shell", parents=[common], help="its console on this terminal; leave with Ctrl-D")
    commands = verbs.add_parser("run", parents=[common], help="run shell commands in it, and return their exit status")
    commands.add_argument("script", nargs="+", metavar="COMMAND", help="shell commands; several are lines of one script")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was made is taken down then, too
    build_images()
    with contextlib.ExitStack() as stack:
        segment = None
        if options.net or options.vblade:
            segment = Segment()
            stack.callback(segment.close)
            print(f"this host's side: network namespace {segment.namespace}, tap0", flush=True)
            for slot, file in enumerate(options.vblade):
                command = segment.command("vblade", "-b", 64, 1, slot, segment.interface, file.resolve())
                vblade = Process(f"vblade e1.{slot}", command, Path(tempfile.mkstemp(prefix="aoe-vm-vblade-")[1]))
                stack.callback(vblade.log.unlink)
                stack.callback(vblade.stop)
        began = time.monotonic()
        machine = Machine(
            image="plain" if options.plain else "full",
            memory=options.memory,
            systemd=options.systemd,
            segment=segment,
            console=options.verb == "shell",
        )
        stack.callback(machine.close)
        if options.verb == "shell":
            console = "exec setsid --ctty --wait bash --login </dev/ttyS0 >/dev/ttyS0 2>&1"
            return machine.run(CHECKOUT + console, options.timeout).status
        print(f"the machine is up after {time.monotonic() - began:.1f} s", flush=True)
        return stamped(machine.start(CHECKOUT + "\n".join(options.script), options.timeout).output())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
