# SPDX-License-Identifier: BSD-3-Clause
"""pyroute2 in parts: what an attach does not need is not imported, and whoever wants the whole gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "use", ["import aoe_nbd.host.nbd", "from aoe_nbd.link import InterfaceWatch as Watch; Watch()"]
)
def test_parts_and_then_the_whole(use: str) -> None:
    script = f"""
import sys
{use}
assert any(name.startswith("pyroute2.netlink") for name in sys.modules)
assert "pyroute2.ndb.main" not in sys.modules and "pyroute2" not in sys.modules
import pyroute2
assert pyroute2.NDB and pyroute2.IPRoute().get_links()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_whole_that_is_there_already_stays() -> None:
    script = "import pyroute2 as whole, sys; import aoe_nbd.host.nbd; assert sys.modules['pyroute2'] is whole"
    subprocess.run([sys.executable, "-c", script], check=True)
