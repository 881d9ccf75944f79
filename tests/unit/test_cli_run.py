# SPDX-License-Identifier: BSD-3-Clause
"""What `run` supervises with, what it leaves when it cannot, and how it starts over."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aoe_nbd import cli
from aoe_nbd.host import memory, nbd, service, supervisor
from aoe_nbd.host.state import Folder
from aoe_nbd.host.supervisor import SupervisorError
from aoe_nbd.wire.address import Address


class Supervisor:
    """Notes what it was made with. `outcome` is what its run comes to."""

    made: list[list[tuple[str, str]]]
    outcome: bool | Exception

    def __init__(self, folder: Folder, options: list[tuple[str, str]], kernel: Any, watch: Any) -> None:
        self.made.append(options)

    def stop(self, signum: int, frame: Any) -> None:
        pass

    def run(self) -> bool:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path / "run"))
    monkeypatch.setenv("AOE_NBD_ETC", str(tmp_path))
    for name in ("AOE_NBD_LOCK", "INVOCATION_ID"):
        monkeypatch.delenv(name, raising=False)
    Supervisor.made, Supervisor.outcome = [], False
    monkeypatch.setattr(supervisor, "Supervisor", Supervisor)
    monkeypatch.setattr(memory, "protect", list)
    monkeypatch.setattr(service, "log_where_it_is_read", lambda folder: None)
    monkeypatch.setattr(nbd, "Kernel", lambda: None)
    monkeypatch.setattr(nbd, "Watch", lambda: None)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    yield Folder(Address(1, 0))
    for each, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), before, strict=True):
        signal.signal(each, handler)


def test_its_options(folder: Folder, tmp_path: Path) -> None:
    assert cli.main(["run", "e1.0"]) == 0
    (tmp_path / "aoetab").write_text("e1.0 interface=eth7\n")
    assert cli.main(["run", "e1.0"]) == 0
    folder.set_options([("interface", "eth9")])
    assert cli.main(["run", "e1.0"]) == 0
    assert Supervisor.made == [[], [("interface", "eth7")], [("interface", "eth9")]]


def test_a_closed_terminal_is_none_of_its_business(folder: Folder) -> None:
    assert cli.main(["run", "e1.0"]) == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_why_it_could_not_is_left_for_who_asked(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    Supervisor.outcome = SupervisorError(5, "no answer from e1.0")
    assert cli.main(["run", "e1.0"]) == 1
    assert folder.failure() == "no answer from e1.0"
    assert capsys.readouterr().err == "aoe-nbd run: no answer from e1.0\n"


def test_a_bad_line_in_the_table(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "aoetab").write_text("e1.0 sectors=0\n")
    assert cli.main(["run", "e1.0"]) == 1
    assert "aoetab, line 1, field 'sectors=0'" in folder.failure() and Supervisor.made == []


def test_a_service_that_was_started_by_itself_holds_the_disk(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOCATION_ID", "1")
    assert cli.main(["run", "e1.0"]) == 0
    assert folder.holders() == {"systemd": 1}
    folder.hold({"operator": 1})
    assert cli.main(["run", "e1.0"]) == 0
    assert folder.holders() == {"operator": 1}


def test_it_starts_over_as_what_is_installed_then(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    Supervisor.outcome = True

    def execv(path: str, words: list[str]) -> None:
        assert path == words[0] == sys.executable and words[1:] == sys.orig_argv[1:]
        assert folder.running() == os.getpid(), "nobody else can come in between"
        assert os.get_inheritable(int(os.environ["AOE_NBD_LOCK"]))
        raise SystemExit(42)

    monkeypatch.setattr(os, "execv", execv)
    assert cli.main(["run", "e1.0"]) == 42
    monkeypatch.delenv("AOE_NBD_LOCK")


def test_only_one(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    with folder.supervising():
        assert cli.main(["run", "e1.0"]) == 1
    assert "has a supervisor already" in capsys.readouterr().err
