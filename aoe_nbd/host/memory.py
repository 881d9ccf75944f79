# SPDX-License-Identifier: BSD-3-Clause
"""A process that disks depend on must never wait for memory that only those disks can free.

The kernel writes dirty pages out through us when memory is short. So all that we have stays resident, what we shall need is
got ahead, what we ask for is never got by writing out (PR_SET_IO_FLUSHER), the last of the memory is ours and not that of
who has filled it (SCHED_RR), we are not the one who is killed for its memory, and the garbage collector leaves alone what was
there at the start. Each step may be forbidden (in a container, or without root): then it says so in one sentence, and the
others are taken all the same.

Call `protect` in the main thread before there are others: threads inherit what it does.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import resource
from collections.abc import Callable, Iterable

_MADV_POPULATE_WRITE = 23  # Linux 5.14
_FILES = 1024  # that may be open at once without the kernel's table of them growing
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_IO_FLUSHER = 23, 24, 38, 57
_CAPABILITY_VERSION_3 = 0x20080522

CAP_NET_RAW, CAP_IPC_LOCK = 13, 14

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _called(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _prctl(what: int, value: int) -> int:
    return int(_libc.prctl(what, value, 0, 0, 0))


def never_killed() -> None:
    """Have the kernel kill others for their memory. Raises OSError."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("-1000")


def io_flusher() -> None:
    """Have memory for this process never be got by writing out through it. Raises OSError."""
    _called(_prctl(_PR_SET_IO_FLUSHER, 1))


def real_time() -> None:
    """Be a real-time process, of the least priority: the kernel lets those have a part of its reserve (ALLOC_HARDER).

    A frame to send needs memory in the kernel's own time. With swap behind us all the rest of it is full of pages that wait
    for these frames, and whoever filled it asks for more as insistently as we do. Raises OSError.
    """
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def lock_all() -> None:
    """Keep resident what is, and what will be from when it is first used. Raises OSError.

    Not what may never be used: of threads' stacks, of libraries and of heaps that is several hundred MiB.
    """
    with contextlib.suppress(OSError, ValueError):  # not allowed to; CAP_IPC_LOCK makes up for it
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    _called(_libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT))


def heap_ahead() -> None:
    """Have what malloc has got, and not yet given out, resident now. Raises OSError."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            if line.rstrip().endswith("[heap]"):
                begin, end = (int(text, 16) for text in line.split()[0].split("-"))
                _called(_libc.madvise(begin, end - begin, _MADV_POPULATE_WRITE))


def files_ahead() -> None:
    """Have the kernel's table of our open files as large as it will ever be. Raises OSError."""
    end = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        most = min(_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        os.close(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, most - 1))
    finally:
        os.close(end)


def freeze() -> None:
    """Collect garbage once, and leave what remains alone: a collection then looks at what is under way, and at no more."""
    gc.collect()
    gc.freeze()


_STEPS: tuple[tuple[Callable[[], None], str], ...] = (
    (never_killed, "it may be killed when memory is short (oom_score_adj)"),
    (io_flusher, "it may wait for memory that only it can free (PR_SET_IO_FLUSHER)"),
    (real_time, "it may wait for the last of the memory, which others have (SCHED_RR)"),
    (files_ahead, "it may wait for memory to open a file (F_DUPFD)"),
    (heap_ahead, "it may wait for memory for its buffers (MADV_POPULATE_WRITE)"),
    (freeze, "garbage is looked for everywhere"),
    (lock_all, "its memory may be paged out (mlockall)"),
)


def protect() -> list[str]:
    """Take all steps. Returns a sentence for each that failed; none if all went well."""
    failures = []
    for step, consequence in _STEPS:
        try:
            step()
        except (OSError, AttributeError) as error:  # the latter: a C library without such a function
            why = getattr(error, "strerror", None) or str(error)
            failures.append(f"memory is not fully protected: {consequence}: {why}")
    return failures


def drop_capabilities(keep: Iterable[int] = (CAP_NET_RAW,)) -> None:
    """Give up all of root's powers but these, for good. Raises OSError.

    What was opened stays open. Without CAP_NET_RAW no link could be opened anew after its interface was made anew.
    """
    kept = set(keep)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        kept.add(CAP_IPC_LOCK)  # or locked memory could not grow
    _called(_prctl(_PR_SET_NO_NEW_PRIVS, 1))
    for capability in range(64):
        if capability not in kept and _prctl(_PR_CAPBSET_READ, capability) == 1:
            _prctl(
                _PR_CAPBSET_DROP, capability
            )  # refused without CAP_SETPCAP, which only matters to what we might execute
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    have = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low 32, then the high 32
    _called(_libc.capget(header, have))
    mask = sum(1 << capability for capability in kept)
    for half in (0, 1):
        part = mask >> 32 * half & 0xFFFFFFFF
        permitted = have[3 * half + 1] & part
        have[3 * half] = have[3 * half + 1] = permitted
        have[3 * half + 2] = 0
    _called(_libc.capset(header, have))
