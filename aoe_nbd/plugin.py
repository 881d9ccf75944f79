# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit's Python plugin: its parameters and callbacks, and nothing else.

    nbdkit python aoe_nbd/plugin.py mac=02:00:00:00:00:01 shelf=1 slot=0

nbdkit runs this file as a script, from a checkout or from an installed package; nothing else may import it but
`nbdkit-aoe-plugin`, which stands in nbdkit's own folder for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# nbdkit puts no folder of ours on the path, and __file__ is only there while the top level runs.
_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if _root not in sys.path:
    sys.path.insert(0, _root)

import nbdkit  # noqa: E402

from aoe_nbd import COMPILED, __version__  # noqa: E402
from aoe_nbd.bridge import Bridge, log_to_stderr  # noqa: E402
from aoe_nbd.device import Device  # noqa: E402
from aoe_nbd.host.clients import Clients  # noqa: E402
from aoe_nbd.host.control import Server  # noqa: E402
from aoe_nbd.host.verbs import Verbs  # noqa: E402
from aoe_nbd.lateness import Lateness  # noqa: E402
from aoe_nbd.options import PARAMETERS, OptionError, Options  # noqa: E402
from aoe_nbd.threadstate import Pins, share_lock  # noqa: E402

API_VERSION = 2
_WATCH = 0.25  # s between looks for requests that are stuck
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2

_options = Options()
_bridge = Bridge(_options)
_clients = Clients()
_control: Server | None = None
_lateness = Lateness()
_pins = Pins(False)


class AoeError(Exception):
    """What nbdkit shows: one sentence."""


def _refuse(error: Exception) -> AoeError:
    """The exception to raise for `error`, with nbdkit told the errno."""
    code = getattr(error, "errno", None) or errno.EINVAL
    nbdkit.set_error(code)
    return AoeError(getattr(error, "strerror", None) or str(error))


def _end(error: Exception) -> None:
    """Say why the bridge cannot be, on the user's terminal, and end: nbdkit would put a traceback around the sentence."""
    sys.stderr.write(f"nbdkit: aoe: {getattr(error, 'strerror', None) or error}\n")
    sys.stderr.flush()
    if _control is not None:
        _control.close()
    _bridge.stop()
    os._exit(1)


def dump_plugin() -> None:
    """`nbdkit … --dump-plugin`: the parameters, for nbdkit's --help cannot show them."""
    print(f"aoe_nbd_version={__version__}")
    print(f"aoe_nbd_compiled={str(COMPILED).lower()}")
    for parameter in PARAMETERS:
        print(f"aoe_{parameter.name.replace('-', '_')}={parameter.default}  # {parameter.meaning}")
    sys.stdout.flush()


def config(key: str, value: str) -> None:
    try:
        _options.set(key, value)
    except OptionError as error:
        _end(error)


def config_complete() -> None:
    try:
        _options.complete()
    except OptionError as error:
        _end(error)


def thread_model() -> int:
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def get_ready() -> None:
    """Still privileged and on the terminal: open the links, find the target, and say clearly why not."""
    log_to_stderr(_options.debug)
    global _control
    try:
        if _options.control:
            _control = Verbs(_bridge, _clients).serve(_options.control)
        _bridge.ready()
    except (OSError, OptionError) as error:
        _end(error)


def after_fork() -> None:
    global _pins
    _pins = Pins(_options.pin_threads)
    share_lock(0)
    _bridge.start()
    if _control is not None:
        _control.start()
    if _options.hang_up:
        _end_as_by_a_crash()
    else:
        pause = ctypes.CDLL(None).nbdkit_nanosleep
        threading.Thread(target=_watch_and_fail, args=(pause,), name="aoe-shutdown", daemon=True).start()


