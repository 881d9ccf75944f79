# SPDX-License-Identifier: BSD-3-Clause
"""Times counted by powers of two: `histogram[n]` are those below 2^n µs that are no less than half of it."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(histogram: Sequence[int], share: float) -> float:
    """A time, in seconds, that this `share` of all did not exceed, to the next power of two; 0 without any."""
    wanted = share * sum(histogram)
    for bits, count in enumerate(histogram):
        wanted -= count
        if count and wanted <= 0:
            return (1 << bits) / 1e6
    return 0.0
