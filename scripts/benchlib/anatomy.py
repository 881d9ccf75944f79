# SPDX-License-Identifier: BSD-3-Clause
"""Where each microsecond of a 4k read goes: one read at a time, cut into stages by the system calls of all three programs.

perf records when client, bridge and target enter and leave each system call, on one clock; nothing in them is changed. The
calls on a packet socket, an NBD socket, an eventfd or an epoll set are the ends of the stages. Beside that: the same read
without tracing, through less (nbdkit alone, nbdkit with an idle Python plugin, AoE alone), and a profile of the busy bridge.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from lab import MIB, ROOT, write_random

from . import common, report
from .measure import Failed, Run, compile_tools, interleave, median, observe, plain, tool
from .rows import floor, others
from .stacks import Aoe, Places, sectors_of

HELP = "where each microsecond of a 4k read goes, and a profile of the busy bridge"
MTU = 9000
_FLOOR = "AoE alone, the C floor"
SIZE, BLOCK = 64 * MIB, 4096
_WARM, _TRACED, _PROFILED, _LONG = 0.5, 0.5, 1.5, 120.0  # s: before a trace, of it, of a profile; more than any of them
_CALLS = {  # numbers of the system calls that matter, which perf tells by number
    "x86_64": {
        0: "read", 1: "write", 7: "poll", 20: "writev", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 202: "futex",
        232: "epoll_wait", 271: "ppoll", 281: "epoll_pwait", 299: "recvmmsg", 307: "sendmmsg",
    },
    "aarch64": {
        22: "epoll_pwait", 63: "read", 64: "write", 66: "writev", 73: "ppoll", 98: "futex", 206: "sendto", 207: "recvfrom",
        211: "sendmsg", 212: "recvmsg", 243: "recvmmsg", 269: "sendmmsg",
    },
}  # fmt: skip
_SENDS = {"write", "writev", "sendto", "sendmsg", "sendmmsg"}
_RECEIVES = {"read", "recvfrom", "recvmsg", "recvmmsg"}
_WAITS = {"poll", "ppoll", "epoll_wait", "epoll_pwait"}
_EVENT = re.compile(r"\s*(\d+)\s+(\d+)\.(\d+):\s+raw_syscalls:sys_(enter|exit): NR (\d+) (?:\(([0-9a-f]+)|= (-?\d+))")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", choices=("ours", "vblade"), default="ours", help="who answers (default: our target)")
    add("--write", action="store_true", help="4k writes in place of reads")
    add("--rounds", type=int, default=3, help="runs of each kind (default 3)")
    add("--document", action="store_true", help="put the tables into docs/performance.md as well")
    add("--out", type=Path, default=common.OUT, help="where the results go (default build/bench)")


@dataclass(frozen=True)
class Call:
    """One system call: who, on what kind of file, which, from when to when (s), and what it returned."""

    who: str
    file: str  # packet, stream, eventfd, ... or "" if it has none
    name: str
    enter: float
    exit: float
    result: int


@dataclass(frozen=True)
class Mark:
    """The end of a stage: the first such call since the mark before, as it is entered or left."""

    stage: str  # what happens until then
    who: str
    files: frozenset[str]
    names: frozenset[str]
    enter: bool
    needed: bool = True
    merged: str = ""  # what happens until then where the marks before it are missing

    def when(self, call: Call, after: float) -> float | None:
        """The mark's time if `call` is it."""
        if call.who != self.who or call.file not in self.files or call.name not in self.names or call.result <= 0:
            return None
        at = call.enter if self.enter else call.exit
        return at if at >= after else None


def _mark(
    stage: str, who: str, files: str, names: Iterable[str], edge: str, needed: bool = True, merged: str = ""
) -> Mark:
    return Mark(stage, who, frozenset(files.split()), frozenset(names), edge == "enter", needed, merged)


_ALONE = "receive: ring, core: reply to request; no hand-over; back through Python into nbdkit"
MARKS = (
    _mark("", "client", "stream", _SENDS, "enter"),
    _mark("NBD socket: the client sends, a thread of nbdkit wakes", "bridge", "stream", _RECEIVES, "exit"),
    _mark("nbdkit, entry into Python, core: request to frame", "bridge", "packet", _SENDS, "enter"),
    _mark("send: system call, veth, the target wakes", "target", "epoll packet", {*_WAITS, *_RECEIVES}, "exit"),
    _mark("target: parse, read the file, make the reply", "target", "packet", _SENDS, "enter"),
    _mark("reply: system call, veth, the bridge wakes", "bridge", "epoll packet", {*_WAITS, *_RECEIVES}, "exit"),
    _mark("receive: ring, core: reply to request", "bridge", "eventfd", {"write"}, "enter", False),
    _mark(
        "hand-over: eventfd, the request's thread wakes, Python's lock", "bridge", "eventfd", {"read"}, "exit", False
    ),
    _mark("back through Python into nbdkit", "bridge", "stream", _SENDS, "enter", merged=_ALONE),
    _mark("NBD socket: nbdkit sends, the client wakes", "client", "stream", _RECEIVES, "exit"),
)


