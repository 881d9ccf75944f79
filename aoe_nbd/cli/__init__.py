# SPDX-License-Identifier: BSD-3-Clause
"""`aoe-nbd VERB …`: one small module a verb, and here what all of them share: being chosen, and how they end.

Whatever goes wrong ends in one sentence on stderr and a status that is not 0. Only the chosen verb's module is imported.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from .. import __version__
from .failure import Failure

VERBS = {
    "discover": "show the disks that answer",
    "identify": "show all that one disk says of itself, path by path",
    "serve": "serve a disk, or all, as NBD: runs nbdkit",
    "attach": "make a disk a block device of this host, for good",
    "detach": "give such a disk back",
    "list": "show the disks that are attached",
    "restart": "start the processes behind a disk anew, while it is in use",
    "run": "keep one disk attached, in the foreground (for systemd)",
    "target": "export files and block devices by AoE",
    "ping": "measure round trips and loss",
    "check": "check which frame sizes get through to each disk, and what should be mended",
    "config": "read, test and set a target's config string",
    "mask": "read and edit the list of hosts that a target serves",
    "reserve": "read, take and release a target's reservation",
    "status": "show how running bridges do",
    "quiesce": "return once no write of this host can land on a disk any more",
    "resume": "let the requests of a quiesced disk go on",
    "takeover": "make a disk this host's own whose owner is dead",
    "metrics": "print the figures of running bridges for Prometheus",
    "stat": "show the attached disks in the columns of aoe-stat",
    "install": "put units, udev rule, nbdkit's plugin and the table into place",
}
_MODULES = {"list": "listing"}  # where a verb's own name would hide a builtin of this module
_INTERRUPTED, _BROKEN_PIPE = 130, 141  # as a shell reports the signals


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong is one line, and no option may be abbreviated."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}: `{self.prog} --help` shows what there is\n")


def _general() -> Parser:
    listing = "\n".join(f"  {verb:<10}{meaning}" for verb, meaning in VERBS.items())
    parser = Parser("aoe-nbd", f"ATA-over-Ethernet storage as a Network Block Device.\n\nverbs:\n{listing}")
    parser.usage = "aoe-nbd [-h] [--version] VERB ..."
    parser.epilog = "`aoe-nbd VERB --help` shows the options of a verb."
    parser.add_argument("--version", action="version", version=f"aoe-nbd {__version__}")
    return parser


def module_of(verb: str) -> ModuleType:
    """The module of a verb."""
    return importlib.import_module(f".{_MODULES.get(verb, verb)}", __name__)


def _run(words: list[str]) -> int:
    if not words:
        _general().print_help(sys.stderr)
        return 2
    verb, *rest = words
    if verb not in VERBS:
        parser = _general()
        if verb.startswith("-"):
            parser.parse_args([verb])
        parser.error(f"there is no verb {verb!r}")
    module = module_of(verb)
    parser = Parser(f"aoe-nbd {verb}", (module.__doc__ or "").strip())
    module.add_arguments(parser)
    prepare = getattr(module, "prepare", None)  # for words that argparse would take for something else
    return int(module.run(parser.parse_intermixed_args(prepare(rest) if prepare else rest)))


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
    return str(error)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = f"aoe-nbd {words[0]}" if words and words[0] in VERBS else "aoe-nbd"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the locale, whatever a target sends
    try:
        try:
            status = _run(words)
        except SystemExit as end:  # argparse has said what it had to say
            status = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()  # while somebody can still deal with a closed pipe
        return status
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that nothing complains when Python flushes at its end
        return _BROKEN_PIPE
    except (Failure, OSError) as error:
        print(f"{name}: {_sentence(error)}", file=sys.stderr)
    except Exception as error:
        if os.environ.get("AOE_NBD_DEBUG"):
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        print(f"{name}: internal error, please report it ({what}); AOE_NBD_DEBUG=1 shows where", file=sys.stderr)
    return 1
