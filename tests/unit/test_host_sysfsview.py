# SPDX-License-Identifier: BSD-3-Clause
"""The view for aoe-stat, read by Debian's own, and `aoe-nbd stat`, which prints the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aoe_nbd import cli
from aoe_nbd.cli import stat
from aoe_nbd.host import state, sysfsview
from aoe_nbd.host.control import Server
from aoe_nbd.wire.address import Address

AOE_STAT = shutil.which("aoe-stat", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
needs_aoe_stat = pytest.mark.skipif(AOE_STAT is None, reason="aoetools are not installed")


def path(interface: str, sectors: int = 16, state: str = "up") -> dict[str, Any]:
    sizes = {"read": sectors, "write": sectors, "most": 16}
    return {"interface": interface, "mac": "02:00:00:00:00:01", "state": state, "sectors": sizes}


def lun(address: str, size: int, *paths: dict[str, Any], state: str = "up") -> dict[str, Any]:
    """As much of a status as the view takes."""
    identity = {"firmware": "V1.0"}
    return {"address": address, "size_bytes": size, "state": state, "paths": list(paths), "identity": identity}


LUNS = [
    lun("e1.0", 1 << 30, path("eth0", 16), path("eth1", 2)),
    lun("e1.10", 512, path("eth0", 2, state="out"), state="dead"),
    lun("e20.0", 999_999 * 512, path("eth0"), path("eth0"), state="away"),
    lun("e2.0", 8_000_000_000_000, path("eth0", 16, state="out"), path("eth12345", 8), path("eth7", 17)),
]


@pytest.fixture
def run_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in place of /run/aoe-nbd. Its path has no letter p, for aoe-stat passes over those."""
    os.makedirs("/run/lock", exist_ok=True)
    for _ in range(100):
        folder = tempfile.mkdtemp(dir="/run/lock", prefix="aoe-nbd-test.")
        if "p" not in folder:
            break
        os.rmdir(folder)
    assert "p" not in folder
    monkeypatch.setenv("AOE_NBD_RUN", folder)
    yield Path(folder)
    shutil.rmtree(folder)


def aoe_stat(root: Path, *words: str) -> tuple[int, str]:
    assert AOE_STAT is not None
    env = {"PATH": "/usr/bin:/bin", "sysfs_dir": str(root), "LC_ALL": "C"}
    done = subprocess.run([AOE_STAT, *words], capture_output=True, text=True, env=env, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def stat_verb(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = cli.main(["stat", *words])
    out, err = capsys.readouterr()
    assert not err
    return status, out


def test_the_files_of_a_lun(tmp_path: Path) -> None:
    sysfsview.write({"luns": LUNS[:1]}, tmp_path)
    folder = tmp_path / "block" / "etherd!e1.0"
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "size": "2097152\n",
        "netif": "eth0,eth1\n",
        "state": "up\n",
        "mac": "020000000001\n",
        "payload": "1024\n",
        "firmware-version": "V1.0\n",
    }
    assert sysfsview.read(tmp_path)[Address(1, 0)] == sysfsview.shown(LUNS[0])


def test_what_changes_is_written_and_nothing_else(tmp_path: Path) -> None:
    sysfsview.write({"luns": LUNS[:1]}, tmp_path)
    folder = tmp_path / "block" / "etherd!e1.0"
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    sysfsview.write({"luns": [lun("e1.0", 1 << 30, path("eth0", 16), path("eth1", 2), state="dead")]}, tmp_path)
    assert {file.name for file in folder.iterdir() if before.get(file.name) != file.stat().st_ino} == {"state"}
    assert (folder / "state").read_text() == "down\n"


def test_what_was_begun_before_a_crash_is_mended(tmp_path: Path) -> None:
    (tmp_path / "block" / ".etherd!e1.0.new").mkdir(parents=True)
    (tmp_path / "block" / ".etherd!e1.0.gone").mkdir()
    assert sysfsview.read(tmp_path) == {}
    sysfsview.write({"luns": LUNS[:1]}, tmp_path)
    sysfsview.remove(Address(1, 0), tmp_path)
    assert not list(tmp_path.glob("block/*")) and not list(tmp_path.glob("block/.*"))


def test_nothing_is_left_when_the_last_has_gone(tmp_path: Path) -> None:
    root = tmp_path / "sysfs"
    sysfsview.write({"luns": LUNS[:2]}, root)
    sysfsview.remove(Address(1, 0), root)
    assert set(sysfsview.read(root)) == {Address(1, 10)}
    sysfsview.remove(Address(1, 10), root)
    assert not root.exists()
    sysfsview.remove(Address(1, 10), root)
    sysfsview.down(Address(1, 10), root)
    assert not root.exists()


@needs_aoe_stat
@pytest.mark.parametrize("words", [(), ("e1",), ("down",), ("8192",), ("nothing",)])
def test_aoe_stat_and_ours_say_the_same(
    run_folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    sysfsview.write({"luns": LUNS}, run_folder / "sysfs")
    theirs = aoe_stat(run_folder / "sysfs", *words)
    assert stat_verb(capsys, *words) == theirs
    assert theirs[0] == (1 if words == ("nothing",) else 0)
    if not words:
        assert theirs[1].splitlines() == [
            "      e1.0         1.073GB  eth0,eth1 1024  up            ",
            "      e2.0      8000.000GB eth0,eth12345,eth7 4096  up            ",
            "     e1.10         0.000GB       eth0 1024  down          ",
            "     e20.0         0.511GB       eth0 8192  down          ",
        ]


@needs_aoe_stat
def test_aoe_stat_reads_a_partial_view(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sysfsview.write({"luns": LUNS[:2]}, run_folder / "sysfs")
    (run_folder / "sysfs" / "block" / "etherd!e1.0" / "size").unlink()
    assert "(NA)" in stat_verb(capsys)[1]
    assert stat_verb(capsys) == aoe_stat(run_folder / "sysfs")


def test_a_running_bridge_is_asked_and_a_dead_one_is_down(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sysfsview.write({"luns": [lun("e1.0", 512, path("eth9")), lun("e1.1", 512, path("eth9"))]}, run_folder / "sysfs")
    for address in ((1, 0), (1, 1), (1, 2)):
        state.Folder(Address(*address)).path.mkdir()
    server = Server(str(state.Folder(Address(1, 0)).control), {"status": lambda question: {"luns": LUNS[:1]}})
    server.start()
    try:
        assert stat_verb(capsys) == (
            0,
            "      e1.0         1.073GB  eth0,eth1 1024  up            \n"
            "      e1.1         0.000GB       eth9 8192  down          \n"
            "      e1.2            (NA)       (NA) (NA)  down          \n",
        )
    finally:
        server.close()


def test_nothing_attached(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stat_verb(capsys) == (1, "")


def test_a_regex_that_is_none(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stat", "e[1"]) == 1
    assert capsys.readouterr().err.startswith("aoe-nbd stat: 'e[1' is no regular expression: ")


def test_sizes() -> None:
    assert [stat.size(text) for text in ("0", "1954", "2097152", None, "")] == [
        "0.000GB",
        "0.001GB",
        "1.073GB",
        "(NA)",
        "(NA)",
    ]
