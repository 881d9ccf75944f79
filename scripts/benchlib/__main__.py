# SPDX-License-Identifier: BSD-3-Clause
"""`scripts/bench NAME ...`: find the benchmark and run it. A new one is a module here and a name in `BENCHMARKS`.

Without a name it is the first of them.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

BENCHMARKS = ("speed", "loss")


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that namespaces and programs are taken down
    parser = argparse.ArgumentParser(prog="scripts/bench", allow_abbrev=False)
    verbs = parser.add_subparsers(dest="benchmark", required=True, metavar="|".join(BENCHMARKS))
    for name in BENCHMARKS:
        module = importlib.import_module(f"benchlib.{name}")
        verb = verbs.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run)
    words = sys.argv[1:]
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words = [BENCHMARKS[0], *words]
    args = parser.parse_args(words)
    try:
        args.run(args)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
