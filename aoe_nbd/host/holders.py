# SPDX-License-Identifier: BSD-3-Clause
"""Who has a block device or one of its partitions in use: mounts, swap, device mapper, md, Xen guests, loops, processes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path

SYS, PROC, DEV, RUN = Path("/sys"), Path("/proc"), Path("/dev"), Path("/run")
_OPEN = "open in "
_MOST = 8  # of them are named; a disk that is shared by hundreds need not fill the screen


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="backslashreplace").strip()
    except OSError:
        return ""


def _parts(disk: str, sys: Path) -> dict[str, Path]:
    """name -> folder in sysfs, of the disk and its partitions."""
    base = sys / "block" / disk
    return {disk: base, **{path.parent.name: path.parent for path in base.glob(f"{disk}p*/partition")}}


def lasting(disk: str, patience: float = 10.0) -> list[str]:
    """Its `users`, once udev is done with it or `patience` s have passed: it opens all that appears or changes."""
    limit = time.monotonic() + patience
    while looked_at(found := users(disk)) and time.monotonic() < limit:
        time.sleep(0.05)
    return found


def looked_at(found: list[str], run: Path = RUN) -> bool:
    """Whether these users may be no more than udev's workers and what its rules start: processes, while it has work to do."""
    return bool(found) and all(map(is_process, found)) and (run / "udev" / "queue").exists()


def is_process(user: str) -> bool:
    """Whether one of `users` is a process, and not a part of the kernel."""
    return user.startswith(_OPEN)


def is_onlooker(user: str) -> bool:
    """Whether one of `users` is udev, which looks at every disk, or a flush of ours that was given up."""
    return re.fullmatch(re.escape(_OPEN) + r"(\(udev-worker\)|systemd-udevd|sync) \([0-9]+\)", user) is not None


def users(disk: str, sys: Path = SYS, proc: Path = PROC, dev: Path = DEV) -> list[str]:
    """Each user of `disk` ("nbd0") in a few words, such as "mounted on /srv"; empty if nobody uses it."""
    parts = _parts(disk, sys)
    numbers = {_text(folder / "dev"): name for name, folder in parts.items()}
    numbers.pop("", None)
    found = [
        *_mounts(parts, numbers, proc),
        *_swaps(parts, proc),
        *_stacked(parts, sys),
        *_guests(numbers, sys),
        *_loops(parts, sys),
        *_processes(numbers, proc),
    ]
    if not found and _claimed(dev / disk):
        found = ["claimed by something in the kernel that does not say who it is"]
    return found


def sentence(found: list[str]) -> str:
    """They, joined for a message."""
    more = len(found) - _MOST
    return ", ".join(found[:_MOST]) + (f" and {more} more" if more > 0 else "")


def _mounts(parts: dict[str, Path], numbers: dict[str, str], proc: Path) -> Iterator[str]:
    """In our mount namespace. By number, and by name too: btrfs has a device number of its own."""
    for line in _text(proc / "self" / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        words, source = before.split(), after.split()
        if len(words) < 5 or len(source) < 2:
            continue
        if words[2] in numbers or os.path.basename(os.path.realpath(_unescape(source[1]))) in parts:
            yield f"mounted on {_unescape(words[4])}"


def _unescape(text: str) -> str:
    """The kernel writes blanks and the like as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _swaps(parts: dict[str, Path], proc: Path) -> Iterator[str]:
    for line in _text(proc / "swaps").splitlines()[1:]:
        name = os.path.basename(os.path.realpath(_unescape(line.split()[0])))
        if name in parts:
            yield f"swap on {name}"


def _stacked(parts: dict[str, Path], sys: Path) -> Iterator[str]:
    """LVM and other mappings, md, bcache: whatever the kernel lists as a holder."""
    for name, folder in parts.items():
        for holder in sorted(folder.glob("holders/*")):
            mapped = _text(sys / "block" / holder.name / "dm" / "name")
            yield f"{name} is part of /dev/{f'mapper/{mapped}' if mapped else holder.name}"


def _guests(numbers: dict[str, str], sys: Path) -> Iterator[str]:
    """Xen's backend opens disks in the kernel. Its devices are vbd-<domain>-<device>, with the number in hex."""
    hexadecimal = {":".join(f"{int(part):x}" for part in number.split(":")) for number in numbers}
    for path in sorted((sys / "bus" / "xen-backend" / "devices").glob("vbd-*/physical_device")):
        if _text(path) in hexadecimal:
            yield f"Xen domain {path.parent.name.split('-')[1]}"


def _loops(parts: dict[str, Path], sys: Path) -> Iterator[str]:
    for path in sorted((sys / "block").glob("loop*/loop/backing_file")):
        if os.path.basename(_text(path)) in parts and _text(path).startswith("/dev/"):
            yield f"/dev/{path.parent.parent.name}"


def _processes(numbers: dict[str, str], proc: Path) -> Iterator[str]:
    """Those with an open file of it, but for ourselves."""
    for folder in proc.glob("[0-9]*"):
        if folder.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            if any(_opens(fd, numbers) for fd in (folder / "fd").iterdir()):
                yield f"{_OPEN}{_text(folder / 'comm') or 'a process'} ({folder.name})"


def _opens(fd: Path, numbers: dict[str, str]) -> bool:
    try:
        if not os.readlink(fd).startswith("/"):  # a socket or the like; never touch what a link may hang on
            return False
        found = os.stat(fd)
    except OSError:
        return False
    return stat.S_ISBLK(found.st_mode) and f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" in numbers


def _claimed(path: Path) -> bool:
    """Whether somebody has it for himself alone, which is what all users in the kernel do."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
