# SPDX-License-Identifier: BSD-3-Clause
"""One CPU while requests are small, all while they are large, and no to and fro in between."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from aoe_nbd import affinity
from aoe_nbd.affinity import Affinity

ALL = os.sched_getaffinity(0)


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(affinity, "_CALM", 0.0)
    yield
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), ALL)


def ask(it: Affinity, size: int, times: int = 200) -> set[int]:
    for _ in range(times):
        it.request(size)
    return os.sched_getaffinity(0)


def test_small_requests_stay_on_one_cpu_and_large_ones_use_all() -> None:
    it = Affinity("auto")
    it.start()
    one = os.sched_getaffinity(0)
    assert len(one) == 1 and one <= ALL
    assert ask(it, 4096) == one
    assert ask(it, 64 << 10) == one, "neither small nor large: as before"
    assert ask(it, 128 << 10) == ALL
    assert ask(it, 64 << 10) == ALL, "neither small nor large: as before"
    assert ask(it, 4096) == one


def test_all_threads_go_along() -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    it = Affinity("auto")
    it.start()
    thread.start()
    try:
        assert thread.native_id is not None
        ask(it, 1 << 20)
        assert os.sched_getaffinity(thread.native_id) == ALL
        ask(it, 512)
        assert len(os.sched_getaffinity(thread.native_id)) == 1
    finally:
        end.set()
        thread.join()


@pytest.mark.parametrize("cpu", ["all", "one", min(ALL)])
def test_what_was_asked_for_stays(cpu: int | str) -> None:
    it = Affinity(cpu)  # type: ignore[arg-type]
    it.start()
    before = os.sched_getaffinity(0)
    assert before == (ALL if cpu == "all" else before) and (cpu == "all" or len(before) == 1)
    assert ask(it, 4096) == ask(it, 1 << 20) == ask(it, 4096) == before


def test_changes_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(affinity, "_CALM", 3600.0)
    it = Affinity("auto")
    it.start()
    assert ask(it, 1 << 20) == ALL
    assert ask(it, 4096) == ALL


def test_a_cpu_that_there_is_not(caplog: pytest.LogCaptureFixture) -> None:
    it = Affinity(4095)
    it.start()
    assert "cpu=4095 cannot be used" in caplog.text
    assert ask(it, 4096) == ALL