def _end_as_by_a_crash() -> None:
    """Told to end, be gone at once and without a word: who connects anew asks again, and no request fails.

    nbdkit's own way would answer by an error whatever comes in until its clients have gone. A terminal that is closed is
    no reason to end.
    """
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(each, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    libc, found = ctypes.CDLL(None), ctypes.c_int()
    libc.prctl(_PR_GET_PDEATHSIG, ctypes.byref(found), 0, 0, 0)
    if found.value:  # --exit-with-parent
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _watch_and_fail(pause: Callable[[int, int], int]) -> None:
    """On shutdown, fail what waits: nbdkit waits for it before it ends, and a dead target would let none return.

    Only nbdkit_nanosleep tells of a shutdown, and it complains on stderr then; so ask it only while requests are stuck.
    (Not nbdkit.nanosleep, which holds the GIL.)
    """
    before = -1
    while True:
        finished = _bridge.stuck_at()
        if finished is None or finished != before:
            before = -1 if finished is None else finished
            time.sleep(_WATCH)
        elif pause(0, int(_WATCH * 1e9)) != 0:
            _bridge.abandon(errno.ESHUTDOWN, "nbdkit is shutting down")
            time.sleep(_WATCH)  # for the replies that say so
            _clients.hang_up()  # of those who stay on, for nbdkit waits for them
            return


def cleanup() -> None:
    if _control is not None:
        _control.close()
    _bridge.stop()


def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    return _bridge.exports()


def default_export(readonly: bool, is_tls: bool) -> str:
    return str(_options.address or "")


def open(readonly: bool) -> Device:
    try:
        device = _bridge.device(nbdkit.export_name())
    except (OSError, OptionError) as error:
        raise _refuse(error) from None
    _clients.came()
    share_lock(_clients.count)
    return device


def close(h: Device) -> None:
    _clients.went()
    share_lock(_clients.count)
    _pins.reap()


def export_description(h: Device) -> str:
    return h.describe()


def get_size(h: Device) -> int:
    return h.size


def block_size(h: Device) -> tuple[int, int, int]:
    return h.block_size


def is_rotational(h: Device) -> bool:
    return h.identify.rotating


def can_write(h: Device) -> bool:
    return h.can_write


def can_flush(h: Device) -> bool:
    return h.can_flush


def can_fua(h: Device) -> int:
    if h.native_fua:
        return int(nbdkit.FUA_NATIVE)
    return int(nbdkit.FUA_EMULATE if h.can_flush else nbdkit.FUA_NONE)


def can_multi_conn(h: Device) -> bool:
    return True  # all clients share one initiator, and the target holds the only cache


def can_trim(h: Device) -> bool:
    return h.can_trim


def can_zero(h: Device) -> bool:
    return h.can_zero


def pread(h: Device, buf: Any, offset: int, flags: int) -> None:
    _pins.pin()
    began = time.monotonic()
    _bridge.affinity.look(began)
    try:
        h.read(memoryview(buf), offset)
    except OSError as error:
        raise _refuse(error) from None
    finally:
        _lateness.settle(began)


def pwrite(h: Device, buf: Any, offset: int, flags: int) -> None:
    _pins.pin()
    began = time.monotonic()
    _bridge.affinity.look(began)
    try:
        h.write(memoryview(buf), offset, bool(flags & nbdkit.FLAG_FUA))
    except OSError as error:
        raise _refuse(error) from None
    finally:
        _lateness.settle(began)


def flush(h: Device, flags: int) -> None:
    _pins.pin()
    began = time.monotonic()
    try:
        h.flush()
    except OSError as error:
        raise _refuse(error) from None
    finally:
        _lateness.settle(began)


def trim(h: Device, count: int, offset: int, flags: int) -> None:
    _pins.pin()
    began = time.monotonic()
    try:
        h.trim(offset, count)
        if flags & nbdkit.FLAG_FUA:
            h.flush()
    except OSError as error:
        raise _refuse(error) from None
    finally:
        _lateness.settle(began)


def zero(h: Device, count: int, offset: int, flags: int) -> None:
    _pins.pin()
    began = time.monotonic()
    if not flags & nbdkit.FLAG_MAY_TRIM:
        nbdkit.set_error(errno.EOPNOTSUPP)  # keep it allocated: nbdkit writes zeros then
        raise AoeError("zero without trim")
    try:
        h.zero(offset, count)
        if flags & nbdkit.FLAG_FUA:
            h.flush()
    except OSError as error:
        raise _refuse(error) from None
    finally:
        _lateness.settle(began)
