# SPDX-License-Identifier: BSD-3-Clause
"""How results look: tables on a terminal, plain columns in a pipe, JSON for programs; and a sign of life while waiting."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

Cell = str | Sequence[str]  # several strings: one below the other on a terminal, joined by commas in a pipe


def text(raw: bytes | str) -> str:
    """What somebody else wrote, safe for a terminal: whatever cannot be printed is escaped."""
    decoded = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in decoded)


def size(count: int) -> str:
    """Bytes in decimal units, as disks are sold: `1.07 GB`."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB", "EB"):
        if value < 999.995:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.2f} {unit}"


def milliseconds(seconds: float) -> str:
    """`0.123 ms`."""
    return f"{seconds * 1000:.3f} ms"


def dump(value: Any) -> None:
    """Print JSON."""
    print(json.dumps(value, indent=2))


def columns(head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """Lines of plain, aligned columns; an empty cell is a hyphen, so that every line has as many words."""
    cells = [list(head)] + [[c if isinstance(c, str) else ",".join(c) for c in row] for row in rows]
    cells = [[cell or "-" for cell in row] for row in cells]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def on_terminal() -> bool:
    """Whether a person reads the output."""
    return sys.stdout.isatty()


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], fold: Sequence[str] = ()) -> None:
    """Print a table. On a narrow terminal the columns in `fold` give way, and one with nothing in it is left out."""
    if not on_terminal():
        print("\n".join(columns(head, rows)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lines = [[[cell] if isinstance(cell, str) else list(cell) for cell in row] for row in rows]
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    used = [i for i in range(len(head)) if any(any(row[i]) for row in lines)]
    for i in used:
        grid.add_column(head[i], overflow="fold", no_wrap=head[i] not in fold)
    for row in lines:
        grid.add_row(*(Text("\n".join(row[i])) for i in used))
    Console().print(grid)


def waiting(what: str) -> contextlib.AbstractContextManager[Any]:
    """Show on a terminal that something is being waited for; nothing in a pipe."""
    if not sys.stderr.isatty():
        return contextlib.nullcontext()
    from rich.console import Console
    from rich.markup import escape

    return Console(stderr=True).status(escape(what))


def warn(verb: str, sentence: str) -> None:
    """One sentence on stderr, beside the result."""
    sys.stdout.flush()
    print(f"aoe-nbd {verb}: {sentence}", file=sys.stderr)
