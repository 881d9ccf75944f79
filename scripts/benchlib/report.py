# SPDX-License-Identifier: BSD-3-Clause
"""What came of it, for people: tables on the terminal, the same as Markdown, and plots of the ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .measure import Failed, Spread


@dataclass(frozen=True)
class Claim:
    """One line of what must be shown: a figure, and the bound that it has to keep."""

    what: str
    bound: float
    found: Spread
    most: bool = False  # the bound is an upper one
    unit: str = ""
    digits: int = 2

    @property
    def holds(self) -> bool:
        """The median keeps it."""
        return self.found.median <= self.bound if self.most else self.found.median >= self.bound

    def words(self) -> list[str]:
        """Cells: what, required, median, spread, holds."""
        unit = f" {self.unit}" if self.unit else ""
        return [
            self.what,
            f"at {'most' if self.most else 'least'} {self.bound:g}{unit}",
            f"{self.found.median:.{self.digits}f}{unit}",
            f"{self.found.least:.{self.digits}f} to {self.found.most:.{self.digits}f}, {self.found.runs} runs",
            "yes" if self.holds else "no",
        ]


CLAIM_COLUMNS = ("row", "required", "median", "spread", "holds")


@dataclass
class Section:
    """One row of the benchmark: its table, its claims, and every run that they come from."""

    name: str
    title: str
    columns: Sequence[str]
    notes: list[str] = field(default_factory=list)  # what was run, against what
    lines: list[list[str]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    bars: list[tuple[str, Spread]] = field(default_factory=list)  # ratios for the plot
    runs: dict[str, Any] = field(default_factory=dict)  # for JSON


def show(console: Console, section: Section) -> None:
    """Print it."""
    console.print(_rich(section.title, section.columns, section.lines))
    for note in section.notes:
        console.print(f"  {note}", style="dim", markup=False, highlight=False)
    console.print()


def show_claims(console: Console, claims: Sequence[Claim]) -> None:
    """Print the table that answers whether it is fast enough."""
    table = _rich("It must show", CLAIM_COLUMNS, [])
    for claim in claims:
        table.add_row(*map(Text, claim.words()), style="" if claim.holds else "bold red")
    console.print(table)


def _rich(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", overflow="fold")
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def markdown(preamble: Sequence[str], claims: Sequence[Claim], sections: Sequence[Section]) -> str:
    """Everything, to be put into a document as it is."""
    parts = ["\n".join(f"* {line}" for line in preamble)]
    if claims:
        parts += ["### It must show", _pipes(CLAIM_COLUMNS, [claim.words() for claim in claims])]
    for section in sections:
        parts += [f"### {section.title}", _pipes(section.columns, section.lines)]
        if section.notes:
            parts.append("\n".join(f"* {note}" for note in section.notes))
    return "\n\n".join(parts) + "\n"


def _pipes(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [list(columns), ["---", *["---:"] * (len(columns) - 1)], *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def put(document: Path, name: str, text: str) -> None:
    """Replace what stands in `document` between the marks of benchmark `name`. Raises Failed if they are not there."""
    begin, end = (f"<!-- {edge}: scripts/bench {name} -->" for edge in ("begin", "end"))
    before, found, rest = document.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise Failed(f"{document} has no place for {name}: it needs the lines {begin} and {end}")
    document.write_text(f"{before}{begin}\n\n{text}\n{end}{after}")


def plot(sections: Sequence[Section], out: Path) -> list[Path]:
    """A picture of the ratios of each section that has some: bars to the median, whiskers from least to most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made = []
    for section in sections:
        if not section.bars:
            continue
        names = [name for name, _ in section.bars]
        spreads = [spread for _, spread in section.bars]
        figure, axis = pyplot.subplots(figsize=(9, 1.2 + 0.32 * len(names)))
        middle = [spread.median for spread in spreads]
        whiskers = [[s.median - s.least for s in spreads], [s.most - s.median for s in spreads]]
        axis.barh(names, middle, xerr=whiskers, capsize=3, color="#5b8db8", ecolor="#333333")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set(title=section.title, xlabel="ratio: median, least and most", xlim=(0, None))
        axis.grid(axis="x", alpha=0.3)
        figure.tight_layout()
        path = out / f"{section.name}.png"
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        made.append(path)
    return made
