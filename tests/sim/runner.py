# SPDX-License-Identifier: BSD-3-Clause
"""Runs seeds on all processors, and makes what fails small: fewer operations, faults and mishaps, the same rule broken."""

from __future__ import annotations

import itertools
import multiprocessing
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from aoe_nbd.core.initiator import Initiator

from .checker import Violation
from .driver import Driver
from .mutants import MUTANTS, Mutant
from .scenario import THEMES, Keep, theme_of
from .world import World

_TRUE = Mutant(Initiator, Driver, "")


def seeds_for(name: str, most: int) -> Iterator[int]:
    """Seeds in which a rule that is off should show: those of its theme first."""
    theme = MUTANTS[name].theme
    seeds = range(most * len(THEMES))
    return itertools.islice((seed for seed in seeds if not theme or theme_of(seed) == theme), most)


class Outcome(NamedTuple):
    """How one run went. `rule` is empty if nothing was broken."""

    seed: int
    rule: str
    detail: str
    digest: int  # of every frame, in order and with its time
    frames: int


def world(seed: int, keep: Keep | None = None, without: str = "", trace: bool = False) -> World:
    """The world of a seed."""
    mutant = MUTANTS[without] if without else _TRUE
    return World(seed, keep, mutant.initiator, mutant.driver, trace)


def play(made: World) -> Outcome:
    """Run a world. What the core raises breaks a rule too."""
    rule = detail = ""
    try:
        made.run()
    except Violation as violation:
        rule, detail = violation.rule, violation.detail
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        rule = f"{type(error).__name__} in {where.name}"
        detail = "".join(traceback.format_exception(error)[-4:])
    return Outcome(made.seed, rule, detail, made.digest, made.ether.number())


def _one(job: tuple[int, str]) -> Outcome:
    seed, without = job
    return play(world(seed, without=without))


def many(seeds: Iterable[int], jobs: int, without: str = "") -> Iterator[Outcome]:
    """Outcomes of many seeds, as they come."""
    work = ((seed, without) for seed in seeds)
    if jobs == 1:
        yield from map(_one, work)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(_one, work, 20)


def _smaller(items: frozenset[int], fails: Callable[[frozenset[int]], bool], budget: int) -> tuple[frozenset[int], int]:
    """Leave out as much as one can while it fails (delta debugging)."""
    kept = sorted(items)
    size = max(1, len(kept) // 2)
    while kept and budget > 0:
        at, any_left_out = 0, False
        while at < len(kept) and budget > 0:
            budget -= 1
            fewer = kept[:at] + kept[at + size :]
            if fails(frozenset(fewer)):
                kept, any_left_out = fewer, True
            else:
                at += size
        if size == 1 and not any_left_out:
            break
        size = max(1, size // 2)
    return frozenset(kept), budget


def shrink(seed: int, rule: str, without: str = "", budget: int = 1500) -> Keep:
    """The least part of a failing seed that was found to break the same rule."""

    def attempt(keep: Keep) -> World | None:
        made = world(seed, keep, without)
        return made if play(made).rule == rule else None

    def fewer(keep: Keep, part: str, items: frozenset[int]) -> Keep:
        nonlocal budget
        items, budget = _smaller(items, lambda few: attempt(keep.changed(**{part: few})) is not None, budget)
        changed = keep.changed(**{part: items})
        return changed if attempt(changed) else keep

    whole = world(seed, None, without).scenario
    best = Keep(frozenset(op.number for op in whole.ops), frozenset(fault.number for fault in whole.faults))
    for _ in range(3):
        before = best
        best = fewer(best, "ops", best.ops or frozenset())
        best = fewer(best, "faults", best.faults or frozenset())
        made = attempt(best)
        if made is not None:
            best = fewer(best, "mishaps", frozenset(made.mishaps))
        if best == before or budget <= 0:
            break
    return best


def command(seed: int, keep: Keep | None = None, without: str = "") -> str:
    """What a person types to see it again."""
    words = [f"scripts/sim --seed {seed}"]
    if without:
        words.append(f"--without {without}")
    if keep is not None and str(keep):
        words.append(f"--keep {keep}")
    return " ".join(words) + " --verbose"
