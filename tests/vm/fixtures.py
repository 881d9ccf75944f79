# SPDX-License-Identifier: BSD-3-Clause
"""The fixtures of these tests, and how a run is shown. (conftest.py has them from here: mypy takes one file of that name.)"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest

from lab import PYTHON, Process, answer_signals
from machine import ROOT, Machine, Segment, build_images

HERE = Path(__file__).parent
# Where the machines see them too, in their checkout; of several workers, each has its own.
PACKAGES = ROOT / "build" / "packages" / os.environ.get("PYTEST_XDIST_WORKER", "")
IN_MACHINE = Path("/root/checkout")
LIMIT = 1800  # s a test: only one that hangs takes so long

_reports: list[pytest.TestReport] = []


def pytest_configure(config: pytest.Config) -> None:
    answer_signals()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT))
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="the network of a machine needs root: sudo scripts/lab"))


@pytest.hookimpl(hookwrapper=True)  # type: ignore[untyped-decorator]
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed and HERE in item.path.parents:
        item.stash[FAILED] = True
        for process in Process.running:
            report.sections.append((f"log of {process.name}", process.output()[-20000:]))
        for machine in Machine.running:
            report.sections.append((f"console of the machine {machine.name}", machine.log()[-20000:]))
            if journal := machine.journal():
                report.sections.append((f"journal of the machine {machine.name}", journal[-20000:]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # By this hook, since with several workers it is called where the summary is made, too.
    if "tests/vm/" in report.nodeid and (report.when == "call" or not report.passed):
        _reports.append(report)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _reports:
        terminalreporter.section("the VM lab")
        for report in _reports:
            name = report.nodeid.rpartition("/")[2]
            terminalreporter.write_line(f"{report.outcome:8} {report.duration:6.1f} s  {name}")
        for report in _reports:
            for name, text in report.user_properties:
                if name == _SHOWN:
                    terminalreporter.write_line(text)


FAILED = pytest.StashKey[bool]()
_SHOWN = "shown"


class Rack:
    """The machine that is on: one at a time, since two would share the memory and the processors of a small host."""

    def __init__(self, config: pytest.Config) -> None:
        self.machine: Machine | None = None
        self._capture: Any = config.pluginmanager.get_plugin("capturemanager")
        self._kind: tuple[object, ...] = ()
        self.segment: Segment | None = None

    def say(self, text: str) -> None:
        """A line about the progress of a run that takes minutes."""
        with self._capture.global_and_fixture_disabled():
            print(f"\n[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def get(self, image: str, *, memory: int = 768, systemd: bool = False, package: Path | None = None) -> Machine:
        """The machine of that kind: the one that is on, or another."""
        kind = (image, memory, systemd, package)
        if self._kind == kind and self.machine is not None:
            return self.machine
        self.clear()
        began = time.monotonic()
        self.segment = Segment()
        machine = self.machine = Machine(image=image, memory=memory, systemd=systemd, segment=self.segment)
        self.say(f"a machine ({image}, {memory} MiB{', systemd' if systemd else ''}) is up after {seconds(began)}")
        if package is not None:
            began = time.monotonic()
            machine.sh(f"dpkg -i {inside(package)}")
            self.say(f"installed {package.name} in {seconds(began)}")
        self._kind = kind
        return machine

    def clear(self) -> None:
        """Switch it off."""
        self._kind = ()
        if self.machine is not None:
            self.machine.close()
            self.machine = None
        if self.segment is not None:
            self.segment.close()
            self.segment = None


def seconds(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def inside(path: Path) -> Path:
    """Where a machine sees a file of the checkout."""
    return IN_MACHINE / path.relative_to(ROOT)


@pytest.fixture(scope="session")
def rack(request: pytest.FixtureRequest) -> Iterator[Rack]:
    rack = Rack(request.config)
    with rack._capture.global_and_fixture_disabled():  # how far it is
        build_images()
    yield rack
    rack.clear()


@pytest.fixture(scope="session")
def package(rack: Rack) -> Path:
    """The project's Debian package, of the checkout as it is."""
    return build_package()


def build_package(*options: str) -> Path:
    built = subprocess.run(
        [PYTHON, ROOT / "scripts" / "build-deb", "--output", PACKAGES, *options], stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(built.stdout.strip())


def _discard_after_failure(request: pytest.FixtureRequest, rack: Rack) -> None:
    """What a failed test has left in the machine is not the next one's trouble."""
    if request.node.stash.get(FAILED, False):
        rack.clear()


@pytest.fixture
def vm(request: pytest.FixtureRequest, rack: Rack, package: Path) -> Iterator[Machine]:
    """A machine with all programs, and the package, but no systemd running. What its kernel says is this test's."""
    machine = rack.get("full", package=package)
    machine.sh("dmesg --clear")
    yield machine
    _discard_after_failure(request, rack)


@pytest.fixture
def small_vm(request: pytest.FixtureRequest, rack: Rack, package: Path) -> Iterator[Machine]:
    """The same with little memory."""
    yield rack.get("full", memory=320, package=package)
    _discard_after_failure(request, rack)


class Target(Process):
    """A target on the host's side that can be killed, and started again as it was."""

    def __init__(self, name: str, command: list[str], log: Path, ready: str) -> None:
        self._start = (name, command, log, {"PYTHONPATH": str(ROOT)})
        self._ready = ready
        super().__init__(*self._start)
        self.wait_for(ready)

    def kill(self) -> None:
        """As a power failure does: without a word."""
        self.popen.kill()
        self.popen.wait()
        Process.running.remove(self)

    def start_again(self) -> None:
        Process.__init__(self, *self._start)
        self.wait_for(self._ready)

    def end(self) -> None:
        if self in Process.running:
            self.kill()


class Place(Protocol):
    """Whoever has machines on, and their segment."""

    @property
    def segment(self) -> Segment | None: ...


class Storage:
    """The host's side: disks, and targets that export them to the machines."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.folder = Path(tempfile.mkdtemp(prefix="aoe-vm-disks-", dir="/var/tmp"))
        self._targets: list[Target] = []

    @property
    def segment(self) -> Segment:
        assert self._place.segment is not None, "ask for a machine first"
        return self._place.segment

    def disk(self, name: str = "disk", mib: int = 64) -> Path:
        """A new empty disk."""
        path = self.folder / name
        with path.open("wb") as file:
            file.truncate(mib << 20)
        return path

    def vblade(self, file: Path, *options: object, slot: int = 0) -> Target:
        """Debian's vblade, exporting it as e1.<slot>."""
        return self._start("vblade", "sectors O_", slot, "vblade", "-b", 64, *options, 1, slot, self.segment.interface, file)

    def target(self, file: Path, *options: object, slot: int = 0) -> Target:
        """Our target, exporting it as e1.<slot>."""
        where = ("--shelf", 1, "--slot", slot, "--interface", self.segment.interface)
        return self._start("target", f"serving e1.{slot}", slot, PYTHON, "-m", "aoe_nbd.target", *where, *options, file)

    def _start(self, kind: str, ready: str, slot: int, *words: object) -> Target:
        log = self.folder / f"{kind}-{slot}.log"
        target = Target(f"{kind} e1.{slot}", self.segment.command(*words), log, ready)
        self._targets.append(target)
        return target

    def close(self) -> None:
        for target in self._targets:
            target.end()
        shutil.rmtree(self.folder)


@pytest.fixture
def storage(rack: Rack) -> Iterator[Storage]:
    storage = Storage(rack)
    yield storage
    storage.close()


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """show(text): at the end of the run, whatever the outcome."""
    return partial(record_property, _SHOWN)
