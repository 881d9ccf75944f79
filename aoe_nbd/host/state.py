# SPDX-License-Identifier: BSD-3-Clause
"""What is known of an attached LUN across processes: its folder /run/aoe-nbd/e1.0, and what lies in there.

    lock         held (flock) by the supervisor as long as it lives
    state.json   what the supervisor has made, so that the next one can go on with it
    holders      who wants the LUN attached, and how many times: {name: count}
    options      key=value lines of an attach by hand; without it the table has them
    failure      why the last supervisor could not start: one sentence
    nbd.sock, control, supervisor    the sockets of the bridge, of its control, of the supervisor

All of it is in memory: after a reboot nothing is attached, and nothing of it is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..wire.address import Address, parse_address

_LOCK = "AOE_NBD_LOCK"  # in the environment across an exec: the file descriptor of the lock

Pairs = list[tuple[str, str]]  # a bridge's parameters, in order


def root() -> Path:
    """/run/aoe-nbd, or $AOE_NBD_RUN."""
    return Path(os.environ.get("AOE_NBD_RUN") or "/run/aoe-nbd")


@dataclass
class State:
    """What a supervisor has made. `index` is the kernel's device, `queue` what its queue was like before."""

    index: int
    size: int  # bytes
    read_only: bool
    options: list[str] = field(default_factory=list)  # key=value
    identity: list[str] = field(default_factory=list)  # of the disk: it must stay the same
    bridge: int | None = None  # its pid, and when that process was started, so that no other is taken for it
    bridge_began: int = 0
    queue: dict[str, str] = field(default_factory=dict)
    since: float = 0.0  # s since the epoch
    starts: int = 0  # connections so far, of one bridge after another
    dead_since: float = 0.0  # s of the monotonic clock at which the device lost its last socket; 0 while it has one


class Busy(OSError):
    """The folder cannot be had: somebody else holds a lock, or it may not be changed. One sentence."""


class Folder:
    """The folder of one LUN."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.path = root() / str(address)
        self.nbd, self.control, self.supervisor = (self.path / name for name in ("nbd.sock", "control", "supervisor"))

    # -- locks -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def changing(self, patience: float = 120.0) -> Iterator[None]:
        """One attach or detach of this LUN at a time. Raises Busy after `patience` s."""
        path = root() / f".{self.address}.changing"
        limit = time.monotonic() + patience
        while True:
            try:
                root().mkdir(mode=0o755, parents=True, exist_ok=True)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except PermissionError:
                raise Busy(errno.EACCES, f"no permission to change {root()}: run it as root") from None
            except (FileExistsError, FileNotFoundError):  # another LUN's was the last there, and the folder goes with it
                if time.monotonic() > limit:
                    raise
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(path).st_ino == os.fstat(fd).st_ino:  # else whoever had it has removed it
                        break
            except BlockingIOError:
                if time.monotonic() > limit:
                    os.close(fd)
                    raise Busy(
                        None, f"another attach or detach of {self.address} is under way and does not end"
                    ) from None
                time.sleep(0.05)
            os.close(fd)
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.close(fd)
            with contextlib.suppress(OSError):
                root().rmdir()

    @contextlib.contextmanager
    def supervising(self) -> Iterator[Callable[[], None]]:
        """Be the LUN's supervisor. Raises Busy if there is one. Call what it yields to stay so across an exec."""
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = self._handed_over()
        if fd is None:
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

        def hand_over() -> None:
            os.set_inheritable(fd, True)
            os.environ[_LOCK] = str(fd)

        try:
            for left in reversed(range(20)):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not left:
                        raise Busy(None, f"{self.address} has a supervisor already, process {self.running()}") from None
                    time.sleep(0.05)  # `running` holds it for a moment when it looks
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
            yield hand_over
        finally:
            os.close(fd)

    def _handed_over(self) -> int | None:
        """The lock that this process has held before its exec."""
        fd = int(os.environ.pop(_LOCK, "-1"))
        try:
            if fd >= 0 and os.path.samestat(os.fstat(fd), os.stat(self.path / "lock")):
                os.set_inheritable(fd, False)
                return fd
        except OSError:
            pass
        return None

    def running(self) -> int | None:
        """The supervisor's pid, None if there is none."""
        try:
            with open(self.path / "lock") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0)
        except FileNotFoundError:
            pass
        return None

    # -- files -------------------------------------------------------------------------------------------------------

    def _write(self, name: str, text: str) -> None:
        self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
        fresh = self.path / f".{name}.{os.getpid()}"
        fresh.write_text(text)
        os.replace(fresh, self.path / name)

    def _read(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text()
        except FileNotFoundError:
            return None

    def _drop(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / name).unlink()

    def state(self) -> State | None:
        """What the last supervisor has made; None if nothing is, or it cannot be read."""
        try:
            found = json.loads(self._read("state.json") or "null")
            known = {f.name for f in fields(State)}  # a newer or older version may have written it
            return None if found is None else State(**{k: v for k, v in found.items() if k in known})
        except (ValueError, TypeError, AttributeError):
            return None

    def save(self, state: State) -> None:
        self._write("state.json", json.dumps(asdict(state)) + "\n")

    def holders(self) -> dict[str, int]:
        """Who wants the LUN attached, and how many times."""
        try:
            found = json.loads(self._read("holders") or "{}")
            return {str(name): int(count) for name, count in found.items()}
        except (ValueError, TypeError, AttributeError):
            return {}

    def hold(self, holders: dict[str, int]) -> None:
        self._write("holders", json.dumps(holders) + "\n")

    def options(self) -> Pairs | None:
        """The parameters of an attach by hand, None if there are none of their own."""
        text = self._read("options")
        return None if text is None else [pair(line) for line in text.splitlines() if line]

    def set_options(self, options: Pairs | None) -> None:
        if options is None:
            self._drop("options")
        else:
            self._write("options", "".join(f"{key}={value}\n" for key, value in options))

    def failure(self) -> str:
        """Why the last supervisor could not start, "" if it could."""
        return (self._read("failure") or "").strip()

    def fail(self, sentence: str) -> None:
        """Note that, or that there was no failure: ""."""
        if sentence:
            self._write("failure", sentence + "\n")
        else:
            self._drop("failure")

    def remove(self) -> None:
        """Leave nothing of it."""
        shutil.rmtree(self.path, ignore_errors=True)


def pair(text: str) -> tuple[str, str]:
    """`key=value` in its two parts."""
    key, _, value = text.partition("=")
    return key, value


def folders() -> list[Folder]:
    """Those of all LUNs that are attached or once were, by address."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(root()):
            with contextlib.suppress(ValueError):
                found.append(parse_address(name))
    return [Folder(address) for address in sorted(found)]
