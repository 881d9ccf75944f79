# SPDX-License-Identifier: BSD-3-Clause
"""Xen hosts of the lab, and guests that run on them and move between them, with their root on an AoE disk.

A host is a machine with Xen beneath (see `machine`). A guest's console takes commands, and tells which of the numbered
records that it writes are on stable storage: it is followed here, so that what was told outlives the host that is switched off.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fixtures import inside
from lab import run
from machine import IMAGES, PATIENCE, Machine, Segment

DOMU = Path(__file__).parent / "domu"
GUEST_MEMORY = 96  # MiB; most of the time of a migration goes with it
HOST_NAMES = ("alpha", "beta")

_CONSOLES = "/var/log/xen/console"
_PORT = 8002  # where a host receives guests
# In ssh's place, which costs an emulated processor more. socat's own blocks of 8 KiB halve the speed.
_SOCAT = "socat -b 1048576 -t 2"
_CONFIG = """
name = "{name}"
type = "pv"
memory = {memory}
vcpus = 1
{boot}
disk = [ "{disk}" ]
vif = [ "bridge=guests" ]
on_poweroff = "destroy"
on_crash = "preserve"
"""
KERNEL_OF_HOST = f"""
kernel = "{inside(IMAGES / "vmlinux")}"
ramdisk = "{inside(IMAGES / "domu")}"
extra = "console=hvc0 quiet mitigations=off init_on_alloc=0"
"""
KERNEL_OF_GUEST = 'bootloader = "pygrub"'
_MENU = """
default 0
timeout 0
title the kernel of the lab
root (hd0)
kernel /boot/vmlinuz console=hvc0 quiet mitigations=off init_on_alloc=0 by=pygrub
initrd /boot/initrd
"""


def start_hosts(segment: Segment, package: Path) -> list[Machine]:
    """Two Xen hosts with the package, ready for guests."""
    hosts: list[Machine] = []
    try:
        for port, name in enumerate(HOST_NAMES):
            hosts.append(
                Machine(memory=640, guests=GUEST_MEMORY + 32, segment=segment, port=port, name=name, wait=False)
            )
        for host in hosts:
            host.wait_until_ready()
        for job in [host.start(f"lab-dom0 {inside(package)} eth0") for host in hosts]:
            job.check()
    except BaseException:
        for host in hosts:
            host.close()
        raise
    return hosts


def make_root(disk: Path, mib: int) -> None:
    """A guest's root file system on a new disk of that size in MiB: busybox, what `domu` has, and a kernel for pygrub."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("bin", "sbin", "boot/grub", "dev", "proc", "sys", "run", "tmp"):
            (root / name).mkdir(parents=True)
        shutil.copy(IMAGES / "vmlinuz", root / "boot" / "vmlinuz")
        shutil.copy(IMAGES / "domu", root / "boot" / "initrd")
        (root / "boot" / "grub" / "menu.lst").write_text(_MENU)
        busybox = shutil.copy("/bin/busybox", root / "bin" / "busybox")
        for applet in run(busybox, "--list").split():
            if applet != "busybox":
                (root / "bin" / applet).symlink_to("busybox")
        for script in ("init", "poweroff", "records", "load"):
            shutil.copy(DOMU / script, root / "sbin" / script)
        _copy_program(Path("/sbin/resize2fs"), root)
        run("mke2fs", "-q", "-t", "ext4", "-d", root, disk, f"{mib}M")


