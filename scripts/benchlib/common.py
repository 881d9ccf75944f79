# SPDX-License-Identifier: BSD-3-Clause
"""What benchmarks share: a target and a bridge to measure, fio's figures, medians with their spread, and where results go."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lab
from lab import PLUGIN, PYTHON, ROOT, Bridge, Host, Process, run

lab.PATIENCE = 300.0  # s for a program to start: a machine that has much else to do is measured all the same

OUT = ROOT / "build" / "bench"
DOCUMENT = ROOT / "docs" / "performance.md"


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """A folder in memory, so that no disk is measured; gone afterwards."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="aoe-nbd-bench-", dir=memory if memory.is_dir() else None))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def start_target(who: str, host: Host, disk: Path, log: Path, *more: object) -> Process:
    """`vblade` or `ours`, serving `disk` as e1.0."""
    if who == "vblade":
        process = Process(who, host.command("vblade", *more, 1, 0, host.interface, disk), log)
        process.wait_for("sectors O_")
    else:
        where = ("--shelf", 1, "--slot", 0, "--interface", host.interface)
        command = host.command(PYTHON, "-m", "aoe_nbd.target", *where, *more, disk)
        process = Process(who, command, log, {"PYTHONPATH": str(ROOT)})
        process.wait_for("serving e1.0")
    return process


def start_bridge(host: Host, folder: Path, interfaces: str) -> Bridge:
    """nbdkit with the plugin, for e1.0."""
    number = len(list(folder.glob("nbdkit-*.log")))
    socket = folder / f"nbd-{number}.sock"
    words = ("nbdkit", "-f", "-U", socket, "python", PLUGIN, f"interface={interfaces}", "target=e1.0")
    bridge = Bridge(host.command(*words), socket, folder / f"nbdkit-{number}.log")
    bridge.wait_for_socket(socket)
    return bridge


def fio(bridge: Bridge, folder: Path, seconds: float, size: int, *job: str) -> dict[str, float]:
    """MiB/s, requests/s, ms of the bridge's CPU time a MiB, and ms of latency: mean, p50, p99, p99.9, max."""
    command = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={bridge.uri()}", f"--size={size}", *job]
    command += [
        f"--runtime={round(1e3 * seconds)}ms",
        "--time_based",
        "--output-format=json",
        "--percentile_list=50:99:99.9",
    ]
    before = cpu_time(bridge.pid)
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=seconds + 300, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    used = cpu_time(bridge.pid) - before
    found = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    found = max((found["read"], found["write"]), key=lambda way: int(way["total_ios"]))
    times = {f"p{float(key):g}": value / 1e6 for key, value in found["clat_ns"]["percentile"].items()}
    return {
        "MiB/s": found["bw_bytes"] / (1 << 20),
        "requests/s": found["iops"],
        "CPU ms/MiB": 1e3 * used / (found["io_bytes"] / (1 << 20)),
        "mean": found["clat_ns"]["mean"] / 1e6,
        **times,
        "max": found["clat_ns"]["max"] / 1e6,
    }


def cpu_time(pid: int) -> float:
    """Seconds that a process has used of its CPUs, which a busy machine changes less than the time by the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "runs": len(values)}


def text(found: dict[str, float], digits: int = 2) -> str:
    """`0.93 (0.88 to 0.95)`."""
    return f"{found['median']:.{digits}f} ({found['least']:.{digits}f} to {found['most']:.{digits}f})"


def command(words: Sequence[str]) -> str:
    """The command line that repeats a run, without the folder that its results went to: that is this machine's business."""
    kept, rest = [], iter(words)
    for word in rest:
        if word == "--out":
            next(rest, None)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["scripts/bench", *kept])


def circumstances() -> dict[str, Any]:
    """What a figure depends on besides us."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": run("git", "-c", f"safe.directory={ROOT}", "-C", ROOT, "describe", "--always", "--dirty").strip(),
        "kernel": f"Linux {platform.release().split('-')[0]}",
        "cpus": os.cpu_count(),
        "load at start": os.getloadavg()[0],
        "rmem_max": int(Path("/proc/sys/net/core/rmem_max").read_text()),
    }


def head(results: Mapping[str, Any]) -> list[str]:
    """What stands above a table in a document: the command, when, of which commit, and on what machine."""
    return [
        f"`sudo {results['command']}`, {results['time']}, commit {results['commit']}",
        f"{results['kernel']}, {results['cpus']} CPUs shared with other work, load average {results['load at start']:.1f}",
    ]


def save(name: str, out: Path, results: dict[str, Any]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    return path
