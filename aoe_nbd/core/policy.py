# SPDX-License-Identifier: BSD-3-Clause
"""What becomes of requests while a target is silent. Apart from the initiator, for those who only choose it."""

from __future__ import annotations

from dataclasses import dataclass

from .constants import DEAD_AFTER


@dataclass(frozen=True)
class OnDead:
    """What becomes of requests while no path answers: they wait (`after` None) or fail so many seconds after the last answer."""

    after: float | None = None

    @property
    def limit(self) -> float:
        """Seconds without an answer, until the target counts as dead."""
        return DEAD_AFTER if self.after is None else self.after

    def __str__(self) -> str:
        if self.after is None:
            return "hold"
        return "fail" if self.after == DEAD_AFTER else f"fail-after={self.after:g}"


HOLD = OnDead()
FAIL = OnDead(DEAD_AFTER)
