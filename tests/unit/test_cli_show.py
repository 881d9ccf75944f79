# SPDX-License-Identifier: BSD-3-Clause
"""How results look, and what two answers for one address mean."""

from __future__ import annotations

import math

import pytest

from aoe_nbd.cli import ping, show
from aoe_nbd.cli.asking import Disk, Path, conflict
from aoe_nbd.cli.discover import grouped
from aoe_nbd.core.exchange import Answer
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import ERROR, RESPONSE
from aoe_nbd.wire.frames import ATA, Config, build_header, parse_header
from aoe_nbd.wire.identify import Identify

HERE, THERE = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1 << 30, "1.07 GB"),
        (999_999_999_999, "1.00 TB"),
        (1 << 63, "9.22 EB"),
    ],
)
def test_size(count: int, shown: str) -> None:
    assert show.size(count) == shown


def test_what_others_wrote_cannot_move_the_cursor() -> None:
    assert show.text(b"a\x1b[2J\x00\xff\n") == r"a\x1b[2J\x00\xff\n"
    assert show.text("grün [bold]".encode()) == "grün [bold]"


def test_columns_align_and_no_cell_is_empty() -> None:
    lines = show.columns(("A", "LONG", "C"), [("xx", "", ["1", "2"]), ("y", "z", "")])
    assert lines == ["A   LONG  C", "xx  -     1,2", "y   z     -"]


def disk(mac: bytes, serial: str = "s", sectors: int = 10, slot: int = 0, link: str = "eth0") -> Disk:
    return Disk(Path(Address(1, slot), link, mac, Config(), ""), Identify(serial, "1", "m", sectors), "")


def test_two_paths_of_one_disk_are_one_row() -> None:
    disks = [disk(HERE), disk(THERE), disk(HERE, link="eth1")]
    assert grouped(disks) == [(disks, False)]
    assert not conflict(disks)


@pytest.mark.parametrize("other", [disk(THERE, serial="t"), disk(THERE, sectors=11)])
def test_two_disks_at_one_address_are_flagged(other: Disk) -> None:
    disks = [disk(HERE), other, disk(THERE, "u", slot=1)]
    assert grouped(disks) == [([disks[0]], True), ([other], True), ([disks[2]], False)]
    sentence = conflict(disks[:2])
    assert sentence.startswith(
        "two different disks answer for e1.0: one by 02:00:00:00:00:01 on eth0, another by 02:00"
    )


def test_a_path_that_does_not_identify_is_a_row_and_no_conflict() -> None:
    mute = Disk(Path(Address(1, 0), "eth0", THERE, Config(), ""), None, "IDENTIFY: no answer")
    assert grouped([disk(HERE), mute]) == [([disk(HERE)], False), ([mute], False)]
    assert not conflict([disk(HERE), mute])


# -- ping ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([1.0], 50, 1.0),
        ([1.0, 2.0], 50, 1.0),
        ([1.0, 2.0, 3.0], 50, 2.0),
        (list(range(1, 101)), 95, 95),
        ([1.0, 2.0], 99, 2.0),
    ],
)
def test_percentile_by_nearest_rank(values: list[float], percent: float, expected: float) -> None:
    assert ping.percentile(values, percent) == expected


def test_tally() -> None:
    tally = ping.Tally(sent=5, lost=1)
    assert tally.rtt() == {} and tally.loss == 1
    for rtt in (0.002, 0.001, 0.006):
        tally.take(rtt)
    assert tally.loss == 0.25  # the fifth is under way, and nobody knows its fate
    found = tally.rtt()
    assert list(found) == ["min", "avg", "p50", "p95", "p99", "max"]
    assert found == pytest.approx({"min": 0.001, "avg": 0.003, "p50": 0.002, "p95": 0.006, "p99": 0.006, "max": 0.006})
    assert tally.lines("x") == [
        "x: 5 sent, 3 received, 25 % loss, 1 under way",
        "  round trip min/avg/p50/p95/p99/max = 1.000/3.000/2.000/6.000/6.000/6.000 ms",
    ]
    total = ping.Tally()
    total.add(tally)
    total.add(ping.Tally(sent=1, lost=1))
    assert (total.sent, total.received, total.lost, total.least) == (6, 3, 2, 0.001)
    assert ping.Tally().facts()["rtt_ms"] == {} and ping.Tally().least == math.inf


def test_a_long_ping_keeps_a_sample_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping, "_SAMPLES", 10)
    tally = ping.Tally()
    for _ in range(500):
        tally.take(0.5)
    tally.take(9.0)
    assert len(tally.samples) == 10 and tally.received == 501
    assert tally.rtt()["max"] == 9.0 and tally.rtt()["avg"] == pytest.approx((250 + 9) / 501)


def answer(flags: int = RESPONSE, error: int = 0, status: int = 0x40, data: int = 512, ata_error: int = 0) -> Answer:
    frame = (
        build_header(HERE, THERE, 1, 0, 0, 1, flags, error)
        + ATA.pack(0, ata_error, 0, status, bytes(6), 0)
        + bytes(data)
    )
    return Answer("eth0", parse_header(frame), frame, 0.001)


def test_what_is_wrong_with_an_answer() -> None:
    probe = ping.Probe.of(None, "1")
    assert probe.verdict(answer()) == ""
    assert probe.verdict(answer(RESPONSE | ERROR, 6)) == "refused: target is reserved"
    assert probe.verdict(answer(RESPONSE | ERROR, 0)) == "refused: AoE error 0"  # qaoed
    assert "aborts" in probe.verdict(answer(status=0x41, ata_error=4))
    assert "cut short" in probe.verdict(answer(data=100))
    assert ping.Probe.of(None, None).verdict(answer(data=0)) == ""
