# SPDX-License-Identifier: BSD-3-Clause
"""One question on the wire and the answers it got: discovery, config strings, masks, reservations, ping.

Sans-IO like `initiator`, and far simpler: the question is sent again at fixed times until enough answers came or time is
over. Each copy has its own tag, so that an answer's round trip is known and late answers still count.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from ..wire.address import Address
from ..wire.codes import ALL_SHELVES, ALL_SLOTS, BROADCAST_MAC, USER_TAG, Command
from ..wire.frames import Config, FrameError, FrameHeader, MaskList, Reserve, Taskfile, build_request, parse_header

SCHEDULE = (0.0, 0.1, 0.3, 0.7, 1.5, 3.0, 6.0)  # when a question is sent, in seconds; then every 5 more
_EVERY: Final = 5.0


class Answer(NamedTuple):
    """One reply: where it came from, its bytes, and the round trip of the copy it answers (s; 0 if it was unasked)."""

    link: str
    header: FrameHeader
    frame: bytes
    rtt: float

    @property
    def mac(self) -> bytes:
        return self.header.src

    @property
    def address(self) -> Address:
        return Address(self.header.major, self.header.minor)


class Exchange:
    """A question to `shelf.slot` (wildcards only for Query Config) at `remote`, asked by each of `links`.

    `want` answers end it early (None: collect until `deadline`). A set is not idempotent: see `once`.
    """

    def __init__(
        self,
        links: Sequence[tuple[str, bytes]],
        arg: Taskfile | Config | MaskList | Reserve,
        *,
        seed: int,
        now: float,
        timeout: float,
        shelf: int = ALL_SHELVES,
        slot: int = ALL_SLOTS,
        remote: bytes = BROADCAST_MAC,
        data: bytes = b"",
        want: int | None = None,
        once: bool = False,
    ) -> None:
        """`links` are (name, own MAC). With `once` it is sent a single time, for a command that must not be repeated."""
        wild = shelf == ALL_SHELVES or slot == ALL_SLOTS
        if wild and not isinstance(arg, Config):
            raise ValueError("only Query Config may go to all shelves or all slots")
        self.links = list(links)
        self.arg, self.shelf, self.slot, self.remote, self.data = arg, shelf, slot, remote, data
        self.command = (
            Command.ATA
            if isinstance(arg, Taskfile)
            else Command.CONFIG
            if isinstance(arg, Config)
            else Command.MASK
            if isinstance(arg, MaskList)
            else Command.RESERVE
        )
        self.want = want
        self.answers: list[Answer] = []
        self.copies = 0  # how often it was sent
        self.deadline = now + timeout
        self._start = now
        self._once = once
        self._next = random.Random(seed).randrange(1, USER_TAG - (1 << 16))
        self._sent: dict[int, float] = {}

    def done(self, now: float) -> bool:
        """Whether there is nothing more to wait for."""
        return now >= self.deadline or (self.want is not None and len(self.answers) >= self.want)

    def timer(self) -> float:
        """When `due` has something to send, or the time is over."""
        if self._once and self.copies:
            return self.deadline
        at = SCHEDULE[self.copies] if self.copies < len(SCHEDULE) else SCHEDULE[-1] + (self.copies - 6) * _EVERY
        return min(self._start + at, self.deadline)

    def due(self, now: float) -> list[tuple[str, bytes]]:
        """(link, frame) to send now."""
        if self.done(now) or now < self.timer():
            return []
        self.copies += 1
        frames = []
        for link, mac in self.links:
            tag = USER_TAG | self._next
            self._next += 1
            self._sent[tag] = now
            frames.append((link, build_request(self.remote, mac, self.shelf, self.slot, tag, self.arg, self.data)))
        return frames

    def receive(self, link: str, frame: bytes | memoryview, now: float) -> bool:
        """Take a frame if it answers this question. Returns whether it did; anything else is left alone."""
        try:
            header = parse_header(frame)
        except FrameError:
            return False
        if not header.response or header.command != self.command or header.tag not in self._sent:
            return False
        if self.shelf not in (ALL_SHELVES, header.major) or self.slot not in (ALL_SLOTS, header.minor):
            return False
        if header.major == ALL_SHELVES or header.minor == ALL_SLOTS:
            return False  # a target must put its own address into the reply
        if self.remote not in (BROADCAST_MAC, header.src):
            return False
        self.answers.append(Answer(link, header, bytes(frame), now - self._sent[header.tag]))
        return True
