# SPDX-License-Identifier: BSD-3-Clause
"""Who has a disk in use is found wherever the kernel tells it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aoe_nbd.host import holders


@pytest.fixture
def host(tmp_path: Path) -> Callable[[str, str], None]:
    """host(path, text): a file in a tree with sys and proc, where /dev/nbd0 has one partition."""

    def file(path: str, text: str = "") -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    file("sys/block/nbd0/dev", "43:0\n")
    file("sys/block/nbd0/nbd0p1/dev", "43:1\n")
    file("sys/block/nbd0/nbd0p1/partition", "1\n")
    file("proc/self/mountinfo", "22 1 254:0 / / rw - ext4 /dev/vda rw\n")
    file("proc/swaps", "Filename Type Size Used Priority\n")
    (tmp_path / "dev").mkdir()
    return file


def users(tmp_path: Path) -> list[str]:
    return holders.users("nbd0", tmp_path / "sys", tmp_path / "proc", tmp_path / "dev")


def test_nobody(host: Callable[..., None], tmp_path: Path) -> None:
    assert users(tmp_path) == []


def test_mounts(host: Callable[..., None], tmp_path: Path) -> None:
    lines = (
        "30 22 43:1 / /srv/with\\040blank rw shared:1 - ext4 /dev/nbd0p1 rw\n"
        "31 22 0:44 / /pool rw - btrfs /dev/nbd0 rw\n"
        "32 22 43:16 / /other rw - ext4 /dev/nbd1 rw\n"
    )
    host("proc/self/mountinfo", lines)
    assert users(tmp_path) == ["mounted on /srv/with blank", "mounted on /pool"]


def test_swap(host: Callable[..., None], tmp_path: Path) -> None:
    host("proc/swaps", "Filename Type Size Used Priority\n/dev/nbd0p1 partition 1 0 -2\n/dev/nbd10 partition 1 0 -2\n")
    assert users(tmp_path) == ["swap on nbd0p1"]


def test_what_is_stacked_on_it(host: Callable[..., None], tmp_path: Path) -> None:
    host("sys/block/nbd0/nbd0p1/holders/dm-3")
    host("sys/block/dm-3/dm/name", "vg-root\n")
    host("sys/block/nbd0/holders/md0")
    assert users(tmp_path) == ["nbd0 is part of /dev/md0", "nbd0p1 is part of /dev/mapper/vg-root"]


def test_xen_guests_and_loops(host: Callable[..., None], tmp_path: Path) -> None:
    host("sys/bus/xen-backend/devices/vbd-5-51712/physical_device", "2b:1\n")
    host("sys/bus/xen-backend/devices/vbd-6-51712/physical_device", "2b:10\n")
    host("sys/block/loop0/loop/backing_file", "/dev/nbd0\n")
    host("sys/block/loop1/loop/backing_file", "/srv/nbd0\n")
    assert users(tmp_path) == ["Xen domain 5", "/dev/loop0"]


def test_processes(host: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host("proc/77/comm", "dd\n")
    (tmp_path / "proc/77/fd").mkdir()
    os.symlink("/dev/null", tmp_path / "proc/77/fd/0")
    os.symlink("pipe:[5]", tmp_path / "proc/77/fd/1")
    assert users(tmp_path) == []
    number = os.stat("/dev/null").st_rdev
    host("sys/block/nbd0/dev", f"{os.major(number)}:{os.minor(number)}\n")
    monkeypatch.setattr("stat.S_ISBLK", lambda mode: True)
    assert users(tmp_path) == ["open in dd (77)"]
    host(f"proc/{os.getpid()}/comm", "python\n")
    (tmp_path / "proc/77").rename(tmp_path / "proc/gone")
    (tmp_path / f"proc/{os.getpid()}/fd").mkdir()
    os.symlink("/dev/null", tmp_path / f"proc/{os.getpid()}/fd/0")
    assert users(tmp_path) == [], "not ourselves"


def test_udev_is_waited_for_while_it_has_work(host: Callable[..., None], tmp_path: Path) -> None:
    """Seen: a detach right after an attach was refused, for udev was still looking at the new disk."""
    worker, mount = "open in (udev-worker) (1100)", "mounted on /srv"
    assert not holders.looked_at([worker], tmp_path / "run")
    host("run/udev/queue")
    assert holders.looked_at([worker], tmp_path / "run")
    assert not holders.looked_at([worker, mount], tmp_path / "run")
    assert not holders.looked_at([], tmp_path / "run")


def test_who_goes_while_udev_works_is_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [["open in (udev-worker) (7)"], ["open in blkid (8)"], []]
    monkeypatch.setattr(holders, "users", lambda disk: found.pop(0))
    monkeypatch.setattr(holders, "looked_at", bool)
    assert holders.lasting("nbd0") == []


def test_who_stays_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "users", lambda disk: ["open in dd (7)"])
    monkeypatch.setattr(holders, "looked_at", lambda found: True)
    assert holders.lasting("nbd0", patience=0.1) == ["open in dd (7)"]


def test_many_are_not_all_named() -> None:
    assert holders.sentence([f"m{i}" for i in range(10)]).endswith("m7 and 2 more")
    assert holders.sentence(["a", "b"]) == "a, b"


@pytest.mark.parametrize(
    ("user", "is_one"),
    [
        ("open in (udev-worker) (546)", True),
        ("open in systemd-udevd (12)", True),
        ("open in sync (77)", True),
        ("open in rsync (77)", False),
        ("open in qemu-system-x86 (546)", False),
        ("mounted on /srv", False),
    ],
)
def test_onlookers(user: str, is_one: bool) -> None:
    assert holders.is_onlooker(user) is is_one
