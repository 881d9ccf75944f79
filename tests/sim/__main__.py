# SPDX-License-Identifier: BSD-3-Clause
"""`scripts/sim`: run seeds, show what fails, and how to see it again."""

from __future__ import annotations

import argparse
import os
import sys
import time

from .mutants import MUTANTS
from .runner import Outcome, command, many, play, shrink, world
from .scenario import Keep

_SHOWN = 20  # failures
_SHRUNK = 3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/sim", description="Run the initiator against a simulated world.")
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="how many seeds to run (default 1000)")
    parser.add_argument("--start", type=int, default=0, metavar="S", help="the first of them (default 0)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="J", help="processes (default: one a CPU)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="run this seed alone")
    parser.add_argument(
        "--keep", default="", metavar="PARTS", help="only these parts of it, as a shrunk failure names them"
    )
    parser.add_argument("--verbose", action="store_true", help="with --seed: show everything that happens")
    parser.add_argument("--no-shrink", action="store_true", help="do not make failures smaller")
    parser.add_argument(
        "--without", default="", metavar="RULE", choices=["", *MUTANTS], help=f"switch a rule off: {', '.join(MUTANTS)}"
    )
    return parser.parse_args()


def _single(seed: int, keep: Keep, without: str, verbose: bool) -> int:
    made = world(seed, keep, without, trace=verbose)
    outcome = play(made)
    if verbose:
        scenario = made.scenario
        print({name: value for name, value in vars(scenario).items() if name not in ("ops", "faults")})
        for part in (*scenario.faults, *scenario.ops):
            print(part)
        print(*made.trace or (), sep="\n")
    print(f"seed {seed}: {outcome.frames} frames, digest {outcome.digest:08x}")
    if outcome.rule:
        print(f"seed {seed} breaks a rule. {outcome.rule}: {outcome.detail}")
    return bool(outcome.rule)


def _explain(outcome: Outcome, without: str, smaller: bool) -> None:
    print(f"seed {outcome.seed} breaks a rule. {outcome.rule}: {outcome.detail}", flush=True)
    print(f"    {command(outcome.seed, None, without)}", flush=True)
    if smaller:
        print(f"    {command(outcome.seed, shrink(outcome.seed, outcome.rule, without), without)}", flush=True)


def main() -> int:
    options = _arguments()
    if options.seed is not None:
        return _single(options.seed, Keep.parse(options.keep), options.without, options.verbose)
    began = time.monotonic()
    done = failed = frames = 0
    terminal = sys.stderr.isatty()
    seeds = range(options.start, options.start + options.seeds)
    try:
        for outcome in many(seeds, options.jobs, options.without):
            done += 1
            frames += outcome.frames
            if outcome.rule:
                failed += 1
                if failed <= _SHOWN:
                    _explain(outcome, options.without, failed <= _SHRUNK and not options.no_shrink)
            if terminal and done % 100 == 0:
                rate = done / (time.monotonic() - began)
                print(
                    f"\r{done} of {options.seeds} seeds, {failed} failed, {rate:.0f} a second ", end="", file=sys.stderr
                )
    except KeyboardInterrupt:
        pass
    if terminal:
        print("\r\033[K", end="", file=sys.stderr)
    minutes = (time.monotonic() - began) / 60
    print(
        f"{done} seeds from {options.start}, {frames} frames, {minutes:.1f} minutes "
        f"({done / max(minutes, 1e-9):.0f} seeds a minute): {failed} broke a rule"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