def run(args: argparse.Namespace) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    way = "write" if args.write else "read"
    command = common.command(sys.argv[1:])
    results: dict[str, Any] = {"benchmark": "anatomy", "command": command, **common.circumstances()}
    with common.workspace() as folder:
        compile_tools(folder)
        disk = folder / "disk"
        write_random(disk, SIZE, seed=1)
        places = Places(folder, pin=False)
        with (
            Aoe(places, MTU, args.target, disk) as stack,
            Aoe(places, MTU, args.target, disk, bridges=0) as alone,  # on the floor's LAN a bridge would see its frames
        ):
            load = partial(stack.load, way, order="random", size=SIZE)
            load(seconds=_WARM, request=BLOCK, depth=1)
            sections = [
                _stages(stack, folder, way, args.rounds),
                *_less(stack, alone, places, way, args.rounds),
                _profile(stack, way, "random", BLOCK, 32),
                _profile(stack, way, "sequential", floor.REQUEST, floor.DEPTH),
            ]
    for section in sections:
        results[section.name] = section.runs
        report.show(console, section)
    print(common.save("anatomy", args.out, results))
    text = args.out / "anatomy.md"
    text.write_text(report.markdown(common.head(results), [], sections))
    if args.document:
        report.put(common.DOCUMENT, "anatomy", text.read_text())
    print(text)


# -- stages ----------------------------------------------------------------------------------------------------------


