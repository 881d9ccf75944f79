# SPDX-License-Identifier: BSD-3-Clause
"""scripts/bench: its clients count what they did, a row comes to an end with its figures, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import MIB, PYTHON, ROOT, Bridge, run

PATHS = os.pathsep.join(map(str, (ROOT / "scripts", ROOT / "tests" / "net", ROOT)))


@pytest.fixture(scope="module")
def nbdload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("bench") / "nbdload"
    run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, ROOT / "scripts" / "benchlib" / "nbdload.c")
    return program


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Bridge]:
    """nbdkit that notes each request."""
    words = (
        "nbdkit",
        "-f",
        "-U",
        tmp_path / "sock",
        "--filter=log",
        "memory",
        "4M",
        f"logfile={tmp_path / 'requests'}",
    )
    server = Bridge(list(map(str, words)), tmp_path / "sock", tmp_path / "log")
    server.wait_for_socket(server.socket)
    yield server
    server.popen.kill()
    server.stop()


@pytest.mark.parametrize(
    ("way", "order", "size", "sockets"), [("read", "sequential", 65536, 1), ("write", "random", 4096, 2)]
)
def test_nbdload_counts_what_it_did(
    nbdload: Path, memory: Bridge, tmp_path: Path, way: str, order: str, size: int, sockets: int
) -> None:
    found = json.loads(run(nbdload, way, order, size, 4, 0.1, 2 * MIB, *[memory.socket] * sockets))
    memory.stop()
    requests = re.findall(
        rf" {way.capitalize()} .*offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+)", (tmp_path / "requests").read_text()
    )
    warming_up = 4 * sockets
    assert len(requests) - warming_up == found["operations"] > 4 * sockets
    assert found["bytes"] == found["operations"] * size
    offsets = [int(offset, 16) for offset, _ in requests]
    assert {int(count, 16) for _, count in requests} == {size}
    assert max(offsets) < 2 * MIB
    if order == "sequential":
        assert set(offsets[:8]) <= {i * size for i in range(12)}
    assert 0 < found["p50_us"] <= found["p99_us"] <= found["p999_us"]
    assert found["cpu"] > 0


def test_a_row_in_short(tmp_path: Path) -> None:
    words = ("speed", "floor", "--quick", "--rounds", 1, "--seconds", 0.1, "--no-plots", "--out", tmp_path)
    command = [PYTHON, "-m", "benchlib", *map(str, words)]
    bench = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PATHS}, stdout=subprocess.PIPE, text=True)
    said = bench.communicate(timeout=300)[0]
    assert bench.returncode == 0
    found = json.loads((tmp_path / "speed.json").read_text())
    rows = found["it must show"]
    assert len(rows) == 6
    assert {row["holds"] for row in rows} <= {"yes", "no"}
    runs = [run for several in found["rows"]["floor"].values() for run in several]
    assert len(runs) == 2 * 2 * 2
    assert all(run["bytes"] > 0 and run["cpu"]["target"] > 0 for run in runs)
    assert "It must show" in said
    assert "### It must show" in (tmp_path / "speed.md").read_text()
    assert f"aoe-{bench.pid}-" not in run("ip", "netns", "list")


def test_a_row_that_is_not_there_starts_nothing() -> None:
    words = [PYTHON, "-m", "benchlib", "speed", "flor"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": PATHS}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("scripts/bench: there is no row flor")
    assert done.stdout == ""
