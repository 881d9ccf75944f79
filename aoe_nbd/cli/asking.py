# SPDX-License-Identifier: BSD-3-Clause
"""Questions of one command: open the links, find who answers for an address, ask each of them, read what they say."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ..bridge import choose_interfaces, open_links
from ..core.exchange import Answer, Exchange
from ..core.flight import FOREVER
from ..core.initiator import Identity
from ..core.reply import ata_verdict
from ..core.request import Kind
from ..device import config_of, find
from ..engine import Engine
from ..wire.address import Address, format_mac
from ..wire.codes import SECTOR, Ata, aoe_error_text
from ..wire.frames import ATA_SIZE, Config, FrameError, MaskList, Reserve, Taskfile, build_request, parse_ata, taskfile
from ..wire.identify import Identify
from .failure import Failure
from .words import shown

PATIENCE = 5.0  # s for an answer of a target that has just answered
GRACE = 0.3  # s after a first answer in which a LUN's other paths may answer too
ETHERNET = 14  # bytes of a frame that its MTU does not count
_TOGETHER = 32  # questions under way at once: a target with many LUNs has one queue for all


@contextmanager
def asking(names: Sequence[str]) -> Iterator[Engine]:
    """An engine over these interfaces, or over the only one there is."""
    engine = Engine(open_links(choose_interfaces(names, "-i")))
    try:
        yield engine
    finally:
        engine.stop()


class Path(NamedTuple):
    """One MAC that answers for a LUN, on one of our interfaces. `config` is None if it refused; then `refusal` says how."""

    address: Address
    link: str
    mac: bytes
    config: Config | None
    refusal: str

    def __str__(self) -> str:
        return f"{format_mac(self.mac)} on {self.link}"


def paths(
    engine: Engine, which: Address, timeout: float, macs: Sequence[bytes] = (), grace: float | None = GRACE
) -> list[Path]:
    """Who answers for `which` (wildcards allowed), in order. With `grace`, wait that long after the first answer only."""
    found = []
    for answer in find(engine, which, timeout, macs, grace):
        config = config_of(answer)
        found.append(Path(answer.address, answer.link, answer.mac, config, "" if config else refusal(answer)))
    return sorted(found, key=lambda path: path[:3])


def reach(engine: Engine, which: Address, timeout: float, macs: Sequence[bytes] = ()) -> list[Path]:
    """The paths of one LUN. Raises Failure if there is none."""
    found = paths(engine, which, timeout, macs)
    if found:
        return found
    others = find(engine, which, 1.0) if macs else []
    if others:
        known = ", ".join(sorted({format_mac(answer.mac) for answer in others}))
        raise Failure(f"mac={format_mac(macs[0])} does not serve {which}: {known} does")
    raise Failure(nobody(engine, which, timeout))


def nobody(engine: Engine, which: Address, timeout: float) -> str:
    """The sentence for silence."""
    unsent = sorted(name[len("send_failed_") :] for name in engine.counters if name.startswith("send_failed_"))
    where = ", ".join(engine.links)
    if unsent:
        return f"nothing could be sent on {where} ({', '.join(unsent)}): check the interface and its MTU"
    hint = "check the interface, the cable or VLAN, and that the target runs and serves this host"
    if which == (0xFFFF, 0xFF):
        return f"no target answered within {timeout:g} s on {where}: {hint}"
    return f"no answer from {shown(which)} within {timeout:g} s on {where}: `aoe-nbd discover` shows who does; {hint}"


def check_fits(engine: Engine, arg: Config | MaskList | Reserve) -> None:
    """Raise Failure if this request is longer than a frame of one of the interfaces: it would only meet silence."""
    length = len(build_request(bytes(6), bytes(6), 0, 0, 0, arg)) - ETHERNET
    for link in engine.links.values():
        if length > link.mtu:
            raise Failure(
                f"the request needs an MTU of {length}, and {link.name} has {link.mtu}: raise it, or ask for less at once"
            )


def question(
    engine: Engine,
    path: Path,
    arg: Taskfile | Config | MaskList | Reserve,
    timeout: float = PATIENCE,
    *,
    data: bytes = b"",
    want: int | None = 1,
    once: bool = False,
) -> Exchange:
    """A question for one path, not put yet."""
    return Exchange(
        [(path.link, engine.links[path.link].mac)],
        arg,
        seed=engine.seed(),
        now=time.monotonic(),
        timeout=timeout,
        shelf=path.address.shelf,
        slot=path.address.slot,
        remote=path.mac,
        data=data,
        want=want,
        once=once,
    )


def ask(engine: Engine, path: Path, arg: Taskfile | Config | MaskList | Reserve) -> Answer | None:
    """Ask one path; None is silence."""
    answers = engine.ask(question(engine, path, arg)).answers
    return answers[0] if answers else None


def ask_each(engine: Engine, which: Sequence[Path], arg: Taskfile) -> list[Answer | None]:
    """Ask all these paths the same, at the same time. One answer a path, in their order."""
    answers: list[Answer | None] = []
    for start in range(0, len(which), _TOGETHER):
        exchanges = [question(engine, path, arg) for path in which[start : start + _TOGETHER]]
        for exchange in exchanges:
            engine.begin(exchange)
        engine.wait(lambda these=exchanges: all(e.done(time.monotonic()) for e in these), FOREVER)  # type: ignore[misc]
        for exchange in exchanges:
            engine.end(exchange)
            answers.append(exchange.answers[0] if exchange.answers else None)
    return answers


def refusal(answer: Answer) -> str:
    """Why an answer is none, in one phrase."""
    if answer.header.failed:
        return f"refused: {aoe_error_text(answer.header.error)}"
    return "unreadable answer"


class Disk(NamedTuple):
    """What one path's IDENTIFY says; without `identify`, `note` says why."""

    path: Path
    identify: Identify | None
    note: str

    @property
    def identity(self) -> tuple[Identity, int] | None:
        """What two paths of one disk have in common."""
        return None if self.identify is None else (Identity.of(self.identify), self.identify.sectors)


