# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures for tests with real packets. They need root; `sudo scripts/test` runs them, a plain pytest skips them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lab import PLUGIN, PYTHON, ROOT, Bridge, Host, Lan, Process, Sniffer, answer_signals, write_random

IMAGE_SIZE = 1 << 30


def pytest_configure(config: pytest.Config) -> None:
    answer_signals()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        here = Path(__file__).parent
        skip = pytest.mark.skip(reason="real packets need root: sudo scripts/test")
        for item in items:
            if here in item.path.parents:
                item.add_marker(skip)


@pytest.hookimpl(hookwrapper=True)  # type: ignore[untyped-decorator]
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for process in Process.running:
            report.sections.append((f"log of {process.name}", process.output()[-20000:]))


@pytest.fixture(params=[1500, 9000], ids=["mtu1500", "mtu9000"])
def mtu(request: pytest.FixtureRequest) -> int:
    """Both MTUs; a module that needs only one overrides this fixture."""
    return int(request.param)


@pytest.fixture
def lan(mtu: int) -> Iterator[Lan]:
    """Two hosts on one cable: the first is the initiator's, the second the target's."""
    lan = Lan(mtu)
    yield lan
    lan.close()


@pytest.fixture
def initiator(lan: Lan) -> Host:
    return lan.hosts[0]


@pytest.fixture
def storage(lan: Lan) -> Host:
    return lan.hosts[1]


@pytest.fixture
def sniffer(storage: Host) -> Iterator[Sniffer]:
    """What the target is asked."""
    sniffer = Sniffer(storage)
    yield sniffer
    sniffer.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """For big files: gone after the test, where pytest's own tmp_path stays for three runs. In /var/tmp, on a disk."""
    path = Path(tempfile.mkdtemp(prefix="aoe-nbd-test-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def image() -> Iterator[Path]:
    """1 GiB of random bytes, made once; not to be written to."""
    folder = Path(tempfile.mkdtemp(prefix="aoe-nbd-test-", dir="/var/tmp"))
    try:
        write_random(folder / "image", IMAGE_SIZE, seed=1)
        yield folder / "image"
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """start(process) -> process, ended when the test ends. Whatever is started later is ended sooner."""
    with ExitStack() as stack:

        def begin(process: Process) -> Process:
            stack.callback(process.stop)
            return process

        yield begin


@pytest.fixture
def vblade(start: Callable[..., Process], storage: Host, tmp_path: Path) -> Callable[..., Process]:
    """vblade(file, "-b", 64, shelf=1, slot=0): Debian's vblade, serving that file."""

    def begin(file: Path, *options: object, shelf: int = 1, slot: int = 0, host: Host | None = None) -> Process:
        host = host or storage
        command = host.command("vblade", *options, shelf, slot, host.interface, file)
        process = start(Process(f"vblade e{shelf}.{slot}", command, tmp_path / f"vblade-{shelf}.{slot}.log"))
        process.wait_for("sectors O_")  # the line "pid 42: e1.0, 2048 sectors O_RDWR", after which it answers
        return process

    return begin


@pytest.fixture
def our_target(start: Callable[..., Process], storage: Host, tmp_path: Path) -> Callable[..., Process]:
    """our_target(file, "--read-only", shelf=1, slot=0): the target of this project, serving that file."""

    def begin(file: Path, *options: object, shelf: int = 1, slot: int = 0, host: Host | None = None) -> Process:
        host = host or storage
        where = ("--shelf", shelf, "--slot", slot, "--interface", host.interface)
        command = host.command(PYTHON, "-m", "aoe_nbd.target", *where, *options, file)
        env = {"PYTHONPATH": str(ROOT)}
        log = tmp_path / f"target-{shelf}.{slot}.log"
        process = start(Process(f"aoe-nbd target e{shelf}.{slot}", command, log, env))
        process.wait_for(f"serving e{shelf}.{slot}")
        return process

    return begin


@pytest.fixture(params=["vblade", "our_target"])
def target(request: pytest.FixtureRequest) -> Callable[..., Process]:
    """Each of the two targets in turn: target(file, shelf=1, slot=0)."""
    begin: Callable[..., Process] = request.getfixturevalue(request.param)
    return begin


@pytest.fixture
def bridge(start: Callable[..., Process], initiator: Host, tmp_path: Path) -> Callable[..., Bridge]:
    """bridge(shelf=1, slot=0, on_dead="fail"): nbdkit with our plugin, the parameters as keywords, ready to be used."""

    def begin(*options: object, host: Host | None = None, **parameters: object) -> Bridge:
        host = host or initiator
        parameters = {"interface": host.interface, **(parameters or {"shelf": 1, "slot": 0})}
        words = [f"{key.replace('_', '-')}={value}" for key, value in parameters.items()]
        number = len(list(tmp_path.glob("nbdkit-*.log")))
        socket = tmp_path / f"nbd-{number}.sock"
        nbdkit = ("nbdkit", "-f", "-U", socket, *options, "python", PLUGIN, *words)
        process = start(Bridge(host.command(*nbdkit), socket, tmp_path / f"nbdkit-{number}.log"))
        assert isinstance(process, Bridge)
        process.wait_for_socket(socket)
        return process

    return begin
