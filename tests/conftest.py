# SPDX-License-Identifier: BSD-3-Clause
"""Which form of the hot path is tested: the compiled one where it is there, else, or with AOE_NBD_COMPILED=0, the sources."""

from __future__ import annotations

import pytest

import aoe_nbd


def pytest_report_header() -> str:
    return f"aoe_nbd: {'compiled' if aoe_nbd.COMPILED else 'sources'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if aoe_nbd.COMPILED:
        skip = pytest.mark.skip(reason="changes classes, which only sources let it: run it with AOE_NBD_COMPILED=0")
        for item in items:
            if item.get_closest_marker("sources"):
                item.add_marker(skip)
