# SPDX-License-Identifier: BSD-3-Clause
"""What an operator chooses: what becomes of requests while a target is silent, and how second hosts are kept off."""

from __future__ import annotations

import enum
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


class Fencing(enum.StrEnum):
    """How a LUN is guarded against a second host that writes to it (see `fence`)."""

    OFF = "off"
    WARN = "warn"  # by a record of its owner, kept on the target; who disregards that is not hindered
    ENFORCE = "enforce"  # and by a reservation, by which the target refuses all others
    AUTO = "auto"  # ENFORCE where the target knows reservations, else WARN
