# SPDX-License-Identifier: BSD-3-Clause
"""What happens in one run: drawn from a seed, as plain lists, so that parts can be left out to shrink a failure."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

OPERATOR = 1000  # the number of the client who quiesces
LIFE = 0.9  # s; no copy of a frame is executed later than this after its sending


@dataclass(frozen=True)
class Op:
    """One thing a client does, `think` seconds after its last one was done."""

    number: int
    client: int
    kind: str  # read, write, fua, flush, trim, modify; quiesce: for `count` ms, given up after `lba` ms (0: never)
    lba: int
    count: int
    think: float


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong from `at` to `until`.

    Noise on frames has a `rate`; `link`, `remote` and `reply` say on which (-1: on all); `size` is a number of the kind's own.
    """

    number: int
    kind: str
    at: float
    until: float
    rate: float = 1.0
    link: int = -1
    remote: int = -1
    reply: int = -1
    size: float = 0.0


@dataclass(frozen=True)
class Keep:
    """Which parts of a scenario to keep; None: all. `mishaps` are frame numbers that noise may touch."""

    ops: frozenset[int] | None = None
    faults: frozenset[int] | None = None
    mishaps: frozenset[int] | None = None

    def changed(self, **changes: frozenset[int]) -> Keep:
        return replace(self, **changes)

    def __str__(self) -> str:
        parts = [("o", self.ops), ("f", self.faults), ("m", self.mishaps)]
        return ":".join(f"{name}={','.join(map(str, sorted(kept)))}" for name, kept in parts if kept is not None)

    @classmethod
    def parse(cls, text: str) -> Keep:
        """From what `str` gives."""
        found: dict[str, frozenset[int]] = {}
        for part in filter(None, text.split(":")):
            name, _, numbers = part.partition("=")
            found[name] = frozenset(int(n) for n in numbers.split(",") if n)
        return cls(found.get("o"), found.get("f"), found.get("m"))


# What a seed is about, by seed modulo their number: most mix everything, some are bent towards what is rare otherwise.
THEMES = ("", "", "", "", "stale", "power", "fail", "crash")
NOISE = frozenset(("loss", "dup", "spike", "reorder", "truncate", "corrupt", "forge", "blackhole"))


