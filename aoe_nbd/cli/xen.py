# SPDX-License-Identifier: BSD-3-Clause
"""Xen's hotplug script block-aoe, as libxl calls it: one word, and the disk's place in xenstore in the environment.

What goes wrong is one sentence in the disk's `hotplug-error`, which xl prints. What is done is noted in xen-hotplug.log, as
Xen's own scripts do. libxl kills a script after 40 s, so this one gives up before, says so, and undoes what it has begun. What
it does not manage to undo is undone by `remove`, which libxl calls then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from ..host import child, state, xen
from ..host.xenstore import Store
from ..wire.address import Address
from .attach import attach
from .detach import detach
from .failure import Failure

LIMIT = 35.0  # s since libxl has started it; the rest of the 40 s is for undoing
LOG = "/var/log/xen/xen-hotplug.log"


class TimesUp(Exception):
    """LIMIT has passed."""


def main() -> int:
    """Add or remove the disk at XENBUS_PATH. Returns the exit status."""
    action, path = " ".join(sys.argv[1:]), os.environ.get("XENBUS_PATH", "")

    def note(text: str) -> None:
        line = f"block-aoe {action} {path}: {text}"
        with contextlib.suppress(OSError), open(LOG, "a") as log:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, f"({_age():.1f} s)", file=log)

    try:
        if action not in ("add", "remove"):
            raise xen.Refusal("libxl calls it, with add or remove")
        vbd = xen.of_path(path)
        with contextlib.closing(Store()) as store:
            hotplug = xen.Hotplug(store, _attach, _detach, note)
            if action == "add":
                note(_add(hotplug, vbd))
            else:
                with _limited(lambda sentence: None):
                    hotplug.remove(vbd)
                note("done")
    except Exception as error:
        note(_sentence(error))
        print(f"block-aoe: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


def _add(hotplug: xen.Hotplug, vbd: xen.Vbd) -> str:
    """Raises what went wrong, having told libxl."""

    def tell(sentence: str) -> None:
        # By a connection of its own: the other may be waiting for an answer just now
        with contextlib.closing(Store()) as store:
            store.write(f"{vbd.path}/hotplug-error", sentence)
            store.write(f"{vbd.path}/hotplug-status", "error")

    try:
        with _limited(tell):
            return hotplug.add(vbd)
    except TimesUp:
        raise
    except Exception as error:
        tell(_sentence(error))
        raise


@contextlib.contextmanager
def _limited(tell: Callable[[str], None]) -> Iterator[None]:
    """Once LIMIT has passed, tell so, and raise TimesUp in what is within."""

    def end(signum: int, frame: FrameType | None) -> None:
        sentence = f"not done within {LIMIT:g} s: see `aoe-nbd list`, `aoe-nbd discover` and {LOG}"
        with contextlib.suppress(OSError):
            tell(sentence)
        raise TimesUp(sentence)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(0.01, LIMIT - _age()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _age() -> float:
    """Seconds since this process was started: on a busy host Python itself takes its time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - child.began(os.getpid()) / os.sysconf("SC_CLK_TCK")


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, (ValueError, TimesUp)):
        return str(error)
    return f"internal error, please report it ({type(error).__name__}: {error})"


def _attach(
    address: Address, given: state.Pairs, holder: str, *, once: bool, admit: Callable[[state.Folder], None]
) -> str:
    try:
        return attach(address, given, holder, once=once, admit=admit)
    except Failure as error:
        raise xen.Refusal(str(error)) from None


def _detach(address: Address, holder: str) -> Mapping[str, int]:
    try:
        return detach(address, holder)
    except Failure as error:
        raise xen.Refusal(str(error)) from None
