# SPDX-License-Identifier: BSD-3-Clause
"""The fault injector: each fault, each rate near what was asked, and the same for the same seed."""

from __future__ import annotations

import itertools
import random

import pytest
from target_kit import US, ata, config, head, read28, write28

from aoe_nbd.target import Errors, Faults, Line

N = 10_000


def numbered(i: int) -> bytes:
    return i.to_bytes(4, "big") + bytes(56)


def through(line: Line, count: int = N, step: float = 0.0) -> list[bytes]:
    for i in range(count):
        line.push(numbered(i), i * step)
    return line.pop(1e9)


def numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(frame[:4], "big") for frame in frames]


def test_a_good_line_changes_nothing() -> None:
    line = Line()
    line.push(b"a", 5.0)
    line.push(bytearray(b"b"), 5.0)
    assert line.next_time() == 5.0
    assert line.pop(4.9) == []
    assert line.pop(5.0) == [b"a", b"b"]
    assert line.next_time() is None


def test_frames_are_copied() -> None:
    line, memory = Line(), bytearray(b"abc")
    line.push(memoryview(memory), 0)
    memory[:] = b"xyz"
    assert line.pop(0) == [b"abc"]


def test_loss() -> None:
    line = Line(loss=0.1)
    left = numbers(through(line))
    assert left == sorted(left)
    assert 0.88 * N < len(left) < 0.92 * N
    assert line.counters["loss"] == N - len(left)
    assert through(Line(loss=1.0)) == []


def test_duplicates_come_later_when_asked_to() -> None:
    line = Line(dup=0.1, dupdelay=1000.0)
    for i in range(N):
        line.push(numbered(i), 0.0)
    assert numbers(line.pop(999)) == list(range(N))
    copies = numbers(line.pop(1000))
    assert 0.08 * N < len(copies) < 0.12 * N
    assert len(set(copies)) == len(copies) == line.counters["dup"]


def test_reordering_keeps_every_frame() -> None:
    order = numbers(through(Line(reorder=0.1, hold=0.005), step=0.001))
    assert sorted(order) == list(range(N))
    assert order != sorted(order)
    late = sum(a > b for a, b in itertools.pairwise(order))
    assert 0.05 * N < late < 0.15 * N


def test_delay_and_jitter() -> None:
    line = Line(delay=0.5, jitter=0.25)
    line.push(b"a", 10.0)
    due = line.next_time()
    assert due is not None
    assert 10.5 <= due <= 10.75
    assert Line(delay=0.5).next_time() is None


def test_truncation_leaves_the_ethernet_header() -> None:
    sizes = {len(frame) for frame in through(Line(truncate=1.0), 2000)}
    assert sizes == set(range(14, 60))
    Line(truncate=1.0).push(b"", 0)


def test_black_hole() -> None:
    line = Line(mtu=100)
    line.push(bytes(100), 0)
    line.push(bytes(101), 0)
    assert [len(frame) for frame in line.pop(0)] == [100]
    assert line.counters["mtu"] == 1


def test_drop_by_choice() -> None:
    line = Line(drop=lambda frame: frame[3] % 2 == 1)
    assert numbers(through(line, 6)) == [0, 2, 4]


def test_cables_are_apart() -> None:
    line = Line(delay=1)
    line.push(b"a", 0, 0)
    line.push(b"b", 1, 1)
    assert line.next_time() == 1
    assert line.pop(5, 1) == [b"b"]
    assert line.pop(5, 0) == [b"a"]
    assert line.pop(5, 7) == []


def test_the_seed_decides() -> None:
    def run(seed: int) -> tuple[list[bytes], list[bytes]]:
        faults = Faults.parse([f"loss=0.2,dup=0.2,reorder=0.2,truncate=0.1,seed={seed}"])
        return through(faults.inbound, 1000), through(faults.outbound, 1000)

    assert run(7) == run(7)
    assert run(7) != run(8)
    assert run(7)[0] != run(7)[1]


