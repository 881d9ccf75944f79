# SPDX-License-Identifier: BSD-3-Clause
"""The rows of the benchmark: one module each, with `TITLE` and `measure(bench) -> Section`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..measure import Run, Spread, interleave
from ..stacks import Places


@dataclass
class Bench:
    """What every row is told: where to work, on which disk, how long and how often, and how much of it all."""

    places: Places
    disk: Path
    size: int  # bytes of the disk
    seconds: float  # of each run
    rounds: int
    quiet: float  # share of the machine that other programs may have
    quick: bool
    say: Callable[[str], None]  # progress

    def interleave(self, what: str, sides: Mapping[str, Callable[[], Run]], rounds: int = 0) -> dict[str, list[Run]]:
        """Run them in turn, `rounds` times or as often as was asked for."""
        self.say(what)
        return interleave(rounds or self.rounds, sides, self.quiet)


def others(runs: Mapping[str, Sequence[Run]]) -> str:
    """A note on who else used the machine."""
    share = Spread.of([run.others for several in runs.values() for run in several])
    return f"other programs had {share.median:.0%} ({share.least:.0%} to {share.most:.0%}) of this machine's CPUs meanwhile"
