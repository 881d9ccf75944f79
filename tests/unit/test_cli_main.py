# SPDX-License-Identifier: BSD-3-Clause
"""How a command line starts and ends: quickly, with one sentence for what is wrong, and never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aoe_nbd import __version__, cli
from aoe_nbd.cli.failure import Failure

ROOT = Path(__file__).resolve().parents[2]


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aoe_nbd", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> object:
    """failing(error): the verb `discover` raises that error."""

    def have(error: BaseException) -> None:
        from aoe_nbd.cli import discover

        def fail(args: object) -> int:
            raise error

        monkeypatch.setattr(discover, "run", fail)

    return have


def test_help_names_every_verb_and_imports_none() -> None:
    done = run("--help")
    assert done.returncode == 0 and not done.stderr
    assert all(f"  {verb} " in done.stdout for verb in cli.VERBS)
    check = "import sys; from aoe_nbd.cli import main; main(['--help']); print([m for m in sys.modules if m in "
    heavy = "('numpy', 'rich', 'pyroute2', 'construct', 'aoe_nbd.engine')], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", check + heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_version() -> None:
    assert run("--version").stdout == f"aoe-nbd {__version__}\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_help_and_one_line_for_a_wrong_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: aoe-nbd {verb} ")
    assert cli.main([verb, "--bogus"]) == 2
    out, err = capsys.readouterr()
    assert (not out and err.count("\n") == 1 and "--bogus" in err) or "required" in err


@pytest.mark.parametrize("words", [["frobnicate"], ["--frob"], ["-x"], [""]])
def test_no_verb_of_that_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and words[0] in err and "--help" in err


def test_nothing_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "discover" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Failure("what is wrong"), 1, "aoe-nbd discover: what is wrong\n"),
        (OSError(28, "No space left on device"), 1, "aoe-nbd discover: No space left on device\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "aoe-nbd discover: /x: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_how_errors_end(
    failing: object, capfd: pytest.CaptureFixture[str], error: BaseException, status: int, said: str
) -> None:
    failing(error)  # type: ignore[operator]
    stdout = os.dup(1)  # which a broken pipe has replaced
    try:
        assert cli.main(["discover"]) == status
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
    assert capfd.readouterr().err == said


def test_a_fault_of_ours_is_one_line_too(
    failing: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(ZeroDivisionError("oh"))  # type: ignore[operator]
    assert cli.main(["discover"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "ZeroDivisionError: oh" in err
    monkeypatch.setenv("AOE_NBD_DEBUG", "1")
    cli.main(["discover"])
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_and_a_closed_pipe() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aoe_nbd", "target", "--help"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "aoe_nbd", "serve", "--help"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "naming"),
    [
        (["discover", "e1"], "'e1' is not an AoE address"),
        (["discover", "-t", "soon"], "-t soon"),
        (["discover", "-i", ","], "interface=,"),
        (["identify", "all"], "'all' is not an AoE address"),
        (["identify", "e1.0", "--mac", "zz"], "mac=zz"),
        (["ping", "e65535.255"], "shelf=65535"),
        (["ping", "e1.0", "-c", "0"], "-c 0"),
        (["ping", "e1.0", "--interval", "0"], "--interval 0"),
        (["ping", "e1.0", "-s", "1", "--read", "1"], "-s and --read"),
        (["config", "set", "all", "x"], "all means many"),
        (["config", "test", "e1.0"], "test takes"),
        (["mask", "e1.0", "02:00:00:00:00:01"], "'02:00:00:00:00:01' is no edit"),
        (["mask", "e1.0", "-02:00"], "mac=02:00"),
        (["reserve", "e1.0", "--set", "ff:ff:ff:ff:ff:ff"], "mac=ff:ff:ff:ff:ff:ff"),
        (["serve"], "which disk"),
        (["serve", "e1.0", "--on-dead", "explode"], "on-dead=explode"),
        (["serve", "e1.0", "--threads", "0"], "--threads 0"),
        (["target", "--shelf", "70000", "/dev/null"], "shelf=70000"),
        (["discover", "-i", "no-such-if"], "interface no-such-if does not exist"),
        (["discover", "-i", "lo"], "interface lo is the loopback"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], naming: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"aoe-nbd {words[0]}: ") and err.count("\n") == 1 and naming in err
