# SPDX-License-Identifier: BSD-3-Clause
"""The compiled form of the hot path: the modules named here, as they stand, made machine code by mypyc.

`scripts/compile` puts it beside the sources, where Python prefers it. It is used only if it was made of just these
sources, for it carries their digest in its name. Where that differs (a checkout with changes, a file that was mended in
place), for another release of Python, or with AOE_NBD_COMPILED=0 in the environment, the sources run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

_PACKAGE = Path(__file__).parent
MODULES = (
    *sorted(f"core/{path.name}" for path in (_PACKAGE / "core").glob("[!_]*.py")),
    *(f"link/{name}.py" for name in ("outbox", "packet", "ring")),
    "busypoll.py",
    "engine.py",
    *(f"target/{name}.py" for name in ("batch", "lun", "server")),
)
# What constants are built into them from.
_BUILT_ON = ("wire/address.py", "wire/codes.py", "wire/frames.py", "wire/identify.py")


def library() -> str:
    """The name of the shared library that holds these sources compiled, less the suffix that is mypyc's."""
    digest = hashlib.blake2b(digest_size=8)
    for name in (*MODULES, *_BUILT_ON):
        digest.update((_PACKAGE / name).read_bytes())
    return f"aoe_nbd_{digest.hexdigest()}"


class _Sources:
    """Finds nothing but sources: for a package that has a compiled form beside them which is not to be used."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None or not name.startswith("aoe_nbd."):
            return None
        for folder in path:
            found = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name, target)
            if found is not None:
                return found
        return None


def choose() -> bool:
    """Settle which form is imported from now on. Returns whether it is the compiled one."""
    if os.environ.get("AOE_NBD_COMPILED") != "0" and importlib.util.find_spec(f"{library()}__mypyc") is not None:
        return True
    sys.meta_path.insert(0, _Sources)
    return False
