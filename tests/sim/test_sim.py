# SPDX-License-Identifier: BSD-3-Clause
"""The simulation as tests: thousands of seeds hold, each rule that is switched off is caught, and a seed replays exactly.

AOE_NBD_SIM_SEEDS sets how many seeds run (default 3000).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .mutants import MUTANTS
from .runner import command, many, play, seeds_for, shrink, world

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("AOE_NBD_SIM_SEEDS", "3000"))
AT_ONCE = 500  # in one test
BITES = 1500  # seeds at most in which a rule that is switched off must be caught
JOBS = os.cpu_count() or 1


@pytest.mark.parametrize("start", range(0, SEEDS, AT_ONCE))
def test_seeds_hold(start: int) -> None:
    broken = [outcome for outcome in many(range(start, min(start + AT_ONCE, SEEDS)), JOBS) if outcome.rule]
    for outcome in broken[:3]:
        keep = shrink(outcome.seed, outcome.rule)
        print(f"seed {outcome.seed}. {outcome.rule}: {outcome.detail}\n    {command(outcome.seed, keep)}")
    assert not broken, f"{len(broken)} seeds broke a rule: {sorted(outcome.seed for outcome in broken)[:20]}"


@pytest.mark.sources
@pytest.mark.parametrize("name", MUTANTS)
def test_bites(name: str) -> None:
    """The simulation catches an initiator without this rule."""
    for seed in seeds_for(name, BITES):
        if play(world(seed, without=name)).rule:
            return
    pytest.fail(f"{BITES} seeds did not show that rule {MUTANTS[name].rule} was off ({name})")


def test_replays_identically() -> None:
    for seed in range(40):
        assert play(world(seed)) == play(world(seed))


def test_replays_identically_in_another_process() -> None:
    """Nothing depends on the process: not its hash seed, not the addresses of its objects."""
    expected = "".join(f"{play(world(seed)).digest:08x}\n" for seed in range(20))
    code = "from sim.runner import play, world\nfor s in range(20): print(f'{play(world(s)).digest:08x}')"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PYTHONHASHSEED": "12345"}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert found.stdout == expected


@pytest.mark.sources
def test_shrinks() -> None:
    """A failure is made small, still breaks the same rule, and its command line says how to see it."""
    name = "ghosts"
    seed, rule = next((s, o.rule) for s in seeds_for(name, BITES) if (o := play(world(s, without=name))).rule)
    whole = world(seed, without=name).scenario
    keep = shrink(seed, rule, name)
    small = world(seed, keep, name)
    assert play(small).rule == rule
    assert len(small.scenario.ops) <= min(6, len(whole.ops))
    assert f"--seed {seed} --without {name} --keep o=" in command(seed, keep, name)