def identify(engine: Engine, which: Sequence[Path]) -> list[Disk]:
    """IDENTIFY by each of these paths, always to its own MAC."""
    answers = ask_each(engine, which, taskfile(Ata.IDENTIFY))
    return [Disk(path, *_identified(answer)) for path, answer in zip(which, answers, strict=True)]


def _identified(answer: Answer | None) -> tuple[Identify | None, str]:
    if answer is None:
        return None, "IDENTIFY: no answer"
    try:
        if answer.header.failed:
            return None, f"IDENTIFY {refusal(answer)}"
        registers = parse_ata(answer.frame)
        verdict = ata_verdict(Kind.IDENTIFY, Ata.IDENTIFY, registers.command_status, registers.error_feature)
        if verdict.error:
            return None, f"IDENTIFY: {verdict.reason}"
        if len(answer.frame) < ATA_SIZE + SECTOR:
            return None, "IDENTIFY: the answer is cut short"
        return Identify.parse(answer.frame[ATA_SIZE:]), ""
    except (FrameError, ValueError) as error:
        return None, f"IDENTIFY: {error}"


def conflict(disks: Sequence[Disk]) -> str:
    """The sentence for different disks behind one address, if there are any."""
    kinds: dict[object, list[str]] = {}
    for disk in disks:
        if disk.identity is not None:
            kinds.setdefault(disk.identity, []).append(str(disk.path))
    if len(kinds) < 2:
        return ""
    number = "two" if len(kinds) == 2 else str(len(kinds))
    by = ", another by ".join(" and ".join(each) for each in kinds.values())
    return (
        f"{number} different disks answer for {disks[0].path.address}: one by {by}; "
        f"give each its own shelf and slot, and until then name the MAC of the one you mean"
    )


def by_mac(which: Sequence[Path]) -> list[Path]:
    """One path a MAC, for what a target keeps once however many interfaces lead to it."""
    first: dict[tuple[Address, bytes], Path] = {}
    for path in which:
        first.setdefault((path.address, path.mac), path)
    return list(first.values())
