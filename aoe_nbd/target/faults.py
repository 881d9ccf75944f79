# SPDX-License-Identifier: BSD-3-Clause
"""Seeded faults between server and link: what a bad network and a bad disk do, on demand. Sans-IO.

A `Line` is one direction of the network: frames go in, and come out (or not) when they are due. `Faults` is a line
each way and the errors to answer with. Everything may be changed while the target runs.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from ..wire.codes import ALL_SHELVES, ALL_SLOTS, AOE_VERSION, ERROR, ETHERTYPE, RESPONSE, Ata, Command, Status
from ..wire.frames import ATA, ATA_SIZE, HEADER, HEADER_SIZE, pad

_REORDER_HOLD = 0.005


@dataclass
class Line:
    """One direction. Probabilities are 0 to 1, times are seconds."""

    loss: float = 0.0  # probability that a frame vanishes
    dup: float = 0.0  # that it comes twice ...
    dupdelay: float = 0.0  # ... the second time this much later
    reorder: float = 0.0  # that it is held back by `hold`, so that later ones overtake it
    hold: float = _REORDER_HOLD
    delay: float = 0.0  # of every frame
    jitter: float = 0.0  # at most this much more, at random
    truncate: float = 0.0  # probability that a frame is cut at a random length
    mtu: int = 0  # frames longer than this vanish (the whole frame, its 14-byte Ethernet header included); 0: none do
    drop: Callable[[bytes], bool] | None = None  # frames for which it is true vanish
    random: random.Random = field(default_factory=lambda: random.Random(0), repr=False)
    counters: Counter[str] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        self._waiting: dict[int, list[tuple[float, int, bytes]]] = {}
        self._pushed = 0

    def push(self, frame: bytes | bytearray | memoryview, now: float, via: int = 0) -> None:
        """Put a frame onto the line at time `now`. Its bytes are copied. `via` tells parallel cables apart."""
        chance = self.random.random
        frame = bytes(frame)
        if self.mtu and len(frame) > self.mtu:
            self.counters["mtu"] += 1
            return
        if self.drop is not None and self.drop(frame):
            self.counters["drop"] += 1
            return
        if self.loss and chance() < self.loss:
            self.counters["loss"] += 1
            return
        if self.truncate and chance() < self.truncate:
            self.counters["truncate"] += 1
            frame = frame[: self.random.randrange(14, max(15, len(frame)))]
        due = now + self.delay
        if self.jitter:
            due += chance() * self.jitter
        if self.reorder and chance() < self.reorder:
            self.counters["reorder"] += 1
            due += self.hold
        self._put(frame, due, via)
        if self.dup and chance() < self.dup:
            self.counters["dup"] += 1
            self._put(frame, due + self.dupdelay, via)

    def _put(self, frame: bytes, due: float, via: int) -> None:
        self._pushed += 1
        heapq.heappush(self._waiting.setdefault(via, []), (due, self._pushed, frame))

    def pop(self, now: float, via: int = 0) -> list[bytes]:
        """The frames that are due at time `now`, in order."""
        waiting, due = self._waiting.get(via, []), []
        while waiting and waiting[0][0] <= now:
            due.append(heapq.heappop(waiting)[2])
        return due

    def next_time(self) -> float | None:
        """When the next frame is due; None if there is none."""
        return min((waiting[0][0] for waiting in self._waiting.values() if waiting), default=None)


_OPERATIONS: dict[str, tuple[int, frozenset[int]]] = {
    "read": (Command.ATA, frozenset({Ata.READ, Ata.READ_EXT})),
    "write": (Command.ATA, frozenset({Ata.WRITE, Ata.WRITE_EXT, Ata.WRITE_DMA_FUA_EXT})),
    "flush": (Command.ATA, frozenset({Ata.FLUSH, Ata.FLUSH_EXT})),
    "trim": (Command.ATA, frozenset({Ata.DATA_SET_MANAGEMENT})),
    "identify": (Command.ATA, frozenset({Ata.IDENTIFY})),
    "ata": (Command.ATA, frozenset(range(256))),
    "config": (Command.CONFIG, frozenset()),
    "mask": (Command.MASK, frozenset()),
    "reserve": (Command.RESERVE, frozenset()),
}


@dataclass
class Errors:
    """Which requests are answered with an error and not carried out: `aoe` or, if that is 0, `ata` says which error."""

    aoe: int = 0  # AoE error code
    ata: int = 0  # ATA error register
    status: int = int(Status.DRDY | Status.ERR)
    op: str = "any"  # any, read, write, flush, trim, identify, ata, config, mask or reserve
    every: int = 0  # each Nth of these; 1 is all
    p: float = 0.0  # or each with this probability
    times: int = 0  # stop after so many; 0: never
    seen: int = field(default=0, repr=False)
    given: int = field(default=0, repr=False)

    def answer(self, frame: bytes | memoryview, mac: bytes, chance: Callable[[], float]) -> bytes | None:
        """The error reply to this request from our address `mac`; None where it is to be carried out."""
        if not (self.aoe or self.ata) or len(frame) < HEADER_SIZE or (self.times and self.given >= self.times):
            return None
        _, src, _, _, _, major, minor, command, tag = HEADER.unpack_from(frame)
        if major == ALL_SHELVES or minor == ALL_SLOTS:
            return None
        is_ata = command == Command.ATA and len(frame) >= ATA_SIZE
        if self.op != "any":
            wanted, opcodes = _OPERATIONS[self.op]
            if command != wanted or (opcodes and not (is_ata and frame[HEADER_SIZE + 3] in opcodes)):
                return None
        self.seen += 1
        if not ((self.every and self.seen % self.every == 0) or (self.p and chance() < self.p)):
            return None
        if not self.aoe and not is_ata:
            return None
        self.given += 1
        verfl = AOE_VERSION << 4 | RESPONSE | (ERROR if self.aoe else 0)
        header = HEADER.pack(src, mac, ETHERTYPE, verfl, self.aoe, major, minor, command, tag)
        if self.aoe:
            return pad(header)
        flags, _, count, _, lba, _ = ATA.unpack_from(frame, HEADER_SIZE)
        return pad(header + ATA.pack(flags, self.ata, count, self.status, lba, 0))


class Faults:
    """A line each way and the errors between them. `inbound` brings requests, `outbound` takes replies away."""

    def __init__(self, seed: int = 0, inbound: Line | None = None, outbound: Line | None = None) -> None:
        self.inbound, self.outbound = inbound or Line(), outbound or Line()
        self.errors: list[Errors] = []
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start all random choices anew."""
        self.inbound.random.seed(f"{seed} in")
        self.outbound.random.seed(f"{seed} out")
        self._random = random.Random(f"{seed} errors")

    def answer(self, frame: bytes | memoryview, mac: bytes) -> bytes | None:
        """The error reply that a request gets in place of being carried out; None if it is to be carried out.

        It comes from the address that was asked for, so that a request to a wildcard is let through.
        """
        for error in self.errors:
            if reply := error.answer(frame, mac, self._random.random):
                return reply
        return None

    def add(self, text: str) -> None:
        """Read one `--fault` option: `loss=0.01,out.dup=0.1,seed=7` or `aoe=2,op=write,every=10`. Raises ValueError.

        `in.` and `out.` name a direction, no prefix means both. An `aoe=` or `ata=` makes one more error rule, to
        which the `op`, `every`, `p`, `times` and `status` of the same option belong.
        """
        rule = Errors()
        named = set()
        for part in text.split(","):
            key, separator, value = part.strip().partition("=")
            if not separator:
                raise ValueError(f"fault {part!r} has no value: give NAME=VALUE, such as loss=0.01")
            direction, dot, name = key.rpartition(".")
            if key == "seed":
                self.seed(int(_number(key, value, 1 << 63)))
            elif not dot and key == "op":
                if value not in (*_OPERATIONS, "any"):
                    raise ValueError(f"fault op={value} is none: give any, {', '.join(_OPERATIONS)}")
                rule.op = value
            elif not dot and key in _RULE:
                setattr(rule, key, _RULE[key](key, value))
                named.add(key)
            elif name in _LINE and direction in _DIRECTIONS:
                for line in _DIRECTIONS[direction]:
                    setattr(getattr(self, line), name, _LINE[name](key, value))
            else:
                raise ValueError(
                    f"fault {key!r} is unknown: give seed, {', '.join(_LINE)} (with in. or out. before it for one"
                    f" direction), or aoe, ata with op, every, p, times, status"
                )
        if named:
            if not named & {"aoe", "ata"}:
                raise ValueError(f"fault {text!r} names no error: add aoe=CODE or ata=CODE")
            if not named & {"every", "p"}:
                rule.every = 1
            self.errors.append(rule)
        elif rule.op != "any":
            raise ValueError(f"fault {text!r} names no error: add aoe=CODE or ata=CODE")

    @classmethod
    def parse(cls, options: list[str]) -> Faults:
        """From all `--fault` options. Raises ValueError."""
        faults = cls()
        for option in options:
            faults.add(option)
        return faults


