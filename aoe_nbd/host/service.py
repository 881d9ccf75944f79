# SPDX-License-Identifier: BSD-3-Clause
"""How a supervisor is run: as a systemd service where there is one, else as a daemon of our own. And how it reports.

In both ways it says by sd_notify(3) that the device is ready, and in the folder's `failure` why it could not be.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import logging.handlers
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ..wire.address import Address
from .state import Folder

log = logging.getLogger("aoe_nbd")

SYSTEMD = Path("/run/systemd/system")
_UNITS = tuple(
    Path(root) / "systemd/system/aoe-nbd@.service" for root in ("/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib")
)
_LOG_MOST = 1 << 20  # bytes of a daemon's own log, where there is no syslog; twice that with the one before


class ServiceError(OSError):
    """A supervisor that did not start or end; the message is one sentence."""


def unit(address: Address) -> str:
    return f"aoe-nbd@{address}.service"


def managed() -> bool:
    """Whether systemd runs here and knows our units."""
    return SYSTEMD.is_dir() and any(path.exists() for path in _UNITS)


# -- from outside ----------------------------------------------------------------------------------------------------


def start(folder: Folder, patience: float) -> None:
    """Have a supervisor run, and wait until its device is ready. Raises ServiceError with the reason."""
    folder.fail("")
    if managed():
        done = _systemctl("start", folder.address)
        if done.returncode:
            what = done.stderr.strip().splitlines()
            raise ServiceError(
                errno.EIO, folder.failure() or f"systemd did not start {unit(folder.address)}: {what[-1:]}"
            )
        return
    _spawn(folder, patience)


def stop(folder: Folder, patience: float = 30.0) -> None:
    """Have it end, and wait for that. Nothing to do is right. Raises ServiceError."""
    pid = folder.running()
    if managed():
        _systemctl("stop", folder.address)  # also where it is only about to be restarted
        _systemctl("reset-failed", folder.address)
    elif pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + patience
    while (pid := folder.running()) is not None:
        if time.monotonic() > limit:
            raise ServiceError(errno.ETIMEDOUT, f"{folder.address}: its supervisor, process {pid}, does not end")
        time.sleep(0.05)


def _systemctl(verb: str, address: Address) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", verb, unit(address)], capture_output=True, text=True, check=False)


def going_down() -> bool:
    """Whether systemd is stopping the whole host."""
    if not managed():
        return False
    done = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "stopping"


def command(address: Address) -> list[str]:
    """The supervisor's own command line: this Python, this package."""
    return [sys.executable, "-P", "-m", "aoe_nbd", "run", str(address)]


def _spawn(folder: Folder, patience: float) -> None:
    """Start a daemon: a session of its own that no terminal can end, nothing inherited but the environment."""
    package = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))}
    name = f"\0aoe-nbd-ready-{os.getpid()}-{folder.address}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(name)
        daemon = subprocess.Popen(
            command(folder.address),
            cwd="/",
            env={**env, "NOTIFY_SOCKET": "@" + name[1:]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        ended = os.pidfd_open(daemon.pid)
        try:
            limit = time.monotonic() + patience
            while True:
                can, _, _ = select.select([ready.fileno(), ended], [], [], max(0.0, limit - time.monotonic()))
                if ready.fileno() in can and b"READY=1" in ready.recv(4096).split(b"\n"):
                    daemon.returncode = 0  # it is not our child to wait for any more
                    return
                if ended in can:
                    status = daemon.wait()
                    raise ServiceError(errno.EIO, folder.failure() or f"its supervisor ended with status {status}")
                if not can:
                    raise ServiceError(errno.ETIMEDOUT, f"{folder.address} is not ready after {patience:g} s")
        except BaseException:
            if daemon.poll() is None:
                daemon.terminate()
                daemon.wait()
            raise
        finally:
            os.close(ended)


# -- from inside -----------------------------------------------------------------------------------------------------


def notify(text: str) -> None:
    """Tell whoever has started us: sd_notify(3)."""
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.connect("\0" + name[1:] if name[0] == "@" else name)
        end.send(text.encode())


def log_where_it_is_read(folder: Folder) -> None:
    """Under systemd and on a terminal stderr is read; a daemon's is not, so there syslog, or else a file that stays small."""
    log.setLevel(logging.INFO)
    log.propagate = False
    handler: logging.Handler = logging.StreamHandler()
    if os.path.samestat(os.fstat(2), os.stat(os.devnull)):
        if os.path.exists("/dev/log"):
            with contextlib.suppress(OSError):
                handler = logging.handlers.SysLogHandler("/dev/log", logging.handlers.SysLogHandler.LOG_DAEMON)
        else:
            handler = logging.handlers.RotatingFileHandler(folder.path / "log", maxBytes=_LOG_MOST, backupCount=1)
    form = "aoe-nbd: %(message)s"
    if isinstance(handler, logging.FileHandler):
        form = "%(asctime)s %(message)s"
    elif "JOURNAL_STREAM" in os.environ:
        form = "%(message)s"  # the journal adds the name by itself
    handler.setFormatter(logging.Formatter(form))
    log.handlers[:] = [handler]
