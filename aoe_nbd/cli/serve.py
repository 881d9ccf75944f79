# SPDX-License-Identifier: BSD-3-Clause
"""Serve a disk as NBD on a Unix socket: finds nbdkit and this package's plugin, and runs them with the right arguments.

With --all-by-export-name each client chooses its disk by the NBD export name, e<shelf>.<slot>. nbdkit goes to the
background once the disk is attached, unless --foreground. What follows -- is for nbdkit: options and filters go before
the plugin, filter parameters (key=value) after it; with a listening option there (-p 10809) no socket is made.
"""

# Nothing here adds nbdkit's blocksize filter: the plugin carries out requests of any size and alignment by itself, under
# the lock that also keeps a neighbour's bytes in the same sector whole. A filter's own lock knows nothing of that one.

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..host.command import PLUGIN, environment, find_nbdkit
from . import parameters
from .failure import Failure
from .words import whole

_SOCKET_MOST = 107  # bytes of a Unix socket's path
_THREADS = 16  # requests of one client at once; more do not make it faster


def prepare(words: list[str]) -> list[str]:
    """Keep what follows -- away from argparse, which would look for options in it."""
    if "--" not in words:
        return words
    at = words.index("--")
    return [*words[:at], *(f"--nbdkit={word}" for word in words[at + 1 :])]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`: its own, and one for each parameter of the plugin."""
    parser.usage = f"{parser.prog} ADDRESS|--all-by-export-name [-i IF] [options] [-- nbdkit's own]"
    add = parser.add_argument
    add("address", nargs="?", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    add("--all-by-export-name", action="store_true", help="serve every disk: the NBD export name chooses")
    add("--socket", metavar="PATH", help="Unix socket (default: /run/aoe-nbd/ADDRESS.sock, or in $XDG_RUNTIME_DIR)")
    add("--threads", default=str(_THREADS), help=f"requests of one client that are carried out at once ({_THREADS})")
    add("--foreground", action="store_true", help="stay: this process becomes nbdkit")
    add("--dry-run", action="store_true", help="print the command, and do nothing")
    parameters.declare(parser)
    add("--nbdkit", action="append", default=[], help=argparse.SUPPRESS)


def listens(words: Sequence[str]) -> bool:
    """Whether these words of nbdkit's say where it listens."""
    return any(re.match(r"-[psU]|--(port|single|unix|vsock|run)(=|$)", word) for word in words)


class Plan(NamedTuple):
    """What to run. `socket` is None if nbdkit's own arguments say where it listens."""

    name: str
    command: list[str]
    socket: str | None
    pidfile: str | None


def chosen(args: argparse.Namespace) -> tuple[str, list[str]]:
    """(address or "", the plugin's parameters). Raises Failure."""
    if args.all_by_export_name and args.address is not None:
        raise Failure(f"{args.address} and --all-by-export-name exclude each other: give one of them")
    if not args.all_by_export_name and args.address is None:
        raise Failure("which disk? give its ADDRESS, such as e1.0, or --all-by-export-name")
    address, pairs = parameters.check(args.address, parameters.given(args))
    return str(address or ""), [f"{key}={value}" for key, value in pairs]


def default_socket(name: str) -> str:
    """Where the socket goes if nobody says."""
    if os.geteuid() == 0:
        return f"/run/aoe-nbd/{name}.sock"
    folder = os.environ.get("XDG_RUNTIME_DIR")
    if not folder:
        raise Failure("there is no folder for the socket ($XDG_RUNTIME_DIR is not set): give --socket PATH")
    return f"{folder}/aoe-nbd/{name}.sock"


def plan(args: argparse.Namespace, nbdkit: str) -> Plan:
    """The command for these options. Raises Failure."""
    address, pairs = chosen(args)
    name = address or "all"
    threads = whole("--threads", args.threads, 1, 256)
    before = [word for word in args.nbdkit if not re.match(r"[A-Za-z][\w.-]*=", word)]
    after = [word for word in args.nbdkit if word not in before]
    command = [nbdkit, *(["--foreground"] if args.foreground else []), "--threads", str(threads)]
    path = pidfile = None
    if not listens(before):
        path = os.path.abspath(args.socket or default_socket(name))
        if len(os.fsencode(path)) > _SOCKET_MOST:
            raise Failure(f"{path} is too long for a Unix socket: at most {_SOCKET_MOST} bytes")
        command += ["--unix", path]
        control = f"{path.removesuffix('.sock')}.control"  # where `aoe-nbd status` looks
        if args.control is None and len(os.fsencode(control)) <= _SOCKET_MOST:
            pairs.insert(0, f"control={control}")
        if not args.foreground and not any(re.match("-P|--pid", word) for word in before):
            pidfile = f"{path.removesuffix('.sock')}.pid"
            command += ["--pidfile", pidfile]
    elif args.socket:
        raise Failure(f"--socket {args.socket} and {shlex.join(before)} both say where to listen: give one of them")
    return Plan(name, [*command, *before, "python", str(PLUGIN), *pairs, *after], path, pidfile)


def make_room(path: str) -> str | None:
    """Have nothing at the socket's place, and its folder, which is returned if it had to be made.

    Raises Failure if something serves there already.
    """
    folder = os.path.dirname(path)
    made = None if os.path.isdir(folder) else folder
    os.makedirs(folder, mode=0o755, exist_ok=True)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return made
    if not stat.S_ISSOCK(found.st_mode):
        raise Failure(f"{path} exists and is no socket: give another --socket PATH")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        if client.connect_ex(path) == errno.ECONNREFUSED:  # what an nbdkit leaves behind when it ends
            os.unlink(path)
            return made
    raise Failure(f"something serves on {path} already: end it first, or give another --socket PATH")


def lines(which: Plan, pid: str | None) -> list[str]:
    """How to use what is served now."""
    if which.socket is None:
        return []
    name = ["-N", "e1.0"] if which.name == "all" else []
    client = shlex.join(["nbd-client", "-unix", which.socket, *name, "/dev/nbd0"])
    found = [f"socket: {which.socket}", f"attach: {client}{'   (or another export name)' if name else ''}"]
    return [*found, f"end:    kill {pid}"] if pid else found


def run(args: argparse.Namespace) -> int:
    """Run nbdkit; returns only if it went to the background, or could not."""
    nbdkit = find_nbdkit()
    which = plan(args, nbdkit)
    env = environment(nbdkit)
    if args.dry_run:
        ours = shutil.which("python3") == os.path.join(env["PATH"].split(":")[0], "python3")
        print(shlex.join(which.command if ours else ["env", f"PATH={env['PATH']}", *which.command]))
        return 0
    made = make_room(which.socket) if which.socket else None
    if args.foreground:
        print("\n".join(lines(which, None)), flush=True)
        os.execve(nbdkit, which.command, env)
    if which.pidfile:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(which.pidfile)
    if sys.stderr.isatty():
        print(f"attaching {which.name} …", file=sys.stderr)  # no spinner: nbdkit writes here too
    status = subprocess.run(which.command, env=env, check=False, stdin=subprocess.DEVNULL).returncode
    if status:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(made)
        return status if status > 0 else 1
    for line in lines(which, _pid(which.pidfile)):
        print(line)
    return 0


def _pid(pidfile: str | None) -> str | None:
    """The process id that nbdkit writes a moment after it has gone to the background."""
    deadline = time.monotonic() + 2
    while pidfile and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if (text := Path(pidfile).read_text()).endswith("\n"):
                return text.strip()
        time.sleep(0.01)
    return None
