# SPDX-License-Identifier: BSD-3-Clause
"""`scripts/bench NAME ...`: find the benchmark and run it. A new one is a module here and a name in `BENCHMARKS`.

Without a name it is the first of them.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

from .measure import FAILURES

BENCHMARKS = ("speed", "anatomy", "loss")


def with_name(words: list[str]) -> list[str]:
    """The words of the command line, the benchmark's name in front even where it was left out."""
    if words and (not words[0].startswith("-") or words[0] in ("-h", "--help")):
        return words
    return [BENCHMARKS[0], *words]


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that namespaces and programs are taken down
    parser = argparse.ArgumentParser(prog="scripts/bench", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="benchmark", required=True, metavar="|".join(BENCHMARKS))
    for name in BENCHMARKS:
        module = importlib.import_module(f"benchlib.{name}")
        verb = verbs.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    args = parser.parse_args(with_name(sys.argv[1:]))
    try:
        args.run(args)
    except FAILURES as error:
        sys.exit(f"scripts/bench: {error}")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
