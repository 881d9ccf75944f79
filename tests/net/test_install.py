# SPDX-License-Identifier: BSD-3-Clause
"""The plugin as it is installed: from a checkout, from a wheel in a virtual environment, and under nbdkit's short name."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import MIB, PLUGIN, PYTHON, ROOT, Bridge, Host, Process, run, write_random

Start = Callable[..., Process]
MYPYC = ROOT / ".venv" / "bin" / "mypyc"
INSTALLER = ROOT / "scripts" / "install-nbdkit-plugin"


@pytest.fixture
def mtu() -> int:
    return 9000


@pytest.fixture
def disk(tmp_path: Path, vblade: Start) -> Path:
    path = tmp_path / "disk"
    write_random(path, MIB, seed=1)
    vblade(path)
    return path


@pytest.fixture
def read_disk(initiator: Host, start: Start, tmp_path: Path) -> Callable[..., bytes]:
    """read_disk("python", script, env=..., cwd=...): all that `nbdkit python script` serves of e1.0, read by nbdcopy.

    Without a PYTHONPATH, and not started from the checkout, so that only what is installed can be found.
    """

    def read(*plugin: object, path: str = "/usr/bin:/bin:/usr/sbin:/sbin") -> bytes:
        socket = tmp_path / "nbd.sock"
        words = ("nbdkit", "-f", "-U", socket, *plugin, f"interface={initiator.interface}", "target=e1.0")
        command = initiator.command("env", "-C", "/", "-u", "PYTHONPATH", f"PATH={path}", *words)
        bridge = Bridge(command, socket, tmp_path / "nbdkit.log")
        start(bridge)
        bridge.wait_for_socket(socket)
        run("nbdcopy", bridge.uri(), tmp_path / "copy")
        bridge.stop()
        return (tmp_path / "copy").read_bytes()

    return read


@pytest.fixture
def no_short_name() -> Iterator[Path]:
    """Where nbdkit looks for `aoe`. A plugin that is installed there already is somebody's, and stays."""
    config = run("nbdkit", "--dump-config")
    plugindir = next(line.partition("=")[2] for line in config.splitlines() if line.startswith("plugindir="))
    installed = Path(plugindir) / "nbdkit-aoe-plugin"
    if installed.exists():
        pytest.skip(f"{installed} exists already, and is not this test's to replace")
    yield installed
    installed.unlink(missing_ok=True)


def install(folder: Path, python: object = PYTHON, **env: str) -> Path:
    """A fresh virtual environment of the system's Python with the wheel in it, both made in `folder` without a network."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    run(python, "-m", "pip", "wheel", "--quiet", *build, source, env={**os.environ, **env})
    environment = folder / "environment"
    run(PYTHON, "-m", "venv", "--system-site-packages", environment)
    wheel = next(folder.glob("aoe_nbd-*.whl"))
    run(environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", wheel)
    shutil.rmtree(source)
    return environment


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("wheel")
    yield install(folder)
    shutil.rmtree(folder)


def test_from_a_checkout(disk: Path, read_disk: Callable[..., bytes]) -> None:
    assert read_disk("python", PLUGIN) == disk.read_bytes()


def test_from_a_wheel(disk: Path, environment: Path, read_disk: Callable[..., bytes]) -> None:
    plugin = next(environment.glob("lib/python3*/site-packages/aoe_nbd/plugin.py"))
    assert read_disk("python", plugin, path=f"{environment}/bin:{os.environ['PATH']}") == disk.read_bytes()


@pytest.mark.skipif(not MYPYC.exists(), reason="no mypyc here: scripts/setup")
def test_from_a_wheel_with_the_compiled_form(disk: Path, read_disk: Callable[..., bytes], tmp_path: Path) -> None:
    environment = install(tmp_path, MYPYC.with_name("python"), AOE_NBD_COMPILE="1")
    code = "import aoe_nbd, aoe_nbd.engine as e; print(aoe_nbd.COMPILED, e.__file__)"
    assert run(environment / "bin" / "python", "-c", code, cwd="/").startswith(f"True {environment}/lib")
    plugin = next(environment.glob("lib/python3*/site-packages/aoe_nbd/plugin.py"))
    path = f"{environment}/bin:{os.environ['PATH']}"
    assert "aoe_nbd_compiled=true" in run("nbdkit", "python", plugin, "--dump-plugin", env={**os.environ, "PATH": path})
    assert read_disk("python", plugin, path=path) == disk.read_bytes()


def test_short_name_from_a_checkout(no_short_name: Path, disk: Path, read_disk: Callable[..., bytes]) -> None:
    run(INSTALLER)
    assert read_disk("aoe") == disk.read_bytes()
    run(INSTALLER, "--uninstall")
    assert not no_short_name.exists()


def test_short_name_from_a_wheel(
    no_short_name: Path, disk: Path, environment: Path, read_disk: Callable[..., bytes]
) -> None:
    run(environment / "share" / "aoe-nbd" / "install-nbdkit-plugin")
    assert str(environment) in no_short_name.read_text()
    assert read_disk("aoe") == disk.read_bytes()


def test_the_wheel_has_the_command(environment: Path) -> None:
    assert "discover" in run(environment / "bin" / "aoe-nbd", "--help")


def test_installer_refuses_with_one_sentence(tmp_path: Path) -> None:
    for options in (["--bogus"], ["--plugindir"], ["--plugindir", str(tmp_path / "absent")]):
        done = subprocess.run([INSTALLER, *options], capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert len(done.stderr.splitlines()) == 1
