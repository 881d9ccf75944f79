# SPDX-License-Identifier: BSD-3-Clause
"""`aoe-nbd install`: all of it in its place, again without harm, away again, and an edited table never lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aoe_nbd import cli
from aoe_nbd.cli import install, manual
from aoe_nbd.options import PARAMETERS

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(words...): `aoe-nbd install --root` a folder, with a plugin folder in it; the lines it prints."""
    (tmp_path / "plugins").mkdir()

    def run(*words: str) -> list[str]:
        assert cli.main(["install", "--root", str(tmp_path), "--plugindir", str(tmp_path / "plugins"), *words]) == 0
        out, err = capsys.readouterr()
        assert not err
        return out.splitlines()

    return run


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_everything_in_its_place_and_away_again(tmp_path: Path, run: Run) -> None:
    said = run()
    found = files(tmp_path)
    assert sorted(said) == sorted(f"installed {tmp_path / name}" for name in found)
    assert set(found) == {
        "usr/local/bin/aoe-nbd",
        "plugins/nbdkit-aoe-plugin",
        "etc/systemd/system/aoe-nbd@.service",
        "etc/systemd/system/aoe-nbd.service",
        "etc/udev/rules.d/60-aoe-nbd.rules",
        "etc/modules-load.d/aoe-nbd.conf",
        "etc/needrestart/conf.d/aoe-nbd.conf",
        "etc/xen/scripts/block-aoe",
        "usr/local/share/man/man8/aoe-nbd.8",
        "usr/local/share/man/man5/aoetab.5",
        "usr/local/share/man/man1/nbdkit-aoe-plugin.1",
        "etc/aoe-nbd/aoetab",
    }
    executable = {name for name in found if os.access(tmp_path / name, os.X_OK)}
    assert executable == {"usr/local/bin/aoe-nbd", "plugins/nbdkit-aoe-plugin", "etc/xen/scripts/block-aoe"}
    assert {line.split()[0] for line in run()} == {"unchanged", "kept"}
    assert files(tmp_path) == found
    assert sorted(run("--uninstall")) == sorted(f"removed {tmp_path / name}" for name in found)
    assert not files(tmp_path)
    assert not (tmp_path / "etc/aoe-nbd").exists()
    assert run("--uninstall") == []


def test_no_template_is_forgotten(tmp_path: Path) -> None:
    templates = {str(path.relative_to(ROOT / "plugin")) for path in (ROOT / "plugin").rglob("*") if path.is_file()}
    assert templates == {piece.template for piece in install.PIECES}


def test_what_has_changed_is_renewed(tmp_path: Path, run: Run) -> None:
    run()
    unit = tmp_path / "etc/systemd/system/aoe-nbd@.service"
    good = unit.read_text()
    unit.write_text("old")
    assert f"renewed {unit}" in run()
    assert unit.read_text() == good


def test_an_edited_table_is_never_lost(tmp_path: Path, run: Run) -> None:
    run()
    table = tmp_path / "etc/aoe-nbd/aoetab"
    table.write_text("e1.0 readonly\n")
    assert f"kept {table}" in run()
    assert f"kept {table}" in run("--uninstall")
    assert files(tmp_path) == {"etc/aoe-nbd/aoetab": "e1.0 readonly\n"}


def test_only_a_part(tmp_path: Path, run: Run) -> None:
    run("--only", "udev", "--only", "table")
    assert set(files(tmp_path)) == {"etc/udev/rules.d/60-aoe-nbd.rules", "etc/aoe-nbd/aoetab"}


def test_the_installed_command_and_plugin_find_the_package(tmp_path: Path, run: Run) -> None:
    run()
    command = [tmp_path / "usr/local/bin/aoe-nbd", "--version"]
    done = subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("aoe-nbd ")
    first = (tmp_path / "usr/local/bin/aoe-nbd").read_text().splitlines()[0]
    assert first == f"#!{sys.executable} -I"
    assert f'PACKAGE_FOLDER = "{ROOT}"' in (tmp_path / "plugins/nbdkit-aoe-plugin").read_text()
    run("--package-folder", "")
    assert 'PACKAGE_FOLDER = ""' in (tmp_path / "plugins/nbdkit-aoe-plugin").read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here to ask")
def test_systemd_understands_the_units(tmp_path: Path, run: Run) -> None:
    """With the command where it is on this machine, since systemd looks whether it is there."""
    run()
    units = tmp_path / "etc/systemd/system"
    for unit in units.iterdir():
        text = unit.read_text()
        assert "=/usr/local/bin/aoe-nbd " in text and "/usr/bin" not in text
        unit.write_text(text.replace("/usr/local/bin/aoe-nbd", str(tmp_path / "usr/local/bin/aoe-nbd")))
    names = [str(units / "aoe-nbd.service"), str(units / "aoe-nbd@e1.0.service")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_has_it_in_other_places(tmp_path: Path, run: Run) -> None:
    run("--packaged")
    found = files(tmp_path)
    assert {piece.packaged.lstrip("/") for piece in install.PIECES} == set(found)
    assert "ExecStart=/usr/bin/aoe-nbd run %i\n" in found["lib/systemd/system/aoe-nbd@.service"]
    assert found["usr/bin/aoe-nbd"].startswith("#!/usr/bin/python3 -I\n")
    assert 'PACKAGE_FOLDER = ""' in found["usr/bin/aoe-nbd"]


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["--packaged"], "give --root DIR"),
        (["--plugindir", "/nonexistent"], "/nonexistent is not a folder"),
        (["--package-folder", 'a"b'], "a quote"),
    ],
)
def test_refusals(words: list[str], naming: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["install", *words]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and naming in err


def test_no_uninstalling_under_an_attached_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "attached", lambda: ["e1.0"])
    assert cli.main(["install", "--uninstall", "--plugindir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "aoe-nbd install: e1.0 is attached: `aoe-nbd detach` it first\n"


def test_which_disks_are_attached(tmp_path: Path) -> None:
    for name, backend in (("nbd0", "e7.1\n"), ("nbd1", "somebody's\n"), ("nbd2", "e1.0\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "backend").write_text(backend)
    (tmp_path / "nbd3").mkdir()
    assert install.attached(tmp_path) == ["e1.0", "e7.1"]


def test_the_manual_has_every_verb_option_and_parameter() -> None:
    pages = {name: manual.page(ROOT / "plugin/man" / name) for name in manual.PAGES}
    assert not any("@" in text.replace("aoe-nbd@", "") for text in pages.values())
    plain = {name: re.sub(r"\\f[BIR]", "", text).replace("\\-", "-") for name, text in pages.items()}
    for verb in cli.VERBS:
        assert f"\n.SS {verb}\n" in pages["aoe-nbd.8"]
    assert "\n--fault NAME=VALUE" in plain["aoe-nbd.8"], "an option of a verb"
    for parameter in PARAMETERS:
        assert f"\n{parameter.name}=\n{parameter.meaning.replace('`', '')}" in plain["nbdkit-aoe-plugin.1"]
    assert "noauto" in plain["aoetab.5"]


@pytest.mark.skipif(not shutil.which("groff"), reason="there is no groff here to ask")
@pytest.mark.parametrize("name", manual.PAGES)
def test_the_manual_is_right_for_groff(name: str) -> None:
    text = manual.page(ROOT / "plugin/man" / name)
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z"], input=text, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