@dataclass
class Scenario:
    """One run. Links are ours, remotes are the target's MACs; each pair is a path."""

    seed: int
    links: int = 1
    remotes: int = 1
    mtu: int = 1500
    latency: list[float] = field(default_factory=lambda: [100e-6])  # of each path, one way
    serving: str = "fifo"  # fifo, reorder, threads
    service: float = 50e-6
    buffers: int = 16
    enforced: bool = True  # whether the target drops what is above its buffer count
    durable: str = "sync"  # sync, flush, never
    flush_style: str = "plain"  # plain, vblade, ggaoed
    flush_ext: bool = True
    native_fua: bool = False
    lba48: bool = True
    twice: float = 0.0  # how often the target answers twice
    trailing: bool = False  # whether its replies carry bytes past their end
    announces: bool = True
    rounding: bool = False  # frames of an odd number of sectors
    on_dead: float | None = None
    stranger: bool = False
    flooded: float = 0.0  # how often the stranger sees, and answers, a frame that is not for it
    learn: bool = False
    tag_start: int | None = None
    capacity: int = 1 << 20
    wake: float = 20e-6  # most that our I/O thread takes to wake up
    crowded: bool = False  # clients find the engine's lock taken, and their requests are taken in together
    hot: int = 64
    base: int = 0  # LBA of the hot sectors
    heal: float = 1.0  # from then on nothing goes wrong
    ops: list[Op] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def kept(self, keep: Keep) -> Scenario:
        """With only those parts."""
        if keep.ops is not None:
            self.ops = [op for op in self.ops if op.number in keep.ops]
        if keep.faults is not None:
            self.faults = [fault for fault in self.faults if fault.number in keep.faults]
        return self


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(seed)
    s = Scenario(seed)
    chance, choice, uniform = rng.random, rng.choice, rng.uniform
    s.links = choice((1, 1, 1, 2, 2, 3))
    s.remotes = choice((1, 1, 1, 2))
    s.mtu = choice((1500, 1500, 4200, 9000, 9000, 1060, 2700))
    base = 10 ** uniform(-4.5, -3.0)
    s.latency = [base * choice((1, 1, 1, 1.5, 4, 20)) for _ in range(s.links * s.remotes)]
    s.serving = choice(("fifo", "fifo", "reorder", "threads"))
    s.service = 10 ** uniform(-5, -3)
    s.buffers = choice((0, 1, 2, 3, 8, 16, 16, 20, 64))
    s.enforced = chance() < 0.7
    s.durable = choice(("sync", "flush", "flush", "never"))
    s.flush_style = choice(("plain", "vblade", "ggaoed"))
    s.flush_ext = chance() < 0.5
    s.native_fua = chance() < 0.5
    s.lba48 = chance() < 0.9
    s.twice = choice((0.0, 0.0, 0.0, 0.1, 1.0))
    s.trailing = chance() < 0.2
    s.announces = chance() < 0.7
    s.rounding = chance() < 0.3
    s.on_dead = choice((None, None, None, None, 5.0, uniform(0.5, 8.0)))
    s.stranger = chance() < 0.25
    s.flooded = choice((0.0, 0.2)) if s.stranger else 0.0
    s.learn = chance() < 0.5
    if chance() < 0.25:  # near where tags begin again, or where the table does
        s.tag_start = choice(
            ((1 << 31) - rng.randrange(1, 600), (rng.randrange(1, 1 << 15) << 16) - rng.randrange(1, 200))
        )
    s.hot = choice((4, 16, 16, 40, 64))
    s.base = choice((0, 8, 2040, 1000003))
    if s.lba48 and chance() < 0.2:
        s.base = choice(((1 << 28) - s.hot // 2, (1 << 32) - 3))
    s.capacity = s.base + s.hot + 1000
    s.crowded = chance() < 0.3
    s.wake = choice((20e-6, 20e-6, 200e-6, 2e-3))
    s.heal = 10 ** uniform(-1.5, 0.6)
    theme = theme_of(seed)
    if theme:
        s.hot = choice((2, 4, 8))
        s.latency = [base * 0.3] * len(s.latency)
        s.service = min(s.service, 200e-6)
        s.heal = uniform(1.5, 4.0)
        s.on_dead = uniform(0.3, 1.0) if theme == "fail" else None
        if theme == "power":
            s.durable, s.stranger = "flush", False
    _draw_ops(s, rng, theme)
    _draw_faults(s, rng)
    _draw_theme(s, rng, theme)
    _draw_quiesce(s, theme)
    if chance() < 0.015:  # trouble that lasts, to see what grows with it
        number = max((fault.number for fault in s.faults), default=0) + 1
        s.heal = 0.5 + 10 ** uniform(1.0, 2.5)
        kind = choice(("restart", "flap", "blackhole", "neighbour", "loss"))
        more = {"flap": {"link": 0, "size": 1e-3}, "blackhole": {"reply": choice((0, 1)), "size": 600.0}}.get(kind, {})
        if kind == "loss":
            more = {"rate": 0.7}
        elif kind == "neighbour":
            more = {"size": 1.0}
        s.faults.append(Fault(number, kind, 0.5, s.heal, **more))  # type: ignore[arg-type]
    return s


def theme_of(seed: int) -> str:
    """What this seed is about."""
    return THEMES[seed % len(THEMES)]


def _draw_theme(s: Scenario, rng: random.Random, theme: str) -> None:
    """Some more of what the theme is about, and not much else."""
    uniform = rng.uniform
    if not theme:
        return
    faults = [replace(fault, rate=fault.rate * 0.3) if fault.rate < 1 else fault for fault in s.faults]
    s.faults = [fault for fault in faults if rng.random() < 0.4]
    number = max((fault.number for fault in s.faults), default=0)

    def add(kind: str, at: float, until: float, **more: float) -> None:
        nonlocal number
        number += 1
        s.faults.append(Fault(number, kind, at, until, **more))  # type: ignore[arg-type]

    if theme in ("stale", "fail", "crash"):
        add("spike", 0.0, s.heal, rate=uniform(0.05, 0.5), size=uniform(0.02, 0.85), reply=0)
    for _ in range(rng.randint(1, 5)):
        at = uniform(0.9, s.heal)
        if theme == "power":
            add("power", at, at + 10 ** uniform(-3, -1))
        elif theme == "crash":
            add("crash", at, at)
        elif theme == "stale" and rng.random() < 0.6:
            add("pause", at, at + uniform(0.5, 1.5))
        elif theme == "fail":
            add("refuse", at, at + uniform(0.01, 0.5), rate=uniform(0.1, 0.6), size=rng.choice((3, 6, 0x20_00)))


def _draw_ops(s: Scenario, rng: random.Random, theme: str) -> None:
    clients = rng.choice((2, 3, 4, 6, 10))
    total = rng.choice((20, 40, 60, 90))
    weights = {"read": 8, "write": 8, "fua": 1, "flush": 1, "trim": 1, "modify": 2}
    if rng.random() < 0.3:
        weights[rng.choice(list(weights))] += 10
    if theme == "power":
        weights["fua"], weights["flush"] = rng.choice(((10, 1), (1, 10), (5, 5)))
    kinds = rng.choices(list(weights), list(weights.values()), k=total)
    longest = rng.choice((1, 4, 12, s.hot))
    pause = s.heal * clients / total * rng.choice((0.2, 1.0, 1.5))
    for number, kind in enumerate(kinds, 1):
        count = rng.randint(1, min(s.hot, longest))
        lba = s.base + rng.randint(0, s.hot - count)
        think = rng.expovariate(1 / pause) if rng.random() < 0.7 else 0.0
        s.ops.append(Op(number, rng.randrange(clients), kind, lba, count, think))


def _draw_quiesce(s: Scenario, theme: str) -> None:
    """An operator who has the host pause now and then, as for a migration."""
    rng = random.Random(s.seed ^ 0x9A5E)  # of its own, so that all else stays as it was without him
    if rng.random() < 0.75:
        return
    number = max((op.number for op in s.ops), default=0)
    busy = theme == "crash"  # he is there at once when a new process is
    for _ in range(rng.randint(3, 8) if busy else rng.randint(1, 4)):
        number += 1
        patience = rng.choice((0, 0, rng.randint(1, 2000)))
        pause = rng.choice((rng.randint(1, 50), 1000))
        think = 0.0 if busy else rng.uniform(0, s.heal / 2)
        s.ops.append(Op(number, OPERATOR, "quiesce", patience, pause, think))


def _draw_faults(s: Scenario, rng: random.Random) -> None:
    uniform, choice, chance = rng.uniform, rng.choice, rng.random
    worst = choice((0.0, 0.02, 0.1, 0.3))
    faults: list[dict[str, float | str]] = []

    def window(least: float, most: float) -> tuple[float, float]:
        length = min(s.heal, 10 ** uniform(*(least, most)))
        start = uniform(0, s.heal - length)
        return start, start + length

    def where() -> dict[str, float]:
        return {
            "link": rng.randrange(s.links) if chance() < 0.5 else -1,
            "remote": rng.randrange(s.remotes) if chance() < 0.3 else -1,
            "reply": choice((-1, -1, 0, 1)),
        }

    def add(kind: str, at: float, until: float, **more: float) -> None:
        faults.append({"kind": kind, "at": at, "until": until, **more})

    if worst:
        for kind in ("loss", "dup", "spike", "reorder", "truncate", "corrupt", "forge"):
            if chance() < 0.45:
                size = 10 ** uniform(-3, 0) if kind == "spike" else 0.0
                add(kind, 0.0, s.heal, rate=worst * uniform(0.1, 1), size=size, **where())
        for _ in range(choice((0, 0, 1, 3))):
            add("loss", *window(-3.5, -0.3), **where())
    for kind, odds, least, most in (
        ("blackhole", 0.1, -1.5, 0.0),
        ("flap", 0.2, -2.5, 0.0),
        ("sendfail", 0.15, -3.0, -1.0),
        ("stall", 0.15, -3.0, 0.2),
        ("pause", 0.05, -2.0, 0.3),
        ("restart", 0.2, -2.0, 0.3),
        ("power", 0.2, -2.0, 0.3),
        ("crash", 0.1, -3.0, -2.0),
        ("neighbour", 0.2, -2.0, 0.0),
        ("mtu", 0.1, -1.5, 0.0),
        ("ours", 0.07, -1.5, 0.0),
        ("refuse", 0.1, -2.5, -1.0),
        ("grow", 0.07, -2.0, -1.0),
        ("swap", 0.05, -0.3, 0.5),
    ):
        while chance() < odds:
            at, until = window(least, most)
            more: dict[str, float] = {}
            if kind in ("blackhole", "flap", "sendfail", "ours"):
                more = where()
            if kind == "flap":
                more["link"] = rng.randrange(s.links)
                more["size"] = 10 ** uniform(-4, -1.5)  # how long until we hear of it
            elif kind == "blackhole":
                more["size"] = choice((600, 1100, 1500, 5000))
            elif kind == "sendfail":
                more["rate"] = choice((0.1, 0.5, 1.0))
            elif kind == "neighbour":
                more["size"] = uniform(0.3, 1.0)  # of the target's buffers
            elif kind in ("mtu", "ours"):
                more["size"] = choice((1060, 1500, 4200, 9000))
            elif kind == "refuse":
                more["size"] = choice((3, 6, 0x41_04, 0x41_40, 0x20_00))
                more["rate"] = uniform(0.05, 0.5)
            elif kind == "grow":
                more["size"] = rng.randint(1, 1000)
            elif kind == "swap":
                s.stranger = True
            add(kind, at, until, **more)
    s.faults = [Fault(number, **fault) for number, fault in enumerate(faults, 1)]  # type: ignore[arg-type]