def _number(key: str, value: str, most: float) -> float:
    try:
        number = float(int(value, 0)) if value[:2].lower() == "0x" else float(value)
    except ValueError:
        raise ValueError(f"fault {key}={value} is not a number") from None
    if not 0 <= number <= most:
        raise ValueError(f"fault {key}={value} is out of range: give 0 to {most:g}")
    return number


def _chance(key: str, value: str) -> float:
    return _number(key, value, 1)


def _seconds(key: str, value: str) -> float:
    return _number(key, value, 3600)


def _byte(key: str, value: str) -> int:
    return int(_number(key, value, 255))


def _count(key: str, value: str) -> int:
    return int(_number(key, value, 1 << 31))


_DIRECTIONS = {"": ("inbound", "outbound"), "in": ("inbound",), "out": ("outbound",)}
_LINE: dict[str, Callable[[str, str], float]] = {
    "loss": _chance,
    "dup": _chance,
    "dupdelay": _seconds,
    "reorder": _chance,
    "hold": _seconds,
    "delay": _seconds,
    "jitter": _seconds,
    "truncate": _chance,
    "mtu": _count,
}
_RULE: dict[str, Callable[[str, str], float]] = {
    "aoe": _byte,
    "ata": _byte,
    "status": _byte,
    "every": _count,
    "p": _chance,
    "times": _count,
}
assert set(_LINE) <= {f.name for f in fields(Line)}
