# SPDX-License-Identifier: BSD-3-Clause
"""How nbdkit is run with the plugin of this package: where both are, and which Python nbdkit is to find."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PLUGIN = Path(__file__).resolve().parents[1] / "plugin.py"
_PACKAGES = "on Debian, `apt-get install nbdkit nbdkit-plugin-python`"
_SYSTEMS = "/usr/bin"  # where the system's own Python is
_PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# One heap for all threads, got ahead, from which nothing is given back: `memory.protect` has it resident from the start.
_HEAP = 32 << 20  # bytes to spare: a buffer for each thread (nbdkit keeps them) of the largest request
_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TOP_PAD_": str(_HEAP),
    "MALLOC_MMAP_THRESHOLD_": str(_HEAP),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}


class Missing(OSError):
    """nbdkit or its Python plugin is not installed; the message is one sentence."""


def find_nbdkit() -> str:
    """nbdkit's path. Raises Missing."""
    found = shutil.which("nbdkit", path=f"{os.environ.get('PATH', '')}:{_PLACES}")
    if found is None:
        raise Missing(None, f"nbdkit is not installed: {_PACKAGES}")
    return found


def environment(nbdkit: str) -> dict[str, str]:
    """The environment for nbdkit, whose embedded Python finds its modules by the python3 that is first on PATH.

    That has to be ours, or the system's where ours is of another version than nbdkit's. Raises Missing without a plugin.
    """
    done = subprocess.run([nbdkit, "python", "--dump-plugin"], capture_output=True, text=True, check=False)
    version = re.search(r"^python_version=(\d+)\.(\d+)", done.stdout, re.MULTILINE)
    if done.returncode or not version:
        raise Missing(None, f"nbdkit has no Python plugin: {_PACKAGES}")
    same = (int(version[1]), int(version[2])) == sys.version_info[:2] and sys.executable
    return _finding(os.path.dirname(sys.executable) if same else _SYSTEMS)


def _finding(folder: str) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}:{os.environ.get('PATH', _PLACES)}"}


def supervised(socket: Path, threads: int, pairs: Sequence[tuple[str, str]]) -> tuple[list[str], dict[str, str]]:
    """(command, environment) of a bridge that serves the kernel on `socket` and ends with its parent. Raises Missing."""
    nbdkit = find_nbdkit()
    command = [nbdkit, "--foreground", "--exit-with-parent", "--threads", str(threads), "--unix", str(socket)]
    # The system's Python is what nbdkit is to find in any case then, and to ask nbdkit takes as long as to start it.
    env = _finding(_SYSTEMS) if os.path.dirname(sys.executable) == _SYSTEMS else environment(nbdkit)
    words = [*command, "python", str(PLUGIN), *(f"{key}={value}" for key, value in pairs)]
    return words, {**env, **_MALLOC}
