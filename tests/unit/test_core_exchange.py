# SPDX-License-Identifier: BSD-3-Clause
"""One-off questions: when they are asked again, which answers count, and when it is over."""

from __future__ import annotations

import pytest

from aoe_nbd.core.exchange import SCHEDULE, Exchange
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import ALL_SHELVES, ALL_SLOTS, BROADCAST_MAC, ERROR, RESPONSE, Ata, Command
from aoe_nbd.wire.frames import Config, MaskList, Reserve, build_header, parse_header, taskfile
from inmemory import LINK, LOCAL, REMOTE, REMOTE2

LOCAL2 = bytes.fromhex("020000000102")


def asked(arg: object = None, **options: object) -> tuple[Exchange, list[bytes]]:
    """An exchange at time 0, and its first frames."""
    options = {"seed": 1, "now": 0.0, "timeout": 30.0, "shelf": 1, "slot": 0, **options}
    exchange = Exchange([(LINK, LOCAL)], arg or Config(), **options)  # type: ignore[arg-type]
    return exchange, [frame for _, frame in exchange.due(0.0)]


def answer(frame: bytes, src: bytes = REMOTE, **changed: int) -> bytes:
    head = parse_header(frame)
    fields = {"shelf": 1, "slot": 0, "command": head.command, "tag": head.tag, "flags": RESPONSE, **changed}
    return build_header(head.src, src, **fields) + bytes(12)


def test_it_is_asked_again_at_fixed_times_until_time_is_over() -> None:
    exchange, first = asked(timeout=12.0)
    assert len(first) == 1
    times = [0.0]
    now = 0.0
    while not exchange.done(now):
        now = exchange.timer()
        if exchange.due(now):
            times.append(now)
    assert tuple(times) == (*SCHEDULE, 11.0)
    assert now == 12.0
    assert exchange.due(now) == []


def test_before_its_time_nothing_is_due() -> None:
    exchange, _ = asked()
    assert exchange.due(0.05) == []
    assert len(exchange.due(0.1)) == 1


def test_once_is_once() -> None:
    exchange, first = asked(once=True, timeout=9.0)
    assert len(first) == 1
    assert exchange.timer() == 9.0
    for now in (0.1, 1.0, 8.9):
        assert exchange.due(now) == []


def test_each_link_asks_from_its_own_mac_with_tags_of_their_own() -> None:
    exchange = Exchange([("eth0", LOCAL), ("eth1", LOCAL2)], Config(), seed=1, now=0.0, timeout=9.0)
    frames = exchange.due(0.0) + exchange.due(0.1)
    assert [link for link, _ in frames] == ["eth0", "eth1"] * 2
    assert [frame[6:12] for _, frame in frames] == [LOCAL, LOCAL2] * 2
    assert {frame[:6] for _, frame in frames} == {BROADCAST_MAC}
    assert len({parse_header(frame).tag for _, frame in frames}) == 4


@pytest.mark.parametrize(
    ("arg", "command"),
    [(Config(), 1), (MaskList(), 2), (Reserve(), 3), (taskfile(Ata.IDENTIFY), 0)],
)
def test_each_kind_of_question_goes_by_its_command(arg: object, command: int) -> None:
    exchange, (frame,) = asked(arg, remote=REMOTE)
    assert frame[19] == command
    assert frame[:6] == REMOTE
    wrong = answer(frame, command=(command + 1) % 4)
    assert not exchange.receive(LINK, wrong, 0.001)
    assert exchange.receive(LINK, answer(frame), 0.001)


def test_the_round_trip_is_that_of_the_copy_that_was_answered() -> None:
    exchange, (first,) = asked()
    ((_, second),) = exchange.due(0.1)
    assert exchange.receive(LINK, answer(second), 0.1005)
    assert exchange.receive(LINK, answer(first), 0.5)
    assert [round(a.rtt, 6) for a in exchange.answers] == [0.0005, 0.5]
    assert exchange.answers[0].mac == REMOTE
    assert exchange.answers[0].address == Address(1, 0)
    assert exchange.answers[0].link == LINK


def test_it_ends_with_the_answers_that_were_wanted() -> None:
    exchange, (frame,) = asked(want=2)
    assert not exchange.done(0.001)
    exchange.receive(LINK, answer(frame), 0.001)
    assert not exchange.done(0.001)
    exchange.receive(LINK, answer(frame, REMOTE2), 0.001)
    assert exchange.done(0.001)
    assert exchange.due(0.1) == []


def test_refusals_are_answers() -> None:
    exchange, (frame,) = asked(want=1)
    assert exchange.receive(LINK, answer(frame, flags=RESPONSE | ERROR, error=2), 0.001)
    assert exchange.answers[0].header.failed
    assert exchange.answers[0].header.error == 2


def test_answers_that_are_none() -> None:
    exchange, (frame,) = asked(remote=REMOTE)
    for wrong in (
        answer(frame, flags=0),
        answer(frame, shelf=2),
        answer(frame, slot=1),
        answer(frame, tag=parse_header(frame).tag ^ 1),
        answer(frame, tag=0),
        answer(frame, src=REMOTE2),
        answer(frame, shelf=ALL_SHELVES),
        answer(frame, slot=ALL_SLOTS),
        answer(frame)[:23],
        b"",
        frame,
    ):
        assert not exchange.receive(LINK, wrong, 0.001)
    assert exchange.answers == []


def test_a_question_to_all_takes_answers_from_all_but_not_in_the_name_of_all() -> None:
    exchange, (frame,) = asked(shelf=ALL_SHELVES, slot=ALL_SLOTS)
    assert (frame[16:18], frame[18]) == (b"\xff\xff", 0xFF)
    for shelf, slot in ((0, 0), (65534, 254), (7, 3)):
        assert exchange.receive(LINK, answer(frame, shelf=shelf, slot=slot), 0.001)
    assert not exchange.receive(LINK, answer(frame, shelf=ALL_SHELVES, slot=ALL_SLOTS), 0.001)
    assert not exchange.receive(LINK, answer(frame, shelf=1, slot=ALL_SLOTS), 0.001)


def test_only_a_config_query_may_go_to_all() -> None:
    for shelf, slot in ((ALL_SHELVES, ALL_SLOTS), (1, ALL_SLOTS), (ALL_SHELVES, 0)):
        asked(Config(), shelf=shelf, slot=slot)
        for arg in (taskfile(Ata.IDENTIFY), MaskList(), Reserve()):
            with pytest.raises(ValueError, match="only Query Config"):
                asked(arg, shelf=shelf, slot=slot)


def test_data_follows_the_argument() -> None:
    exchange, (frame,) = asked(taskfile(Ata.WRITE_EXT, 5, 1), data=b"d" * 512)
    assert exchange.command is Command.ATA
    assert frame[36:] == b"d" * 512
