# SPDX-License-Identifier: BSD-3-Clause
"""The storage behind an export: a regular file or a block device, in sectors of 512 bytes.

Every method either does all of what it was asked or raises OSError; nothing is done by halves and called done.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..link.packet import IOVEC, address_of
from ..wire.codes import SECTOR

_BLKPBSZGET = 0x127B
_BLKZEROOUT = 0x127F
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_ZEROS = bytes(1 << 20)
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.EINVAL)
_BOUNCE = 1 << 20  # bytes that are copied at a time where memory has to be aligned

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.pwritev.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
_libc.pwritev.restype = ctypes.c_ssize_t


class BackendError(Exception):
    """Storage that cannot be exported; the message is one sentence that says which, why, and what to do."""


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Backend:
    """One file or block device, open.

    Attributes: `path`, `sectors`, `read_only`, `sync` (every write is durable when it returns), `direct` (past the page
    cache), `physical_size` (bytes), `trims` (it can punch holes), `rotating`.
    """

    def __init__(
        self, path: str, read_only: bool = False, sync: bool = False, physical_size: int = 0, direct: bool = False
    ) -> None:
        """Open `path`. `physical_size` 0 is the device's own, 4096 for a file. Raises BackendError."""
        self.path, self.read_only, self.sync, self.direct = path, read_only, sync, direct
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR | (os.O_DSYNC if sync else 0))
        flags |= os.O_DIRECT if direct else 0
        try:
            mode = os.stat(path).st_mode
            self.block = stat.S_ISBLK(mode)
            if not self.block and not stat.S_ISREG(mode):
                raise BackendError(f"{path} is neither a file nor a block device: give one of these to export")
            self._file = os.fdopen(os.open(path, flags), "rb", buffering=0)  # closes itself when nobody has it any more
        except FileNotFoundError:
            raise BackendError(
                f"{path} does not exist: make it first, for example with `truncate -s 1G {path}`"
            ) from None
        except OSError as error:
            if direct and error.errno == errno.EINVAL:
                raise BackendError(f"{path} is on a file system without O_DIRECT: leave --direct out") from None
            wanted = "reading" if read_only else "writing"
            hint = "run as root" if read_only else "export it with --read-only, or run as root"
            raise BackendError(f"{path} cannot be opened for {wanted} ({error.strerror}): {hint}") from None
        self._fd = self._file.fileno()
        self._iov = np.zeros(0, IOVEC)
        self._nowait = not direct  # the page cache may be asked for what it has
        self.sectors = 0
        self.refresh()
        if not self.sectors:
            self.close()
            raise BackendError(f"{path} has capacity zero: an export needs at least {SECTOR} bytes")
        if direct:
            self._bounce = memoryview(mmap.mmap(-1, _BOUNCE))
            self._check_alignment()
        self.physical_size = physical_size or self._physical_size()
        self.rotating = self._queue("rotational") != 0
        self.trims = not read_only and self._can_punch()

    # -- what it is --------------------------------------------------------------------------------------------------

    def refresh(self) -> bool:
        """Look at the size again. Returns whether it changed."""
        before = self.sectors
        size = os.lseek(self._fd, 0, os.SEEK_END) if self.block else os.fstat(self._fd).st_size
        self.sectors = size // SECTOR
        return before != self.sectors

    def _sysfs(self) -> Path:
        device = os.fstat(self._fd).st_rdev
        return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")

    def _queue(self, name: str) -> int | None:
        """A number of the block device's queue; None for a file or where the kernel does not say."""
        if not self.block:
            return None
        for folder in (self._sysfs(), self._sysfs().resolve().parent):  # a partition's queue is its disk's
            try:
                return int((folder / "queue" / name).read_text())
            except (OSError, ValueError):
                continue
        return None

    def _physical_size(self) -> int:
        if not self.block:
            return 4096
        answer = bytearray(4)
        try:
            fcntl.ioctl(self._fd, _BLKPBSZGET, answer)
        except OSError:
            return SECTOR
        return max(SECTOR, int(struct.unpack("I", answer)[0]))

    def _can_punch(self) -> bool:
        if self.block:
            return bool(self._queue("write_zeroes_max_bytes") and self._queue("discard_max_bytes"))
        try:  # past the end there is nothing to lose
            _fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, self.sectors * SECTOR + (1 << 20), SECTOR)
        except OSError:
            return False
        return True

    def _check_alignment(self) -> None:
        """Make sure that O_DIRECT takes any sector by itself, for a client may ask for any."""
        last = (self.sectors - 1) * SECTOR
        for offset in (last, max(0, last - SECTOR)):  # one of them is odd
            try:
                self.read_into(self._bounce[SECTOR : 2 * SECTOR], offset)
            except OSError as error:
                self.close()
                if error.errno != errno.EINVAL:
                    raise BackendError(f"{self.path} cannot be read ({error.strerror}): check the storage") from None
                raise BackendError(
                    f"{self.path} takes no less than a larger block with O_DIRECT, and AoE's sectors have {SECTOR} bytes:"
                    f" leave --direct out"
                ) from None

    def identity(self) -> str:
        """What tells this storage from all others, the same after a restart or reboot: a text to hash."""
        machine = _first_line("/etc/machine-id")
        if not self.block:
            return f"{machine} {os.path.realpath(self.path)} {os.fstat(self._fd).st_ino}"
        folder = self._sysfs().resolve()
        part = _first_line(folder / "partition")
        disk = folder.parent if part else folder
        for name in ("wwid", "device/wwid", "dm/uuid", "md/uuid", "device/serial", "serial"):
            if found := _first_line(disk / name):
                return f"{name} {found} {part}"
        backing = _first_line(disk / "loop/backing_file")
        return f"{machine} {backing or os.path.realpath(self.path)} {part}"

    # -- what it does ------------------------------------------------------------------------------------------------

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset`."""
        if self.direct and address_of(buffer) % SECTOR:
            for at in range(0, len(buffer), _BOUNCE):
                part = self._bounce[: min(_BOUNCE, len(buffer) - at)]
                self.read_into(part, offset + at)
                buffer[at : at + len(part)] = part
            return
        done = os.preadv(self._fd, [buffer], offset)
        while done < len(buffer):
            n = os.preadv(self._fd, [buffer[done:]], offset + done)
            if n <= 0:
                raise OSError(errno.EIO, "the storage ends here: it shrank")
            done += n

    def read_runs(self, buffer: memoryview, size: int, runs: Sequence[tuple[int, int, int]]) -> None:
        """For each (lba, first, last) fill shares `first` to `last` - 1 of `buffer`, of `size` bytes each, from sector `lba`."""
        ask = self._nowait and len(runs) > 1
        for index, (lba, first, last) in enumerate(runs):
            part = buffer[first * size : last * size]
            if ask:
                try:
                    if os.preadv(self._fd, [part], lba * SECTOR, os.RWF_NOWAIT) == len(part):
                        continue
                except OSError as error:
                    self._nowait = error.errno != errno.EOPNOTSUPP
                # Not in the page cache: the disk is to fetch all the others while we wait for the first.
                ask = False
                for lba_, first_, last_ in runs[index:]:
                    os.posix_fadvise(self._fd, lba_ * SECTOR, (last_ - first_) * size, os.POSIX_FADV_WILLNEED)
            self.read_into(part, lba * SECTOR)

    def write(self, data: memoryview | bytes, offset: int) -> None:
        """Write all of `data` at byte `offset`."""
        if self.direct and address_of(data) % SECTOR:
            for at in range(0, len(data), _BOUNCE):
                part = self._bounce[: min(_BOUNCE, len(data) - at)]
                part[:] = data[at : at + len(part)]
                self.write(part, offset + at)
            return
        done = os.pwrite(self._fd, data, offset)
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)

    def _describe(self, rows: np.ndarray[Any, Any], size: int) -> None:
        """Have `_iov` name all rows."""
        count = len(rows)
        if count > len(self._iov):
            self._iov = np.zeros(count, IOVEC)
            self._iov_at, self._index = address_of(self._iov), np.arange(count)
            self._bases, self._lengths = self._iov["base"], self._iov["length"]
        self._bases[:count] = self._index[:count] * rows.strides[0] + address_of(rows[0])
        self._lengths[:count] = size

    def write_rows(self, rows: np.ndarray[Any, Any], runs: Iterable[tuple[int, int, int]]) -> None:
        """For each (lba, first, last) write rows[first:last], one behind the other, at sector `lba`."""
        size, described = rows.shape[1], False
        for lba, first, last in runs:
            offset = lba * SECTOR
            if last - first == 1:
                self.write(rows[first].data, offset)
            elif self.direct:
                self.write(np.ascontiguousarray(rows[first:last]).reshape(-1).data, offset)
            else:
                if not described:
                    described = True
                    self._describe(rows, size)
                at = self._iov_at + first * IOVEC.itemsize
                if _libc.pwritev(self._fd, at, last - first, offset) != (last - first) * size:
                    for i in range(first, last):  # what was wrong is said by the row that it is wrong with
                        self.write(rows[i].data, offset + (i - first) * size)

    def flush(self) -> None:
        """Return when all that was written is on stable storage."""
        os.fdatasync(self._fd)

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, giving its space back where that can be done."""
        try:
            _fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        if self.block:
            try:
                fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
                return
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
        while length > 0:
            n = min(length, len(_ZEROS))
            self.write(_ZEROS[:n], offset)
            offset, length = offset + n, length - n

    def close(self) -> None:
        self._file.close()


def _first_line(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def serial_of(address: str, identity: str) -> str:
    """The 20-character serial number of one export: the same for as long as address and storage are."""
    return hashlib.blake2b(f"{address} {identity}".encode(), digest_size=10).hexdigest()


def wwn_of(serial: str) -> int:
    """A World Wide Name for a serial number: NAA 3, assigned locally, and 60 bits that follow from it."""
    digest = hashlib.blake2b(serial.encode(), digest_size=8, person=b"aoe-nbd wwn").digest()
    return 3 << 60 | int.from_bytes(digest) >> 4
