# SPDX-License-Identifier: BSD-3-Clause
"""A bridge as a process: what it says last is why it ended, and an orphan is ended, but nobody else."""

from __future__ import annotations

import logging
import os
import select
import subprocess

import pytest

from aoe_nbd.host.child import Child, began, end_orphan, parent


def shell(script: str) -> Child:
    return Child(["/bin/sh", "-c", script], dict(os.environ))


def wait(child: Child) -> None:
    assert select.select([child], [], [], 60)[0]
    assert child.ended


def test_its_last_word(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("aoe_nbd").propagate = True
    with caplog.at_level(logging.INFO, "aoe_nbd"):
        child = shell('echo "aoe-nbd: e1.0: up" >&2; echo "nbdkit: aoe: no answer from e1.0" >&2; exit 1')
        wait(child)
        assert child.last_word == "no answer from e1.0"
    assert [record.message for record in caplog.records] == ["e1.0: up"]
    child.close()


@pytest.mark.parametrize(("script", "word"), [("exit 3", "ended with status 3"), ("kill -KILL $$", "ended by SIGKILL")])
def test_one_that_says_nothing(script: str, word: str) -> None:
    child = shell(script)
    wait(child)
    assert word in child.last_word
    child.close()


def test_one_that_does_not_end_is_made_to() -> None:
    child = shell("trap '' TERM; echo ready >&2; while :; do sleep 0.1; done")
    child.end(0.5)
    assert child.ended
    child.close()


def test_an_orphan_is_ended_and_nobody_else() -> None:
    process = subprocess.Popen(["sleep", "600"])
    start = began(process.pid)
    assert start > 0
    assert not end_orphan(process.pid, start + 1), "the pid has become another process's"
    assert not end_orphan(process.pid, 0)
    assert process.poll() is None
    assert end_orphan(process.pid, start)
    assert not os.path.exists(f"/proc/{process.pid}"), "reaped, for it was our child"
    assert not end_orphan(process.pid, start)
    assert began(process.pid) == 0 == parent(process.pid)
    process.wait()


def test_whose_child_a_process_is() -> None:
    assert parent(os.getpid()) == os.getppid()
