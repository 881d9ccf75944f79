# SPDX-License-Identifier: BSD-3-Clause
"""From a request to its frames: exactly its sectors, within every limit, and the same bytes by each way of encoding."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aoe_nbd.core import encode
from aoe_nbd.core.copies import Run
from aoe_nbd.core.flight import Class
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.path import Path
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.codes import MIN_FRAME, SECTOR, Ata
from aoe_nbd.wire.frames import ATA_SIZE, parse_ata, parse_header
from examples import examples
from inmemory import IDENTITY, LOCAL, REMOTE, Lan, Scripted, encode_runs, lba_of, reply

LAN = Lan(9000)
LAN.peer(Scripted(sectors=17, buffers=64))
INITIATOR: Initiator = LAN.attach()
PATH: Path = INITIATOR.paths[0]
BIG = 1 << 48

SEQS = st.integers(0, 1 << 62) | st.integers((1 << 31) - 70_000, (1 << 31) - 2)


def run_of(kind: Kind, lba: int, count: int, offset: int, length: int, step: int, seq: int, fua: bool) -> Run:
    frames_wanted = -(-length // step)
    if seq & (1 << 31) - 1 > (1 << 31) - 2 - frames_wanted:
        seq -= frames_wanted  # a run never crosses the end of the tags
    data = memoryview(bytearray(random.Random(seq).randbytes(count * SECTOR)))
    request = Request(kind, lba, count, data, fua=fua)
    return Run(PATH, PATH.flights[Class.READ], request, seq, frames_wanted, offset, length, step, 0.0)


@examples(5_000)
@given(
    st.sampled_from([Kind.READ, Kind.WRITE]),
    st.booleans(),
    st.booleans(),
    st.integers(0, BIG) | st.integers((1 << 28) - 600, (1 << 28) + 5) | st.integers((1 << 32) - 600, (1 << 32) + 5),
    st.integers(1, 600),
    st.integers(1, 255),
    SEQS,
    st.data(),
)
def test_array_form_and_single_frames_are_the_same_bytes(
    kind: Kind, lba48: bool, fua: bool, lba: int, count: int, step: int, seq: int, data: st.DataObject
) -> None:
    limit = BIG if lba48 else (1 << 28) - 1
    lba = min(lba, limit - count)
    offset = data.draw(st.integers(0, count - 1))
    length = data.draw(st.integers(1, count - offset))
    INITIATOR.identify = replace(IDENTITY, lba48=lba48, sectors=limit)
    run = run_of(kind, lba, count, offset, length, step, seq, fua and lba48)
    singly = []
    for index in range(run.count):
        header, payload = encode.frame(INITIATOR, run, index)
        singly.append(bytes(header) + bytes(payload or b""))
    if run.count > 1:
        assert encode_runs(INITIATOR, [run]) == singly
    at = lba + offset
    for index, frame in enumerate(singly):
        head, ata = parse_header(frame), parse_ata(frame)
        assert head[:8] == (REMOTE, LOCAL, 0x88A2, 0x10, 0, 1, 0, 0)
        assert head.tag == 1 << 31 | (run.seq + index) & (1 << 31) - 1
        assert lba_of(frame) == at
        assert 1 <= ata.count <= step
        assert ata.reserved == ata.error_feature == 0
        if kind is Kind.READ:
            assert frame[ATA_SIZE:] == bytes(MIN_FRAME - ATA_SIZE)
        else:
            assert run.request.data is not None
            start = (at - lba) * SECTOR
            assert frame[ATA_SIZE:] == run.request.data[start : start + ata.count * SECTOR]
        at += ata.count
    assert at == lba + offset + length


@examples(1_000)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([Kind.READ, Kind.WRITE]),
            st.booleans(),
            st.integers(0, 1 << 40),
            st.integers(1, 300),
            st.sampled_from([2, 17]),
            SEQS,
        ),
        max_size=12,
    ),
    st.integers(150, 256),
)
def test_runs_that_go_out_together_are_the_same_bytes(
    many: list[tuple[Kind, bool, int, int, int, int]], most: int
) -> None:
    INITIATOR.identify = replace(IDENTITY, lba48=True, sectors=BIG)
    runs = [run_of(kind, lba, count, 0, count, step, seq, fua) for kind, fua, lba, count, step, seq in many]
    groups = list(encode.together(runs, most))
    assert [run for group in groups for run in group] == runs
    for group in groups:
        together = encode_runs(INITIATOR, group)
        assert len(together) == sum(run.count for run in group) <= most
        at = 0
        for run in group:
            for index in range(run.count):
                header, payload = encode.frame(INITIATOR, run, index)
                assert together[at] == bytes(header) + bytes(payload or b"")
                at += 1
    for before, after in pairwise(groups):
        kinds = {(run.request.kind, run.request.fua, run.step) for run in (*before, *after)}
        assert len(kinds) > 1 or sum(run.count for run in before) + after[0].count > most


class Tally:
    """A target that says yes to everything and remembers what it was asked."""

    def __init__(self, sectors: int, buffers: int, mtu: int, cap: int) -> None:
        self.lan = Lan(mtu)
        self.under_way = 0
        self.peer = Scripted(self.answer, sectors=sectors, buffers=buffers, identify=replace(IDENTITY, sectors=BIG))
        self.lan.peer(self.peer)
        self.initiator = self.lan.attach(cap=cap)
        self.lan.pause(8.0)  # all frame sizes have been tried by then

    def answer(self, frame: bytes) -> list[bytes]:
        count = frame[26] if frame[27] == Ata.READ_EXT else 0
        lba = lba_of(frame) if frame[27] in (Ata.READ_EXT, Ata.WRITE_EXT) else 0
        data = b"".join(((lba + i) & 0xFFFFFFFF).to_bytes(4, "big") * 128 for i in range(count))
        return [reply(frame, data)]


TALLIES: dict[Any, Tally] = {}


@examples(1_500)
@given(
    st.sampled_from(
        [(17, 16, 9000, 255), (2, 3, 1500, 255), (0, 0, 1500, 255), (255, 64, 65535, 255), (17, 16, 9000, 5)]
    ),
    st.sampled_from([Kind.READ, Kind.WRITE]),
    st.integers(0, BIG - 5000) | st.integers(0, 300),
    st.integers(1, 64) | st.integers(1, 1500),
)
@example((17, 16, 9000, 255), Kind.READ, (1 << 32) - 3, 2049)
@example((255, 64, 65535, 255), Kind.WRITE, (1 << 28) - 3, 4096)
def test_a_requests_commands_cover_exactly_its_sectors(
    target: tuple[int, int, int, int], kind: Kind, lba: int, count: int
) -> None:
    sectors, _, mtu, cap = target
    tally = TALLIES.get(target) or TALLIES.setdefault(target, Tally(*target))
    most = min(sectors or 2, (mtu - 36) // 512, cap)
    lan = tally.lan
    tally.peer.seen.clear()
    buffer = bytearray(count * SECTOR)
    content = random.Random(lba).randbytes(count * SECTOR)
    data = memoryview(buffer if kind is Kind.READ else bytearray(content))
    done = lan.do(Request(kind, lba, count, data))
    assert not done.error
    opcode = Ata.READ_EXT if kind is Kind.READ else Ata.WRITE_EXT
    at = lba
    for frame in sorted((f for f in tally.peer.seen if f[27] == opcode and lba_of(f) >= lba), key=lba_of):
        assert lba_of(frame) == at, "a gap, or a sector twice"
        assert 1 <= frame[26] <= most
        assert len(frame) <= mtu + 14
        if kind is Kind.WRITE:
            assert frame[ATA_SIZE:] == content[(at - lba) * SECTOR : (at - lba + frame[26]) * SECTOR]
        at += frame[26]
    assert at == lba + count
    if kind is Kind.READ:
        assert buffer == b"".join(((lba + i) & 0xFFFFFFFF).to_bytes(4, "big") * 128 for i in range(count))
    assert tally.initiator.outstanding() == 0
    assert tally.initiator.ghosts == 0
    del lan.sent[:], lan.heard[:]


@pytest.mark.parametrize("count", [65536])
def test_a_request_of_32_mib(count: int) -> None:
    lan = Lan(9000)
    port = lan.target(buffers=64)
    lan.attach()
    content = random.Random(count).randbytes(count * SECTOR)
    port.disk.sectors = 1 << 18
    lan.do(Request(Kind.WRITE, 5, count - 8, memoryview(bytearray(content[: (count - 8) * SECTOR]))))
    assert port.disk.whole(5, count - 8) == content[: (count - 8) * SECTOR]
    assert lan.read(5, count - 8) == content[: (count - 8) * SECTOR]


@examples(2_000)
@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(1, 40)), max_size=12))
def test_open_parts_are_what_was_not_answered(count: int, answered: list[tuple[int, int]]) -> None:
    request = Request(Kind.READ, 0, count, memoryview(bytearray(count * SECTOR)))
    open_sectors = set(range(count))
    for offset, length in answered:
        length = min(length, count - offset)
        if length > 0:
            request.answered[offset : offset + length] = b"\1" * length
            open_sectors -= set(range(offset, offset + length))
    parts = request.open_parts(0, count)
    assert [s for start, n in parts for s in range(start, start + n)] == sorted(open_sectors)
    for (a, n), (b, _) in pairwise(parts):
        assert a + n < b
    assert all(n > 0 for _, n in parts)
