# SPDX-License-Identifier: BSD-3-Clause
"""The command that `serve` runs, and the sentences where it cannot."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aoe_nbd import cli
from aoe_nbd.cli import Parser, serve
from aoe_nbd.cli.failure import Failure
from aoe_nbd.host import command
from aoe_nbd.options import PARAMETERS

PLUGIN = Path(__file__).resolve().parents[2] / "aoe_nbd" / "plugin.py"


def plan(*words: str) -> serve.Plan:
    parser = Parser("aoe-nbd serve", "")
    serve.add_arguments(parser)
    return serve.plan(parser.parse_intermixed_args(serve.prepare(list(words))), "/usr/bin/nbdkit")


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_the_command() -> None:
    assert plan("e1.0", "-i", "eth0,eth1", "--mac", "02:00:00:00:00:01").command == [
        *("/usr/bin/nbdkit", "--threads", "16"),
        *("--unix", "/run/aoe-nbd/e1.0.sock", "--pidfile", "/run/aoe-nbd/e1.0.pid"),
        *("python", str(PLUGIN), "control=/run/aoe-nbd/e1.0.control", "target=e1.0"),
        *("interface=eth0,eth1", "mac=02:00:00:00:00:01"),
    ]


def test_in_the_foreground_there_is_no_pidfile() -> None:
    found = plan("e1.0", "--foreground", "--socket", "/x/y", "--threads", "4")
    assert found.command[:6] == ["/usr/bin/nbdkit", "--foreground", "--threads", "4", "--unix", "/x/y"]
    assert found.pidfile is None and "--pidfile" not in found.command


def test_every_export() -> None:
    found = plan("--all-by-export-name")
    assert (
        found.command[-2:] == [str(PLUGIN), "control=/run/aoe-nbd/all.control"]
        and found.socket == "/run/aoe-nbd/all.sock"
    )
    assert "-N e1.0" in serve.lines(found, None)[1]


def test_each_parameter_of_the_plugin_is_an_option() -> None:
    values = {"sectors": "8", "on-dead": "fail-after=3", "connect-timeout": "2.5", "cpu": "0", "owner": "host"}
    for parameter in PARAMETERS:
        if parameter.name in ("target", "shelf", "slot", "mac", "interface", "netif"):
            continue
        if parameter.default in ("true", "false"):
            assert plan("e1.0", f"--{parameter.name}").command[-1] == f"{parameter.name}=true"
            assert plan("e1.0", f"--no-{parameter.name}").command[-1] == f"{parameter.name}=false"
        else:
            value = values.get(parameter.name, parameter.default)
            assert plan("e1.0", f"--{parameter.name}", value).command[-1] == f"{parameter.name}={value}"


def test_what_follows_the_hyphens_is_for_nbdkit() -> None:
    command = plan("e1.0", "--", "-v", "--filter=cache", "cache=writethrough", "--log", "null").command
    at = command.index("python")
    assert command[at - 4 : at] == ["-v", "--filter=cache", "--log", "null"]
    assert command[-1] == "cache=writethrough"


@pytest.mark.parametrize("words", [["-p", "10809"], ["--port=10809"], ["-U", "-"], ["-s"], ["--vsock"]])
def test_nbdkit_may_listen_elsewhere(words: list[str]) -> None:
    found = plan("e1.0", "--", *words)
    assert found.socket is None and "--unix" not in found.command and serve.lines(found, None) == []
    with pytest.raises(Failure):
        plan("e1.0", "--socket", "/x", "--", *words)


def test_no_filter_is_added() -> None:
    assert not any("filter" in word for word in plan("e1.0").command)


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["e1.0", "--all-by-export-name"], "e1.0 and --all-by-export-name"),
        (["e1.0", "--sectors", "256"], "sectors=256"),
        (["e1.0", "--mac", "1"], "mac=1"),
        (["--all-by-export-name", "--mac", "02:00:00:00:00:01"], "mac is given without an address"),
        (["e1.255"], "slot=255"),
        (["e1.0", "--socket", "/" + "x" * 107], "too long for a Unix socket"),
    ],
)
def test_refusals(words: list[str], naming: str) -> None:
    with pytest.raises(Failure, match=naming):
        plan(*words)


def test_users_have_their_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert plan("e1.0").socket == "/run/user/1000/aoe-nbd/e1.0.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    with pytest.raises(Failure, match="give --socket PATH"):
        plan("e1.0")


def test_room_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.sock"
    assert serve.make_room(str(path)) == str(tmp_path / "new")
    assert serve.make_room(str(path)) is None
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with pytest.raises(Failure, match=r"serves on .* already"):
            serve.make_room(str(path))
    assert stat.S_ISSOCK(path.stat().st_mode)
    serve.make_room(str(path))  # nobody listens any more
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(Failure, match="is no socket"):
        serve.make_room(str(path))
    assert path.read_text() == "precious"


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_no_nbdkit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(command, "_PLACES", str(tmp_path))
    assert cli.main(["serve", "e1.0"]) == 1
    err = capsys.readouterr().err
    assert err == "aoe-nbd serve: nbdkit is not installed: on Debian, `apt-get install nbdkit nbdkit-plugin-python`\n"


def test_no_python_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program(tmp_path / "nbdkit", "echo 'nbdkit: cannot open plugin' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["serve", "e1.0"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no Python plugin" in err and "nbdkit-plugin-python" in err


def test_nbdkit_gets_our_python_if_it_is_of_that_version(tmp_path: Path) -> None:
    major, minor = sys.version_info[:2]
    program(tmp_path / "nbdkit", f"echo python_version={major}.{minor}.0")
    assert serve.environment(str(tmp_path / "nbdkit"))["PATH"].split(":")[0] == os.path.dirname(sys.executable)
    program(tmp_path / "nbdkit", f"echo python_version={major}.{minor + 1}.0")
    assert serve.environment(str(tmp_path / "nbdkit"))["PATH"].split(":")[0] == "/usr/bin"


def test_a_supervisor_by_the_systems_python_does_not_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "nbdkit", f"touch {tmp_path}/asked; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    words, env = command.supervised(tmp_path / "sock", 128, [("target", "e1.0")])
    assert words[0] == str(tmp_path / "nbdkit") and words[-1] == "target=e1.0"
    assert env["PATH"] == f"/usr/bin:{tmp_path}" and not (tmp_path / "asked").exists()
    monkeypatch.setattr(sys, "executable", "/opt/aoe-nbd/bin/python")
    with pytest.raises(command.Missing):
        command.supervised(tmp_path / "sock", 128, [])


def test_dry_run_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    program(tmp_path / "nbdkit", f'[ "$2" = --dump-plugin ] || touch {tmp_path}/ran; echo python_version={version}')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / "dir" / "x y.sock"
    assert cli.main(["serve", "e1.0", "--dry-run", "--socket", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"--unix '{path}'" in out and "target=e1.0" in out
    assert not (tmp_path / "ran").exists() and not path.parent.exists()


def test_nbdkits_refusal_is_ours_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    program(tmp_path / "nbdkit", f'[ "$2" = --dump-plugin ] && echo python_version={version} && exit; exit 3')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert cli.main(["serve", "e1.0", "--socket", str(tmp_path / "dir" / "x.sock")]) == 3
    assert not (tmp_path / "dir").exists()


def test_the_installed_nbdkit_has_the_plugin() -> None:
    try:
        nbdkit = serve.find_nbdkit()
    except OSError:
        pytest.skip("nbdkit is not installed")
    found = serve.environment(nbdkit)["PATH"].split(":")[0]
    assert subprocess.run([f"{found}/python3", "-c", ""], check=False).returncode == 0