def test_options() -> None:
    faults = Faults.parse(["loss=0.25,in.delay=0.5", "out.mtu=0x100,dup=1"])
    assert (faults.inbound.loss, faults.outbound.loss) == (0.25, 0.25)
    assert (faults.inbound.delay, faults.outbound.delay) == (0.5, 0.0)
    assert (faults.inbound.mtu, faults.outbound.mtu) == (0, 256)
    assert faults.outbound.dup == 1
    faults.add("aoe=2,op=write,every=3,times=5")
    faults.add("ata=0x40,status=0x61,p=0.5")
    faults.add("aoe=6")
    assert faults.errors == [
        Errors(aoe=2, op="write", every=3, times=5),
        Errors(ata=0x40, status=0x61, p=0.5),
        Errors(aoe=6, every=1),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no value"),
        ("loss", "has no value"),
        ("loss=", "is not a number"),
        ("loss=many", "is not a number"),
        ("loss=nan", "out of range"),
        ("loss=1.5", "out of range"),
        ("loss=-1", "out of range"),
        ("up.loss=0.5", "is unknown"),
        ("lost=0.5", "is unknown"),
        ("drop=1", "is unknown"),
        ("aoe=2,op=dance", "op=dance"),
        ("op=write", "names no error"),
        ("every=2", "names no error"),
        ("aoe=256", "out of range"),
        ("seed=x", "is not a number"),
    ],
)
def test_bad_options_are_told(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Faults.parse([text])


def test_aoe_errors_on_demand() -> None:
    faults = Faults.parse(["aoe=3,op=write,every=2"])
    write, read = write28(5, b"x" * 512), read28(5)
    answers = [faults.answer(request, US) for request in (write, read, write, write, read, write)]
    refusal = head(0, 0x1C, 3) + bytes(36)
    assert answers == [None, None, refusal, None, None, refusal]


def test_ata_errors_on_demand() -> None:
    faults = Faults.parse(["ata=0x40,status=0x61,op=read,times=2"])
    expected = head(0) + bytes.fromhex("00400161050000e000000000") + bytes(24)
    assert [faults.answer(read28(5), US) for _ in range(3)] == [expected, expected, None]
    assert faults.answer(config(0), US) is None


@pytest.mark.parametrize("op", ["flush", "identify", "trim", "ata", "config", "mask", "reserve", "any"])
def test_errors_hit_what_they_name(op: str) -> None:
    requests = {
        "flush": ata(0xEA),
        "identify": ata(0xEC),
        "trim": ata(0x06),
        "config": config(0),
        "mask": config(0)[:19] + b"\2" + config(0)[20:],
        "reserve": config(0)[:19] + b"\3" + config(0)[20:],
    }
    faults = Faults()
    faults.errors.append(Errors(aoe=1, op=op, every=1))
    hit = {name for name, request in requests.items() if faults.answer(request, US)}
    everything = {"ata": {"flush", "identify", "trim"}, "any": set(requests)}
    assert hit == everything.get(op, {op})


def test_errors_come_from_an_address_and_not_from_a_wildcard() -> None:
    faults = Faults.parse(["aoe=3"])
    assert faults.answer(read28(5, shelf=0xFFFF), US) is None
    assert faults.answer(read28(5, slot=0xFF), US) is None
    assert faults.answer(read28(5), US)


def test_errors_by_chance() -> None:
    faults = Faults(seed=3)
    faults.errors.append(Errors(aoe=1, p=0.1))
    given = sum(faults.answer(read28(5), US) is not None for _ in range(N))
    assert 0.08 * N < given < 0.12 * N


def test_answers_to_rubbish_do_not_fail() -> None:
    faults = Faults.parse(["aoe=1,op=read", "ata=4"])
    source = random.Random(1)
    for size in range(80):
        faults.answer(source.randbytes(size), US)
