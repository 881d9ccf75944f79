# SPDX-License-Identifier: BSD-3-Clause
"""What guarding a LUN against other hosts needs of this one: a name that no other has, and a place for a note.

The note is what the next bridge of the same attach must know (`core.fence`). It lies beside the control socket, and so in
memory as a rule: after a reboot nothing is attached any more, and an attach begins anew.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

from ..wire.address import Address

MACHINE_ID = Path("/etc/machine-id")


def host_name(machine_id: Path = MACHINE_ID) -> str:
    """The node's name, and 8 digits of its machine-id where it has one."""
    name = re.sub(r"[^\w.-]", "-", platform.node() or "host", flags=re.ASCII)[:48]
    try:
        number = machine_id.read_text().strip()[:8]
    except OSError:
        number = ""
    return f"{name}-{number}" if re.fullmatch(r"[0-9a-f]{8}", number) else name


class Note:
    """One file. Without a control socket there is none, and nothing is kept."""

    def __init__(self, control: str, address: Address) -> None:
        self._path = f"{control}.fence.{address}" if control else ""

    def read(self) -> str:
        """What is in it, "" if it is not there."""
        try:
            with open(self._path) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def write(self, text: str) -> None:
        """Have it say `text`; with "" there is no file any more. Raises OSError."""
        if not self._path:
            return
        if not text:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            return
        fresh = f"{self._path}.new"
        with open(fresh, "w") as file:
            file.write(text)
        os.replace(fresh, self._path)
