# SPDX-License-Identifier: BSD-3-Clause
"""`check`: the search for the largest frame, and what is said of which findings."""

from __future__ import annotations

import pytest

from aoe_nbd.cli.check import Nic, Route, Search, of_nics, of_routes

GOOD = Nic("eth0", "up", 9000, "02:00:00:00:00:01", 10000)
THERE, BACK = "02:00:00:00:02:01", "02:00:00:00:02:02"


def route(**changes: object) -> Route:
    facts = {"ours": 17, "theirs": 17, "to_target": 17, "from_target": 17, "buffers": 16, **changes}
    return Route("e1.0", str(facts.pop("interface", "eth0")), str(facts.pop("mac", THERE)), **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("most", range(19))
def test_the_search_finds_the_limit(most: int) -> None:
    for limit in range(most + 1):
        search, tried = Search(most), []
        while not search.over:
            size = search.next
            assert 1 <= size <= most
            assert size not in tried
            tried.append(size)
            search.take(size, size <= limit)
        assert search.through == limit
        assert len(tried) <= 6
        assert limit < most or len(tried) <= 1


def test_nothing_to_say_of_a_good_network() -> None:
    assert of_nics([GOOD]) == []
    assert of_routes([GOOD], [route()]) == []


@pytest.mark.parametrize(
    ("nics", "sentence"),
    [
        ([Nic("eth7", "missing")], "interface eth7 does not exist"),
        ([Nic("eth7", "down", 9000)], "interface eth7 is down"),
        ([Nic("eth7", "no carrier", 9000)], "interface eth7 has no carrier"),
        ([Nic("lo", "not Ethernet", 65536)], "interface lo is not Ethernet"),
        ([Nic("eth0", "up", 1500)], "interface eth0 has an MTU of 1500, for frames of 2 sectors: with 9000"),
        ([GOOD, Nic("eth1", "up", 9216)], "the interfaces differ in their MTU (eth0 9000, eth1 9216)"),
    ],
)
def test_interfaces(nics: list[Nic], sentence: str) -> None:
    (warning,) = of_nics(nics)
    assert warning.startswith(sentence)


@pytest.mark.parametrize(
    ("routes", "sentences"),
    [
        ([route(note="refused: no permission")], ["cannot be used: refused: no permission"]),
        ([route(theirs=2, to_target=2, from_target=2)], ["takes frames of 2 sectors, where our MTU allows 17"]),
        ([route(to_target=2)], ["at most 1024 bytes of data get through to the target, where both ends allow 8704"]),
        ([route(from_target=8)], ["at most 4096 bytes of data get through from the target"]),
        ([route(buffers=1)], ["takes one request at a time"]),
        ([route(), route(mac=BACK)], ["e1.0 has 2 MACs and is reached by 1 interface"]),
        ([], []),
    ],
)
def test_paths(routes: list[Route], sentences: list[str]) -> None:
    warnings = of_routes([GOOD], routes)
    assert len(warnings) == len(sentences)
    for warning, sentence in zip(warnings, sentences, strict=True):
        assert sentence in warning


def test_a_target_of_16_sectors_is_as_good_as_one_of_17() -> None:
    assert of_routes([GOOD], [route(theirs=16, to_target=16, from_target=16)]) == []


def test_an_interface_that_reaches_less_than_others() -> None:
    other = Nic("eth1", "up", 9000)
    assert of_routes([GOOD, other], [route()]) == ["no disk is reached by interface eth1"]
    both = [route(), Route("e2.0", "eth1", BACK, 17, 17, 17, 17, 16)]
    assert of_routes([GOOD, other], both) == [
        "e1.0 is not reached by eth1, by which others are",
        "e2.0 is not reached by eth0, by which others are",
    ]


def test_what_frames_carry() -> None:
    assert route().used == 16
    assert route(to_target=2).used == 2
    assert route(to_target=0).used == 0
    assert route().facts()["payload_bytes"] == 8192