def _stages(stack: Aoe, folder: Path, way: str, rounds: int) -> report.Section:
    """Trace some reads, and average each stage over the middle half of the round trips."""
    trips: list[list[tuple[str, float]]] = []
    for _ in range(rounds):
        calls = _trace(stack, folder, way)
        trips += [trip for trip in map(_cut, _split(calls)) if trip]
    if not trips:
        raise Failed("not one round trip could be followed: does perf record raw_syscalls:sys_enter here?")
    (shape, _), *_ = Counter(tuple(stage for stage, _ in trip) for trip in trips).most_common(1)
    alike = [trip for trip in trips if tuple(stage for stage, _ in trip) == shape]
    alike.sort(key=lambda trip: sum(time for _, time in trip))
    middle = alike[len(alike) // 4 : len(alike) - len(alike) // 4]
    found = {stage: [1e6 * dict(trip)[stage] for trip in middle] for stage in shape}
    total = sum(statistics.mean(times) for times in found.values())
    section = report.Section("stages", f"A 4k {way}, one at a time, stage by stage", ("stage", "us", "share"))
    for stage, times in found.items():
        section.lines.append([stage, f"{statistics.mean(times):.1f}", f"{statistics.mean(times) / total:.0%}"])
    section.lines.append(["all", f"{total:.1f}", "100%"])
    section.runs = {"us": {stage: statistics.mean(times) for stage, times in found.items()}, "trips": len(middle)}
    section.notes = [
        f"means over the middle half of {len(alike)} round trips, with {stack.who}, MTU 9000, traced by perf;"
        f" {len(trips) - len(alike)} of {len(trips)} went another way (with a hand-over, or without)"
    ]
    return section


def _trace(stack: Aoe, folder: Path, way: str) -> list[Call]:
    """The system calls of client, bridge and target in part of a run, in the order in which they began."""
    data = folder / "perf.data"
    words = [folder / "nbdload", way, "random", BLOCK, 1, _LONG, SIZE, stack.sockets[0]]
    client = subprocess.Popen([*stack.client(), *map(str, words)], stdout=subprocess.DEVNULL)
    try:
        time.sleep(_WARM)
        target = "vblade" if stack.who == "vblade" else "target"
        who = {client.pid: "client", stack.processes["bridge"]: "bridge", stack.processes[target]: "target"}
        events = ("-e", "raw_syscalls:sys_enter", "-e", "raw_syscalls:sys_exit")
        pids = ",".join(map(str, who))
        _perf(
            "record",
            "-q",
            "-o",
            data,
            "-k",
            "CLOCK_MONOTONIC",
            "-m",
            "256",
            *events,
            "-p",
            pids,
            "--",
            "sleep",
            _TRACED,
        )
        threads = {int(task): pid for pid in who for task in os.listdir(f"/proc/{pid}/task")}
        files = {pid: _files(pid) for pid in who}
    finally:
        client.kill()
        client.wait()
    text = _perf("script", "-i", data, "-F", "tid,time,event,trace")
    found = []
    names = _CALLS.get(platform.machine(), {})
    entered: dict[int, tuple[float, int]] = {}  # by thread: when, on which file
    for match in filter(None, map(_EVENT.match, text.splitlines())):
        thread, seconds, fraction, edge, number, first, result = match.groups()
        at = int(seconds) + int(fraction) / 10 ** len(fraction)
        if edge == "enter":
            entered[int(thread)] = at, int(first, 16)
        elif int(thread) in entered and int(thread) in threads:
            enter, fd = entered.pop(int(thread))
            pid = threads[int(thread)]
            name = names.get(int(number), number)
            file = "epoll" if name in _WAITS else files[pid].get(fd, "")
            found.append(Call(who[pid], file, name, enter, at, int(result)))
    return sorted(found, key=lambda call: call.enter)


def _files(pid: int) -> dict[int, str]:
    """What each file descriptor of a process is: packet, stream, eventfd, ..."""
    packets = {line.split()[-1] for line in Path(f"/proc/{pid}/net/packet").read_text().splitlines()[1:]}
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        link = os.readlink(f"/proc/{pid}/fd/{fd}")
        if link.startswith("socket:["):
            found[int(fd)] = "packet" if link[8:-1] in packets else "stream"
        elif link.startswith("anon_inode:["):
            found[int(fd)] = link[12:-1]
    return found


def _split(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """The calls that overlap each round trip: from the client's question to its next one."""
    starts = [call.enter for call in calls if MARKS[0].when(call, 0.0) is not None]
    ended = sorted(calls, key=lambda call: call.exit)
    at = 0
    for start, stop in itertools.pairwise(starts):
        while at < len(ended) and ended[at].exit < start:
            at += 1
        i = at
        while i < len(ended) and ended[i].enter < stop and ended[i].exit < stop + 0.001:
            i += 1
        yield ended[at:i]


def _cut(calls: Sequence[Call]) -> list[tuple[str, float]]:
    """(stage, s) of one round trip; empty if a mark is missing. A stage whose own mark is missing is in the next one."""
    trip: list[tuple[str, float]] = []
    last = 0.0
    missing = False
    for mark in MARKS:
        times = [when for call in calls if (when := mark.when(call, last)) is not None]
        if times:
            if mark.stage:
                trip.append((mark.merged if missing and mark.merged else mark.stage, min(times) - last))
            last = min(times)
        elif mark.needed:
            return []
        missing = not times
    return trip


# -- less ------------------------------------------------------------------------------------------------------------

_IDLE = """
import sys
sys.path.insert(0, {root!r})
import nbdkit
from aoe_nbd.threadstate import Pins
API_VERSION = 2
pins = Pins()
def thread_model(): return nbdkit.THREAD_MODEL_PARALLEL
def open(readonly): return 1
def get_size(h): return {size}
def pread(h, buf, offset, flags): pins.pin()
def pwrite(h, buf, offset, flags): pins.pin()
"""


def _less(stack: Aoe, alone: Aoe, places: Places, way: str, rounds: int) -> list[report.Section]:
    """The same, not traced, through less than all of it; and a stream likewise."""
    idle = places.file("idle", "py")
    idle.write_text(_IDLE.format(root=str(ROOT), size=SIZE))
    sockets = {
        "nbdkit's memory plugin": stack.serve(
            "nbdkit memory", lambda socket: ["nbdkit", "-f", "-U", socket, "memory", str(SIZE)]
        ),
        "an idle Python plugin": stack.serve(
            "nbdkit idle", lambda socket: ["nbdkit", "-f", "-U", socket, "python", idle]
        ),
        "the bridge": stack.sockets[0],
    }
    pids = dict(
        zip(sockets, (stack.processes[name] for name in ("nbdkit memory", "nbdkit idle", "bridge")), strict=True)
    )

    def load(name: str, order: str, request: int, depth: int) -> Run:
        words = (places.folder / "nbdload", way, order, request, depth, 1.0, SIZE, sockets[name])
        return observe({"server": pids[name]}, lambda: tool([*stack.client(), *words], "client"))

    def runs(order: str, request: int, depth: int, least: Callable[[], Run]) -> dict[str, list[Run]]:
        sides = {name: partial(load, name, order, request, depth) for name in sockets}
        return interleave(rounds, {_FLOOR: least, **sides})

    section = report.Section(
        "less",
        f"A 4k {way} through less",
        ("through", "depth", "round trip us: mean", "p50", "operations/s", "CPU us an operation", "its client's"),
    )
    for depth in (1, 32):
        found = runs("random", BLOCK, depth, partial(alone.floor, way, 1.0, SIZE, BLOCK // 512, depth, "random"))
        for name, those in found.items():
            section.lines.append(
                [
                    name,
                    str(depth),
                    median([run.seconds / run.operations * 1e6 * depth for run in those], 1),
                    median([run.figures["p50_us"] for run in those], 1),
                    median([run.operation_rate for run in those]),
                    median([run.cpu_per_million(_server(name)) for run in those], 1),
                    median([run.cpu_per_million("client") for run in those], 1) if name != _FLOOR else "",
                ]
            )
        section.runs[f"depth {depth}"] = plain(found)
        section.notes = [others(found)]

    stream = report.Section(
        "stream",
        f"A stream of {way}s through less",
        ("through", "MB/s", "CPU s/GiB", "its client's"),
    )
    found = runs("sequential", floor.REQUEST, floor.DEPTH, partial(alone.floor, way, 1.0, SIZE, sectors_of(MTU)))
    for name, those in found.items():
        stream.lines.append(
            [
                name,
                median([run.rate for run in those]),
                median([run.cpu_per_gib(_server(name)) for run in those], 2),
                median([run.cpu_per_gib("client") for run in those], 2) if name != _FLOOR else "",
            ]
        )
    stream.runs = plain(found)
    stream.notes = [
        f"{floor.DEPTH} requests of {floor.REQUEST >> 10} KiB under way; an idle Python plugin only hands nbdkit's buffer back",
        others(found),
    ]
    return [section, stream]


def _server(name: str) -> str:
    """What the process that is measured is called among a run's CPU times."""
    return "floor" if name == _FLOOR else "server"


# -- profile ---------------------------------------------------------------------------------------------------------


_KINDS = (  # (what it is, functions that tell it by being anywhere in the stack); the first that fits
    ("packet socket: sending, up to the receiver's socket", {"packet_sendmsg"}),
    (
        "NBD socket: nbdkit's reads and writes",
        {"unix_stream_sendmsg", "unix_stream_recvmsg", "unix_stream_read_generic"},
    ),
    ("locks: futex, of Python and of nbdkit, with the task switches that they make", {"do_futex", "__x64_sys_futex"}),
    ("hand-over: eventfd, with its task switches", {"eventfd_read", "eventfd_write", "eventfd_signal_mask"}),
    ("waiting for frames and timers: epoll, poll", {"do_epoll_wait", "do_sys_poll", "timerfd_read_iter"}),
    ("timers: timerfd", {"do_timerfd_settime", "__x64_sys_timerfd_settime"}),
)
_LIBRARIES = {
    "__mypyc": "the hot path's own code, compiled",
    "libpython": "Python: objects, and what is interpreted",
    "_multiarray": "numpy",
    "libc.": "libc",
    "nbdkit": "nbdkit",
}


def _profile(stack: Aoe, way: str, order: str, request: int, depth: int) -> report.Section:
    """Where the busy bridge's CPU time goes, by what it is for."""
    data = stack.places.folder / "profile.data"
    words = [stack.places.folder / "nbdload", way, order, request, depth, _LONG, SIZE, stack.sockets[0]]
    client = subprocess.Popen([*stack.client(), *map(str, words)], stdout=subprocess.DEVNULL)
    bridge = stack.processes["bridge"]
    try:
        time.sleep(_WARM)
        often = ("-e", "cpu-clock", "-F", 4000, "-g")
        _perf("record", "-q", "-o", data, *often, "-p", bridge, "--", "sleep", _PROFILED)
    finally:
        client.kill()
        client.wait()
    samples = _perf("script", "-i", data, "-F", "ip,sym,dso").strip().split("\n\n")
    kinds = Counter(kind(sample) for sample in samples)
    title = f"The busy bridge: {order} {way}s of {request >> 10} KiB at depth {depth}, its CPU time by what it is for"
    section = report.Section(f"profile-{order}", title, ("what", "share"))
    section.lines = [[name, f"{count / len(samples):.1%}"] for name, count in kinds.most_common()]
    section.runs = {"samples": kinds}
    section.notes = [f"{len(samples)} samples of its CPU time by perf; the kernel's share is with what asked for it"]
    return section


def kind(sample: str) -> str:
    """What the CPU did at one sample, a stack as perf prints it: `address function (object)`, the innermost first."""
    lines = [line.split(None, 1)[1] for line in sample.splitlines() if len(line.split(None, 1)) == 2]
    functions = {line.split()[0].split("+")[0] for line in lines}
    for name, tell in _KINDS:
        if functions & tell:
            return name
    place = lines[0].rpartition("(")[2] if lines else ""
    if "kernel" in place:
        return "the kernel otherwise"
    return next((name for key, name in _LIBRARIES.items() if key in place), "other libraries")


def _perf(*words: object) -> str:
    try:
        done = subprocess.run(["perf", *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        raise Failed("perf is not installed: apt-get install linux-perf") from None
    if done.returncode:
        raise Failed(f"perf {words[0]} does not work here: {done.stderr.strip()}")
    return done.stdout
