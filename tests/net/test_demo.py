# SPDX-License-Identifier: BSD-3-Clause
"""scripts/demo: that it shows what it is to show, refuses what it cannot do, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbd
import pytest

from lab import MIB, ROOT, Host, Process, run, write_random

DEMO = ROOT / "scripts" / "demo"
Start = Callable[..., Process]


@pytest.fixture
def mtu() -> int:
    return 9000


class Demo(Process):
    """The demonstration in a process group of its own, as in a terminal; its temporary files are in `folder`."""

    def __init__(self, command: list[str], folder: Path, log: Path) -> None:
        self.folder = folder
        env = {"SIZE_MIB": "64", "TMPDIR": str(folder)}
        super().__init__("demo", ["setsid", *command], log, env)

    def interrupt(self) -> int:
        """Ctrl-C, which a terminal sends to all of the group."""
        os.killpg(self.pid, signal.SIGINT)
        return self.popen.wait(60)

    def left_behind(self) -> list[str]:
        """Files and network namespaces."""
        namespaces = re.findall(r"aoe-demo-\d+-[ab]", self.output())
        there = run("ip", "netns", "list").split()
        return [path.name for path in self.folder.iterdir()] + [name for name in namespaces if name in there]


@pytest.fixture
def demo(tmp_path: Path, start: Start) -> Callable[..., Demo]:
    def begin(*arguments: object, host: Host | None = None) -> Demo:
        folder = tmp_path / "demo"
        folder.mkdir()
        words = [str(DEMO), *map(str, arguments)]
        process = Demo(host.command(*words) if host else words, folder, tmp_path / "demo.log")
        start(process)
        return process

    return begin


def test_sample(demo: Callable[..., Demo]) -> None:
    process = demo()
    assert process.popen.wait(300) == 0
    said = process.output()
    for words in ("export-size: 67108864", "This file was read from AoE storage", "random write", "All of it worked"):
        assert words in said
    assert said.count("Verified:") == 2
    assert process.left_behind() == []


def test_interrupted(demo: Callable[..., Demo]) -> None:
    process = demo()
    process.wait_for("Throughput")
    assert process.left_behind() != []
    assert process.interrupt() == 130
    assert process.left_behind() == []


def test_real_export(demo: Callable[..., Demo], vblade: Start, initiator: Host, tmp_path: Path) -> None:
    """Read-only; and it stays until Ctrl-C."""
    disk = tmp_path / "disk"
    write_random(disk, 64 * MIB, seed=1)
    vblade(disk)
    process = demo(initiator.interface, "e1.0", host=initiator)
    process.wait_for("What the bridge has to say")
    socket = re.search(r"nbd-client -unix (\S+) /dev/nbd0", process.output())
    assert socket
    handle = nbd.NBD()
    handle.connect_unix(socket[1])
    assert handle.is_read_only()
    assert handle.pread(4096, MIB) == disk.read_bytes()[MIB : MIB + 4096]
    handle.shutdown()
    assert process.interrupt() == 130
    assert process.left_behind() == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("eth0", "usage"),
        ("eth0 e1.0 --bogus", "usage"),
        ("absent0 e1.0", "no interface is called absent0"),
        ("lo 1.0", "1.0 is not an AoE address"),
    ],
)
def test_refusals(arguments: str, words: str) -> None:
    done = subprocess.run([DEMO, *arguments.split()], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
