# SPDX-License-Identifier: BSD-3-Clause
"""pyroute2 without the parts that nobody here needs.

Its own __init__ imports all of them, a database and asyncio and what tests are made with: longer than anything else that an
attach imports, and a guest that moves to this host stands still for that long.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def parts() -> Iterator[None]:
    """Within it, `from pyroute2.part import name` imports that part and what it needs by itself. Not for several threads."""
    spec = None if "pyroute2" in sys.modules else importlib.util.find_spec("pyroute2")
    if spec is None:  # it is all there already; or not at all, which the import says
        yield
        return
    sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)  # in place of the whole, which is not executed
    try:
        yield
    finally:
        del sys.modules["pyroute2"]  # so that whoever imports the whole gets it
