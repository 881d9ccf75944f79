# SPDX-License-Identifier: BSD-3-Clause
"""`scripts/lab xen --document`: put the table of the last run of test_xen.py into docs/xen.md."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT, TABLE = ROOT / "docs" / "xen.md", ROOT / "build" / "xen.md"


def main() -> None:
    begin, end = "<!-- begin: scripts/lab xen -->", "<!-- end: scripts/lab xen -->"
    text, found = re.subn(f"{begin}.*{end}", lambda _: f"{begin}\n{TABLE.read_text()}{end}", DOCUMENT.read_text(), flags=re.S)
    if found != 1:
        raise SystemExit(f"{DOCUMENT} has {found} places between {begin} and {end}: it must have one")
    DOCUMENT.write_text(text)


if __name__ == "__main__":
    main()
