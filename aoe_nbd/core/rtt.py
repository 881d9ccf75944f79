# SPDX-License-Identifier: BSD-3-Clause
"""Round-trip time of one class of commands on one path, and the timeout that follows from it.

As RFC 6298, but with 2 * srtt in the timeout: its floor of a second, which hides how tight srtt + 4 * rttvar is on a
steady path, is far too long here. AoE's round trip contains the disk, so classes are measured apart.
"""

from __future__ import annotations

from .constants import MIN_RTT_SPAN, RTO_MIN


class Rtt:
    """Estimator; all times in seconds. `srtt` is 0 until the first sample."""

    __slots__ = ("_least", "_least_since", "_previous", "initial", "most", "rttvar", "srtt")

    def __init__(self, initial: float, most: float) -> None:
        self.initial, self.most = initial, most
        self.srtt = self.rttvar = 0.0
        self._least = self._previous = 0.0
        self._least_since = 0.0

    def sample(self, rtt: float, now: float) -> None:
        """Take one measured round trip."""
        if not self.srtt:
            self.srtt, self.rttvar = rtt, rtt / 2
            self._least = self._previous = rtt
            self._least_since = now
            return
        self.rttvar += (abs(rtt - self.srtt) - self.rttvar) / 4
        self.srtt += (rtt - self.srtt) / 8
        if now - self._least_since > MIN_RTT_SPAN:
            self._previous, self._least, self._least_since = self._least, rtt, now
        elif rtt < self._least:
            self._least = rtt

    @property
    def least(self) -> float:
        """The least round trip of the last 10 to 20 seconds."""
        return min(self._least, self._previous)

    @property
    def rto(self) -> float:
        """Retransmission timeout, before back-off."""
        if not self.srtt:
            return self.initial
        return min(self.most, max(RTO_MIN, 2 * self.srtt + 4 * self.rttvar))
