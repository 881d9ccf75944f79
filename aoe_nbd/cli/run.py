# SPDX-License-Identifier: BSD-3-Clause
"""Keep one disk attached, in the foreground: what its systemd service runs, and `attach` where there is no systemd.

Its options are those of `attach`, or else those of its line in the table. It ends on SIGTERM: a disk that nobody uses is
detached then; one that is in use stays, its requests wait, and the next start goes on with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from . import words


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    parser.add_argument("address", metavar="ADDRESS", help="e<shelf>.<slot>, such as e1.0")


def run(args: argparse.Namespace) -> int:
    """Supervise until told to end."""
    which = words.address(args.address)
    from ..host import memory, nbd, service, state, table
    from ..host.supervisor import Supervisor

    folder = state.Folder(which)
    with folder.supervising() as hand_over:
        service.log_where_it_is_read(folder)
        for failure in memory.protect():
            service.log.warning("%s", failure)
        try:
            options = folder.options()
            if options is None:
                entry = table.find(which)
                options = entry.options if entry is not None else []
            if not folder.holders() and "INVOCATION_ID" in os.environ:
                folder.hold({"systemd": 1})  # nobody's attach: the service was started by itself
            kernel, watch = nbd.Kernel(), nbd.Watch()
            supervisor = Supervisor(folder, options, kernel, watch)
            for signum in (signal.SIGTERM, signal.SIGINT):
                signal.signal(signum, supervisor.stop)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a terminal that is closed is none of our business
            again = supervisor.run()
        except (OSError, ValueError) as error:
            folder.fail(getattr(error, "strerror", None) or str(error))
            raise
        if again:
            hand_over()
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    return 0
