# SPDX-License-Identifier: BSD-3-Clause
"""The queue of a device is tuned, and is as it was afterwards; what a kernel lacks is left out."""

from __future__ import annotations

from pathlib import Path

from aoe_nbd.host import queue


def test_tuned_and_restored(tmp_path: Path) -> None:
    folder = tmp_path / "block" / "nbd2" / "queue"
    folder.mkdir(parents=True)
    was = {"scheduler": "mq-deadline", "max_sectors_kb": "128", "io_timeout": "30000"}
    for name, value in was.items():
        (folder / name).write_text(f"[{value}] none\n" if name == "scheduler" else f"{value}\n")
    before = queue.tune(2, tmp_path)
    assert before == was
    assert (folder / "scheduler").read_text() == "none"
    assert (folder / "io_timeout").read_text() == str(queue.TIMEOUT * 1000)
    assert not (folder / "read_ahead_kb").exists()
    assert queue.tune(2, tmp_path) == {}, "what is right is left alone"
    queue.restore(2, before, tmp_path)
    assert {name: (folder / name).read_text() for name in was} == was


def test_a_device_that_has_gone(tmp_path: Path) -> None:
    assert queue.tune(2, tmp_path) == {}
    queue.restore(2, {"scheduler": "none"}, tmp_path)
