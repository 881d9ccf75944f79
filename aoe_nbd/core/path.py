# SPDX-License-Identifier: BSD-3-Clause
"""One way to a LUN: one of our interfaces to one MAC of the target, and how well it does."""

from __future__ import annotations

import enum
import random

from ..wire.frames import Config, sectors_per_frame
from .constants import PROBE_OUT_FIRST, RTT_STALE, WINDOW_MOST
from .copies import Copies
from .flight import Class, Flight
from .request import Kind
from .sizes import FrameSizes
from .window import Window

CLASS_OF = {
    Kind.READ: Class.READ,
    Kind.WRITE: Class.WRITE,
    Kind.FLUSH: Class.FLUSH,
    Kind.TRIM: Class.FLUSH,
    Kind.IDENTIFY: Class.CONTROL,
    Kind.CHECK_POWER: Class.CONTROL,
    Kind.QUERY: Class.CONTROL,
    Kind.PROBE_REPLY: Class.PROBE,
    Kind.PROBE_REQUEST: Class.PROBE,
    Kind.SET: Class.CONTROL,
    Kind.RESERVE: Class.CONTROL,
}


class PathState(enum.Enum):
    """Only an UP path carries a client's requests; NEW, OUT and STRANGER ones are asked to IDENTIFY, a DOWN one nothing."""

    NEW = "new"  # its identity is not known, or must be looked at again
    UP = "up"
    OUT = "out"  # does not answer
    DOWN = "down"  # our interface has no carrier
    STRANGER = "stranger"  # another disk answers there


class Path:
    """`link` names the interface to whoever moves the frames; `local` and `remote` are MACs; `mtu` in bytes."""

    def __init__(
        self,
        link: str,
        local: bytes,
        remote: bytes,
        mtu: int,
        config: Config,
        cap: int,
        copies: Copies,
        rng: random.Random,
        now: float,
    ) -> None:
        self.link, self.local, self.remote, self.mtu = link, local, remote, mtu
        self.cap = cap  # the operator's limit on sectors in a frame
        self.state = PathState.NEW
        self.verified = False  # has carried this LUN's identity before
        self.outstanding = 0  # copies under way that occupy the target's buffers
        self.flights = {kind: Flight(copies, kind, rng) for kind in Class}
        self.by_kind = [self.flights[CLASS_OF[kind]] for kind in sorted(CLASS_OF)]
        self.window = Window(1)
        self.sizes = FrameSizes()
        self.strikes = 0  # timeouts in a row with nothing heard
        self.heard = now  # when a frame last came from there
        self.next_probe = now
        self.probe_interval = PROBE_OUT_FIRST
        self.hold_until = 0.0  # after a send that the interface refused
        self.buffers = 1
        self.configured(config, now)

    @property
    def up(self) -> bool:
        return self.state is PathState.UP

    @property
    def believed(self) -> bool:
        """Whether an answer from there is known to be our disk's. After an announcement it may be another's."""
        return self.state is PathState.UP or (self.verified and self.state not in (PathState.NEW, PathState.STRANGER))

    @property
    def room(self) -> int:
        """Copies that its window still lets out; below 0 after a cut."""
        return max(1, int(self.window.size)) - self.outstanding

    def configured(self, config: Config, now: float) -> None:
        """Take buffer and sector counts from a config reply or announcement."""
        self.advertised = config.sector_count
        self.buffers = max(1, min(config.buffer_count, WINDOW_MOST))
        fresh = self.window.cap == 1 and self.buffers > 1
        if fresh:
            self.window = Window(self.buffers)
        else:
            self.window.set_cap(self.buffers)
        self.resize(self.mtu, now)

    def resize(self, mtu: int, now: float) -> None:
        """Take our interface's MTU. At least one sector is allowed, for the caller has checked."""
        self.mtu = mtu
        self.sizes.allow(max(1, sectors_per_frame(self.advertised, mtu, self.cap)), now)

    def expected(self, kind: Kind, now: float) -> float:
        """Roughly when one more command would be answered, in seconds from now.

        An old measure says little: it may be of the moment in which the path broke, and would keep it idle for ever. Then
        the round trip of a question, which every path is asked regularly, lets it have a try.
        """
        flight, question = self.by_kind[kind], self.flights[Class.CONTROL].rtt.srtt
        rtt = flight.rtt.srtt or flight.rtt.initial
        if question and not flight.count and flight.heard < now - RTT_STALE:
            rtt = min(rtt, question)
        return rtt * (1 + self.outstanding / max(1.0, self.window.size))

    def __str__(self) -> str:
        return f"{self.link} to {self.remote.hex(':')}"
