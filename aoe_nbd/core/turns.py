# SPDX-License-Identifier: BSD-3-Clause
"""Which of several LUNs may send: their answers share the room of one receive ring.

Shares of their own would be a few frames each, sent and answered one by one, or a ring so large that no cache holds it.
So they send in turns, a portion each: who has more to send than there is room for lines up, and who has waited longest
goes on when a portion is free. Frames that nothing has come back for do not count, nor do those whose answers may take
their time (flushes): a target that has died takes no room from the others.
"""

from __future__ import annotations

from typing import Final

from .initiator import Initiator

_PORTIONS: Final = 4  # that the room holds


class Turns:
    """Call `begin` before every `transmit` of an initiator and `end` after it; then serve whom `next` names the same way."""

    def __init__(self, room: int) -> None:
        """`room`: how many answers all together may be owed."""
        self.resize(room)
        self._owed: dict[Initiator, int] = {}
        self._taken = 0  # the sum of these
        self._waiting: dict[Initiator, None] = {}  # in the order in which they came

    def resize(self, room: int) -> None:
        """There is so much room from now on."""
        self.room, self._portion = room, max(1, room // _PORTIONS)

    def begin(self, initiator: Initiator) -> None:
        """Before its `transmit`: it may send what is free, a portion at most, and nothing while others wait for that."""
        self._book(initiator)
        free = 0 if self._waiting else min(self.room - self._taken, self._portion)
        initiator.share = initiator.outstanding() + max(0, free)

    def end(self, initiator: Initiator) -> None:
        """After its `transmit`: it lines up if it has more to send than it was let."""
        self._book(initiator)
        if initiator.wants_room and initiator.outstanding() >= initiator.share:
            self._waiting[initiator] = None

    def next(self) -> Initiator | None:
        """Whose turn it is, if there is room for a portion: have it `transmit`, and call `end`."""
        if not self._waiting or self._taken + self._portion > self.room:
            return None
        initiator = next(iter(self._waiting))
        del self._waiting[initiator]
        initiator.share = initiator.outstanding() + self._portion
        return initiator

    def forget(self, initiator: Initiator) -> None:
        """It is not served any more."""
        self._waiting.pop(initiator, None)
        self._taken -= self._owed.pop(initiator, 0)

    def _book(self, initiator: Initiator) -> None:
        owed = initiator.owed()
        self._taken += owed - self._owed.get(initiator, 0)
        self._owed[initiator] = owed
