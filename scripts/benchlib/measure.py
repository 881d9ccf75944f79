# SPDX-License-Identifier: BSD-3-Clause
"""How a figure is made: short runs of the things compared, in alternating order, and the ratio of each to its neighbour.

A machine that has other things to do slows both of two neighbouring runs, so their ratio is steadier than either.
CPU time is what the kernel charged to each process, to the nanosecond. The kernel's packet work (softirq) is in it where
it was done on that process's back, which on a veth pair is most of it: who sends a frame carries it up to the receiver's
socket. What the kernel's own threads (ksoftirqd) did is in no process's time, and is reported beside.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from lab import ROOT

GIB = 1 << 30
_CPU_CLOCK = (
    2  # of CPUCLOCK_PROF, _VIRT and _SCHED the last: see clock_getcpuclockid(3) and the kernel's posix-timers.h
)
_HERE = Path(__file__).resolve().parent

T = TypeVar("T")


class Failed(RuntimeError):
    """A run that gave no figure; the message says what the program said."""


# How a row fails: for want of a figure, or because a program did not start (an assertion of the tests' laboratory).
FAILURES = (Failed, AssertionError, subprocess.TimeoutExpired)


def cpu_time(pid: int) -> float:
    """Seconds of CPU that a process has had, its dead threads' among them."""
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK)


def _ksoftirqd() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().startswith("ksoftirqd/"):
                found.append(int(path.parent.name))
    return found


_KERNEL = _ksoftirqd()
_TICKS = os.sysconf("SC_CLK_TCK")


def _busy() -> float:
    """CPU seconds that this machine has spent on anything at all, or was denied (steal)."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / _TICKS  # but idle and iowait


@dataclass
class Run:
    """What one run gave. CPU seconds are by process; `figures` has what only some runs have (latencies in us, ...)."""

    seconds: float
    bytes: int
    operations: int
    cpu: dict[str, float] = field(default_factory=dict)
    ksoftirqd: float = 0.0
    others: float = 0.0  # share of the machine's CPU time that went to programs that are none of ours
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.bytes / self.seconds / 1e6

    @property
    def operation_rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    def cpu_per_gib(self, *processes: str) -> float:
        """CPU seconds a GiB; of all processes if none is named."""
        return sum(self.cpu[name] for name in processes or self.cpu) / self.bytes * GIB

    def cpu_per_million(self, *processes: str) -> float:
        """CPU seconds a million operations; of all processes if none is named."""
        return sum(self.cpu[name] for name in processes or self.cpu) / self.operations * 1e6


def _children() -> float:
    """CPU seconds of the programs that this one has started and seen end: the clients."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def observe(processes: Mapping[str, int], action: Callable[[], Run]) -> Run:
    """Do it, and add the CPU time that these processes {name: pid} had meanwhile."""
    kernel, busy, clients, start = sum(map(cpu_time, _KERNEL)), _busy(), _children(), time.monotonic()
    before = {name: cpu_time(pid) for name, pid in processes.items()}
    run = action()
    ours = {name: cpu_time(pid) - before[name] for name, pid in processes.items()}
    run.cpu |= ours
    run.ksoftirqd = sum(map(cpu_time, _KERNEL)) - kernel
    others = _busy() - busy - run.ksoftirqd - sum(ours.values()) - (_children() - clients)
    run.others = max(0.0, others / (time.monotonic() - start) / (os.cpu_count() or 1))
    return run


def interleave(
    rounds: int, sides: Mapping[str, Callable[[], Run]], quiet: float = 1.0, most: int = 3
) -> dict[str, list[Run]]:
    """Each of them once a round, the order turned round every time: A B, B A, A B, ...

    A round in which other programs had more than the share `quiet` of the machine is run again, up to `most` times as many
    rounds in all; then those that were disturbed least are kept. What they measured has no say in that.
    """
    found: list[dict[str, Run]] = []

    def disturbed(one: dict[str, Run]) -> float:
        return max(run.others for run in one.values())

    while len(found) < most * rounds and sum(disturbed(one) <= quiet for one in found) < rounds:
        order = list(sides)[:: -1 if len(found) % 2 else 1]
        found.append({name: sides[name]() for name in order})
    kept = sorted(found, key=lambda one: max(quiet, disturbed(one)))[:rounds]
    return {name: [one[name] for one in kept] for name in sides}


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and how far they went."""

    median: float
    least: float
    most: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, digits: int = 2) -> str:
        """`0.93 (0.88 to 0.95)`."""
        return f"{self.median:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


def median(values: Sequence[float], digits: int = 0) -> str:
    """For a table, where the JSON has every run."""
    return f"{statistics.median(values):.{digits}f}"


def ratio(a: Sequence[T], b: Sequence[T], figure: Callable[[T], float]) -> Spread:
    """Of a figure of the runs in `a` to the same of their neighbours in `b`."""
    return Spread.of([figure(x) / figure(y) for x, y in zip(a, b, strict=True)])


def plain(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """For JSON: every run, as it was measured."""
    return {name: [asdict(run) for run in several] for name, several in runs.items()}


# -- programs --------------------------------------------------------------------------------------------------------


def compile_tools(folder: Path) -> None:
    """The C programs beside this file, into `folder`."""
    for source in _HERE.glob("*.c"):
        subprocess.run(["gcc", "-O2", "-Wall", "-o", folder / source.stem, source], check=True)


def tool(command: Sequence[object], name: str, patience: float = 120.0, retries: int = 3) -> Run:
    """Run one of our C programs, which prints a Run as JSON. Status 3 is a frame that was lost: it is run again."""
    words = [str(word) for word in command]
    for _ in range(retries):
        done = subprocess.run(words, capture_output=True, text=True, timeout=patience, check=False)
        if done.returncode != 3:
            break
    if done.returncode:
        raise Failed(f"{name} ended with status {done.returncode}: {done.stderr.strip()}")
    found = json.loads(done.stdout)
    basic = {"seconds", "bytes", "operations", "cpu"}
    figures = {key: value for key, value in found.items() if key not in basic}
    return Run(found["seconds"], found["bytes"], found["operations"], {name: found["cpu"]}, figures=figures)


def fio(prefix: Sequence[str], uri: str, folder: Path, seconds: float, size: int, *job: str) -> Run:
    """fio's NBD client on `uri`; latencies in us: mean, p50, p99, p99.9, max."""
    command = [*prefix, "fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--size={size}", *job]
    command += [f"--runtime={round(1e3 * seconds)}ms", "--time_based", "--norandommap", "--output-format=json"]
    command += ["--percentile_list=50:99:99.9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=seconds + 300, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    job_found = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    found = max((job_found["read"], job_found["write"]), key=lambda way: int(way["total_ios"]))
    took = found["runtime"] / 1e3
    times = {f"p{float(key):g}_us": value / 1e3 for key, value in found["clat_ns"]["percentile"].items()}
    times |= {"mean_us": found["clat_ns"]["mean"] / 1e3, "max_us": found["clat_ns"]["max"] / 1e3}
    own = (job_found["usr_cpu"] + job_found["sys_cpu"]) / 100 * took
    return Run(took, found["io_bytes"], found["total_ios"], {"fio": own}, figures=times)


def timed(command: Sequence[object], size: int, name: str) -> Run:
    """Run a program to its end: the time it took for `size` bytes, its CPU time with its children's."""
    words = [str(word) for word in command]
    before, start = _children(), time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False, cwd=ROOT)
    took = time.monotonic() - start
    if done.returncode:
        raise Failed(f"{' '.join(words)}: {done.stdout}{done.stderr}")
    return Run(took, size, 1, {name: _children() - before})
