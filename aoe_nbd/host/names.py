# SPDX-License-Identifier: BSD-3-Clause
"""The names that aoe users know: /dev/etherd/e1.0 is a link to /dev/nbd0, /dev/etherd/e1.0p1 one to /dev/nbd0p1.

Where udev runs, its rule (plugin/udev) makes the same links, and systemd's device units with them; both ways agree, and
each puts up with the other's having been first. Here they are made in any case, so that they are there when `attach`
returns, and on hosts without udev. A name that the kernel's own aoe module has taken is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from pathlib import Path

from ..wire.address import Address

DEV, SYS = Path("/dev"), Path("/sys")
_OURS = re.compile(r"\.\./nbd[0-9]+(p[0-9]+)?")  # what a link of ours, or of the udev rule, points to
_KOBJECT_UEVENT = 15  # the netlink family, NETLINK_KOBJECT_UEVENT
_TRIES = 10
_FROM_KERNEL = 1  # its multicast group; udev's own events are in group 2


class NameTaken(OSError):
    """A name that belongs to somebody else; the message is one sentence."""


def path_of(address: Address, dev: Path = DEV) -> Path:
    """/dev/etherd/e1.0."""
    return dev / "etherd" / str(address)


def _current(link: Path) -> str | None:
    """Where a link points, None if there is no such file. Raises NameTaken for what is no link of ours."""
    try:
        target = os.readlink(link)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        kernels = stat.S_ISBLK(os.lstat(link).st_mode)
        what = "is a device of the kernel's aoe module: detach it there (`rmmod aoe`)" if kernels else "is no link"
        raise NameTaken(errno.EEXIST, f"{link} {what}") from None
    if not _OURS.fullmatch(target):
        raise NameTaken(errno.EEXIST, f"{link} is a link to {target}, which is no nbd device: remove it first")
    return target


def check(address: Address, dev: Path = DEV) -> None:
    """Raises NameTaken if the LUN's name belongs to somebody else: to be asked before anything is attached."""
    _current(path_of(address, dev))


def _wanted(address: Address, index: int, sys: Path) -> dict[str, str]:
    """The names that there should be, and where they point."""
    disk = f"nbd{index}"
    wanted = {str(address): f"../{disk}"}
    for part in (sys / "block" / disk).glob(f"{disk}p*/partition"):
        wanted[f"{address}p{part.read_text().strip()}"] = f"../{part.parent.name}"
    return wanted


def _present(address: Address, dev: Path) -> set[str]:
    """The names of this LUN and its partitions that there are."""
    folder = dev / "etherd"
    return {name for name in os.listdir(folder) if re.fullmatch(rf"{re.escape(str(address))}(p[0-9]+)?", name)}


def _point(link: Path, target: str) -> None:
    """Make or correct a link; there is no moment at which an existing one is missing."""
    if _current(link) == target:
        return
    fresh = link.with_name(f".{link.name}.new")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    fresh.rename(link)


def refresh(address: Address, index: int, dev: Path = DEV, sys: Path = SYS) -> None:
    """Have the LUN's names be those of /dev/nbd`index` and its partitions as they are now. Raises NameTaken and OSError.

    What is too many stays, for `prune`.
    """
    check(address, dev)
    for left in reversed(range(_TRIES)):
        try:
            (dev / "etherd").mkdir(mode=0o755, exist_ok=True)
            for name, target in _wanted(address, index, sys).items():
                _point(dev / "etherd" / name, target)
            return
        except FileNotFoundError:  # udev, or a neighbour's `remove`, was there at the same moment
            if not left:
                raise


def prune(address: Address, index: int, dev: Path = DEV, sys: Path = SYS) -> None:
    """Remove the names of partitions that are no more. Raises NameTaken and OSError.

    Not to be done at each event: whoever reads the partition table again, as udev does when a writer has closed the
    disk, takes all partitions away for a moment, and their names would be missing for longer than they.
    """
    with contextlib.suppress(FileNotFoundError):
        for name in _present(address, dev) - _wanted(address, index, sys).keys():
            _drop(dev / "etherd" / name)


def make(address: Address, index: int, dev: Path = DEV, sys: Path = SYS) -> Path:
    """Make the names right, and have udev look at the device again. Returns /dev/etherd/e1.0.

    The kernel's own events come before it lets `backend` be seen, by which udev's rule knows the device.
    """
    refresh(address, index, dev, sys)
    prune(address, index, dev, sys)
    _announce(index, sys)
    return path_of(address, dev)


def remove(address: Address, index: int | None = None, dev: Path = DEV, sys: Path = SYS) -> None:
    """Remove the LUN's names, after the device `index` was disconnected; what belongs to somebody else stays."""
    with contextlib.suppress(FileNotFoundError):
        for name in _present(address, dev):
            with contextlib.suppress(NameTaken):
                _drop(dev / "etherd" / name)
    with contextlib.suppress(OSError):  # others' names are still there
        (dev / "etherd").rmdir()
    if index is not None:
        _announce(index, sys)


def _drop(link: Path) -> None:
    """Remove a link of ours. Raises NameTaken if it is another's."""
    if _current(link) is not None:
        with contextlib.suppress(FileNotFoundError):
            link.unlink()


def _announce(index: int, sys: Path) -> None:
    """Have the kernel tell udev that the disk and its partitions may have changed."""
    disk = sys / "block" / f"nbd{index}"
    for uevent in (disk / "uevent", *disk.glob(f"nbd{index}p*/uevent")):
        with contextlib.suppress(OSError):  # the device has gone, or nobody may: then there is nobody to tell
            uevent.write_text("change\n")


def about(index: int) -> re.Pattern[bytes]:
    """What an event begins with that is about the device or one of its partitions."""
    return re.compile(rb"[a-z]+@/devices/virtual/block/nbd%d(/[^\0]*)?\0" % index)


class Uevents:
    """The kernel's events about one nbd device, for somebody's poll: whenever `fileno` is readable, ask `changed`."""

    def __init__(self, index: int) -> None:
        self._about = about(index)
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, _KOBJECT_UEVENT)
        try:
            self._socket.bind((0, _FROM_KERNEL))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The socket, to be polled for reading."""
        return self._socket.fileno()

    def changed(self) -> bool:
        """Take all events there are; whether one was about the device, or some were lost, so that `refresh` is due."""
        found = False
        while True:
            try:
                message, sender = self._socket.recvfrom(16384)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
                continue
            if sender[0] == 0 and self._about.match(message):  # 0 is the kernel
                found = True

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