def _copy_program(program: Path, root: Path) -> None:
    """With the libraries that it is linked to."""
    for path in [str(program), *re.findall(r"/\S+", run("ldd", program))]:
        copy = root / path.removeprefix("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


@dataclass
class Record:
    """A record that the guest has said to be on stable storage, and when that was heard here (s, monotonic)."""

    number: int
    heard: float


@dataclass
class Move:
    """How an `xl migrate` went."""

    status: int
    output: str
    seconds: float
    began: float  # s since 1970


class Guest:
    """A guest of one of the hosts; `port` is the number of the one where it runs."""

    def __init__(self, hosts: list[Machine], name: str, disk: str, boot: str = KERNEL_OF_HOST) -> None:
        self.hosts, self.name, self.port = hosts, name, 0
        self.config = f"/etc/xen/{name}.cfg"
        self._text = _CONFIG.format(name=name, memory=GUEST_MEMORY, disk=disk, boot=boot)
        self.records: list[Record] = []
        self.errors: list[str] = []
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._commands = 0
        for host in hosts:
            self.follow(host)

    @property
    def host(self) -> Machine:
        return self.hosts[self.port]

    def follow(self, host: Machine) -> None:
        """Read what it says on that host's console log from now on, and give the host its configuration."""
        host.sh(f"cat >{self.config} <<'END'\n{self._text}END")
        # One that is arriving has a log of another name.
        job = host.start(f"exec tail -q -n +1 -F {_CONSOLES}/guest-{self.name}{{,--incoming}}.log 2>/dev/null", 86400)
        threading.Thread(target=self._read, args=(job.output(),), daemon=True).start()

    def _read(self, parts: Iterator[str | int]) -> None:
        rest = ""
        try:
            for part in parts:
                *lines, rest = (rest + str(part)).split("\n")
                with self._news:
                    for line in lines:
                        self._hear(line.strip())
                    self._news.notify_all()
        except AssertionError:  # the host has been switched off
            return

    def _hear(self, line: str) -> None:
        if line.startswith("@record "):
            self.records.append(Record(int(line.split()[1]), time.monotonic()))
            return
        if line.startswith("@error") or "I/O error" in line or "EXT4-fs error" in line:
            self.errors.append(line)
        self._lines.append(line)

    def _wait(self, pattern: str, begin: int) -> int:
        """The number of the first line from `begin` on that matches."""
        deadline = time.monotonic() + PATIENCE
        with self._news:
            while True:
                for number in range(begin, len(self._lines)):
                    if re.match(pattern, self._lines[number]):
                        return number
                assert self._news.wait(deadline - time.monotonic()), self.story()

    def story(self) -> str:
        return f"the guest {self.name} has said:\n" + "\n".join(self._lines[-100:])

    def create(self, port: int) -> float:
        """Start it on that host; returns how long it takes until it is up, in seconds."""
        self.port, begin, began = port, len(self._lines), time.monotonic()
        self.host.sh(f"xl create {self.config} >/tmp/xl 2>&1 || {{ cat /tmp/xl /var/log/xen/xen-hotplug.log; exit 1; }}")
        self._wait("@domU up", begin)
        return time.monotonic() - began

    def sh(self, command: str) -> str:
        """Run a command in it, which must succeed, and return what it printed."""
        with self._news:
            self._commands += 1
            number, begin = self._commands, len(self._lines)
        line = shlex.quote(f"{number} {command}")
        self.host.sh(f"echo {line} >$(xenstore-read /local/domain/$(xl domid {self.name})/console/tty)")
        end = self._wait(f"@done {number} ", begin)
        output = "\n".join(self._lines[begin:end])
        assert self._lines[end].endswith(" 0"), f"{self._lines[end]} of {command}:\n{output}"
        return output

    def write(self) -> None:
        """Have it write records, and a load beside them, from now on."""
        self.sh("records & load &")
        self.goes_on()

    def goes_on(self, records: int = 5) -> None:
        """Wait until it has written so many more records: without an error."""
        deadline = time.monotonic() + PATIENCE
        with self._news:
            enough = len(self.records) + records
            while len(self.records) < enough:
                assert self._news.wait(deadline - time.monotonic()), self.story()
        assert not self.errors, self.errors

    def pause(self, begin: float = 0.0) -> float:
        """The longest time without a record since then, in seconds."""
        heard = [record.heard for record in self.records if record.heard >= begin]
        return max((b - a for a, b in itertools.pairwise(heard)), default=0.0)

    def migrate(self) -> Move:
        """Move it to the other host; if that goes well, it runs there."""
        to = 1 - self.port
        there = self.hosts[to]
        receive = f"TCP-LISTEN:{_PORT},reuseaddr EXEC:'xl migrate-receive'"
        receiver = there.start(f"exec {_SOCAT} {receive} >/var/log/xen/receive.log 2>&1")
        there.sh(f"until ss -Hltn | grep -q :{_PORT}; do sleep 0.1; done")
        assert there.port is not None
        began, since = time.monotonic(), time.time()
        done = self.host.run(f"xl migrate -s '' {self.name} '{_SOCAT} - TCP:{there.port.address}:{_PORT}' 2>&1")
        took = time.monotonic() - began
        receiver.wait()
        if done.status == 0:
            self.port = to
        output = done.output + there.run("cat /var/log/xen/receive.log").output
        return Move(done.status, output, took, since)

    def shut_down(self) -> None:
        """End it in order, without an error."""
        begin = len(self._lines)
        self.host.sh(f"xl shutdown -w {self.name}")
        self._wait("@domU ends", begin)
        assert not self.errors, self.errors

    def gone(self, port: int) -> None:
        """That host has nothing of it any more: no domain, and no device."""
        host = self.hosts[port]
        host.sh(f"until ! xl domid {self.name} 2>/dev/null; do sleep 0.2; done")
        host.sh('until [ "$(aoe-nbd list --json)" = "[]" ]; do sleep 0.5; done; ! ls /sys/block/nbd*/pid 2>/dev/null')


def check_root(disk: Path, guest: Guest) -> int:
    """The file system is in order, and has every record that was acknowledged, in order; returns how many it has."""
    run("e2fsck", "-f", "-n", disk)
    lines = run("debugfs", "-R", "cat /log", disk).splitlines()
    numbers = [int(line.split()[0]) for line in lines if re.match(r"\d+ [\d.]+$", line)]
    assert numbers == list(range(1, len(numbers) + 1)), f"the records on the disk are out of order: {numbers}"
    # The guest goes on with the number after the last that it finds: one that comes again had been lost.
    acknowledged = [record.number for record in guest.records]
    assert all(a < b for a, b in itertools.pairwise(acknowledged)), f"acknowledged twice: {acknowledged}"
    last = max(acknowledged, default=0)
    assert len(numbers) >= last, f"{len(numbers)} records on the disk, {last} acknowledged"
    return len(numbers)
