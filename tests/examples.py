# SPDX-License-Identifier: BSD-3-Clause
"""Which examples Hypothesis draws, and how many.

The same ones at every run, so that a change is judged by what it changes. `sudo FUZZ=20 scripts/test tests/property` looks
for what they miss: fresh ones, 20 times as many. What that finds becomes an `@example`.
"""

import os
from typing import Any

from hypothesis import HealthCheck, settings

FUZZ = int(os.environ.get("FUZZ", "0"))


def examples(count: int, **more: Any) -> settings:
    """As a decorator: draw `count` of them, times FUZZ."""
    return settings(
        max_examples=count * max(FUZZ, 1),
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )
