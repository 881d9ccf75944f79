# SPDX-License-Identifier: BSD-3-Clause
"""The folder of a LUN: who may change it, who supervises it, and what is read from files that others wrote."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aoe_nbd.host.state import Busy, Folder, State, folders
from aoe_nbd.wire.address import Address


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path / "run"))
    return Folder(Address(1, 0))


def test_one_supervisor(folder: Folder) -> None:
    assert folder.running() is None
    with folder.supervising():
        assert folder.running() == os.getpid()
        with pytest.raises(Busy, match=f"e1.0 has a supervisor already, process {os.getpid()}"), folder.supervising():
            pass
    assert folder.running() is None


def test_a_supervisor_stays_one_across_an_exec(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AOE_NBD_LOCK", raising=False)
    with folder.supervising() as hand_over:
        hand_over()
        fd = int(os.environ["AOE_NBD_LOCK"])
        assert os.get_inheritable(fd)
        copy = os.dup(fd)  # what the exec would leave open
    monkeypatch.setenv("AOE_NBD_LOCK", str(copy))
    assert folder.running() == os.getpid()
    with folder.supervising():
        assert not os.get_inheritable(copy) and "AOE_NBD_LOCK" not in os.environ
    assert folder.running() is None


def test_no_other_descriptor_is_taken_for_the_lock(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with open(tmp_path / "other", "w") as other:
        monkeypatch.setenv("AOE_NBD_LOCK", str(other.fileno()))
        with folder.supervising():
            assert folder.running() == os.getpid()
        assert other.fileno() >= 0 and os.fstat(other.fileno())


def test_changes_come_one_after_the_other(folder: Folder) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def change() -> None:
        nonlocal inside, most
        for _ in range(20):
            with folder.changing():
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(change) for _ in range(4)]:
            done.result()
    assert most == 1
    assert not folder.path.parent.exists(), "it leaves nothing"


def test_a_change_that_does_not_end_is_told(folder: Folder) -> None:
    with folder.changing(), pytest.raises(Busy, match="another attach or detach"), folder.changing(0.1):
        pass


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.save(State(3, 512, True, identity=["m", "s", ""], queue={"scheduler": "none"}))
    folder.hold({"operator": 2})
    folder.set_options([("interface", "eth0"), ("on-dead", "fail-after=3")])
    folder.fail("no answer")
    assert folder.state() == State(3, 512, True, identity=["m", "s", ""], queue={"scheduler": "none"})
    assert folder.holders() == {"operator": 2}
    assert folder.options() == [("interface", "eth0"), ("on-dead", "fail-after=3")]
    assert folder.failure() == "no answer"
    assert sorted(os.listdir(folder.path)) == ["failure", "holders", "options", "state.json"]
    assert folders() and folders()[0].address == (1, 0)
    folder.remove()
    assert folders() == [] and folder.state() is None and folder.options() is None and folder.holders() == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", '{"index": 1}', '{"index": null}', "7"])
def test_a_broken_file_is_as_none(folder: Folder, text: str) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "state.json").write_text(text)
    assert folder.state() is None
    (folder.path / "holders").write_text(text)
    assert folder.holders() in ({}, {"index": 1})


def test_the_state_of_another_version(folder: Folder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "state.json").write_text('{"index": 1, "size": 512, "read_only": false, "of_the_future": 1}')
    assert folder.state() == State(1, 512, False)
