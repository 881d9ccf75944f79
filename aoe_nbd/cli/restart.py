# SPDX-License-Identifier: BSD-3-Clause
"""Start the processes behind a disk anew, with the program that is installed now; whoever uses the disk only waits a moment."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import words
from .failure import Failure
from .show import waiting, warn

if TYPE_CHECKING:
    from ..host.state import Folder

_PATIENCE = 300.0  # s until it is served again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.usage = f"{parser.prog} ADDRESS|--all"
    parser.add_argument("address", nargs="?", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")
    parser.add_argument("--all", action="store_true", help="every disk that is attached, at the same time")


def run(args: argparse.Namespace) -> int:
    """Restart one, or all; one that fails does not hinder the others."""
    from ..host.state import Folder, folders

    if args.all == (args.address is not None):
        raise Failure("which disk? give its ADDRESS, such as e1.0, or --all")
    if not args.all:
        with waiting(f"restarting {args.address} …"):
            restart(Folder(words.address(args.address)))
        return 0

    def one(folder: Folder) -> bool:
        try:
            restart(folder)
        except (Failure, OSError) as error:
            warn("restart", str(error) if isinstance(error, Failure) else error.strerror or str(error))
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        return 0 if all(list(pool.map(one, [f for f in folders() if f.running() is not None]))) else 1


def restart(folder: Folder) -> None:
    """Have it restarted, and wait until the device is served again. Raises Failure and OSError."""
    from ..host import control

    if folder.running() is None:
        raise Failure(f"{folder.address} has no supervisor here: `aoe-nbd attach {folder.address}` starts one")
    client = control.Client(folder.supervisor, f"supervisor of {folder.address}")
    before = client.ask("restart")
    limit = time.monotonic() + _PATIENCE
    problem = ""
    while time.monotonic() < limit:
        time.sleep(0.1)
        try:
            now = client.ask("status")
        except control.ControlError as error:
            problem = error.strerror or str(error)
            if folder.running() is None and folder.failure():
                raise Failure(f"{folder.address} did not come back: {folder.failure()}") from None
            continue
        problem = now["problem"]
        if now["starts"] > before["starts"] and now["state"] == "up":
            return
    raise Failure(f"{folder.address} is not served again yet, and its requests wait: {problem or 'see its log'}")
