# SPDX-License-Identifier: BSD-3-Clause
"""Which form of the hot path runs: the compiled one only if it was made of the very sources that lie beside it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from aoe_nbd import COMPILED, compiled

ROOT = Path(__file__).resolve().parents[2]
CODE = "import aoe_nbd, aoe_nbd.core.initiator as m; print(aoe_nbd.COMPILED, m.__file__.rpartition('.')[2])"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package as it is here."""
    shutil.copytree(ROOT / "aoe_nbd", tmp_path / "aoe_nbd", ignore=shutil.ignore_patterns("__pycache__"))
    for library in ROOT.glob("aoe_nbd_*.so"):
        shutil.copy(library, tmp_path)
    return tmp_path


def form(package: Path, **env: str) -> str:
    words = ["/usr/bin/python3", "-c", CODE]
    environment = {**os.environ, "PYTHONPATH": str(package), "AOE_NBD_COMPILED": "", **env}
    done = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_every_module_that_is_named_exists() -> None:
    folder = ROOT / "aoe_nbd"
    assert all((folder / name).is_file() for name in compiled.MODULES)
    assert {"core/initiator.py", "engine.py", "target/batch.py"} <= set(compiled.MODULES)


def test_pip_compiles_with_the_mypy_that_checks_the_types() -> None:
    (version,) = re.findall(r'^MYPYC = "(.+)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert f"LINTERS=({version} " in (ROOT / "scripts/lib.sh").read_text()


@pytest.mark.skipif(not COMPILED, reason="the hot path is not compiled here: scripts/compile")
def test_the_compiled_form_runs_unless_told_otherwise(package: Path) -> None:
    assert form(package) == "True so"
    assert form(package, AOE_NBD_COMPILED="0") == "False py"


@pytest.mark.parametrize("name", ["core/window.py", "engine.py", "wire/codes.py"])
def test_sources_that_were_changed_run(package: Path, name: str) -> None:
    with (package / "aoe_nbd" / name).open("a") as file:
        file.write("# mended\n")
    assert form(package) == "False py"


def test_without_its_library_the_sources_run(package: Path) -> None:
    for library in package.glob("*.so"):
        library.unlink()
    assert form(package) == "False py"
