# SPDX-License-Identifier: BSD-3-Clause
"""README names every parameter with its default, every verb, and only files that exist."""

from __future__ import annotations

import re
from pathlib import Path

from aoe_nbd.cli import VERBS
from aoe_nbd.options import PARAMETERS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_parameters() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `") and "=`" in line]
    for parameter in PARAMETERS:
        row = next((row for row in rows if f"`{parameter.name}=`" in row), None)
        assert row, f"{parameter.name} is not in the table"
        if parameter.default:
            assert row.split("|")[2].strip() == parameter.default


def test_verbs() -> None:
    for verb in VERBS:
        assert re.search(rf"^\| .*`{verb}\b", README, re.MULTILINE), f"{verb} is not in the table"


def test_files() -> None:
    for path in re.findall(r"(?<![\w/.-])((?:scripts|aoe_nbd|plugin|tests)/[\w./-]+)", README):
        assert (ROOT / path).exists(), path
