# SPDX-License-Identifier: BSD-3-Clause
"""The table of copies: tags, wrap-around, places that are taken, runs."""

from __future__ import annotations

import random

import pytest

from aoe_nbd.core.copies import FLYING, FREE, GHOST, LOST, MASK, PROBED, SIZE, STALE, Copies, Run, tag_of
from aoe_nbd.core.flight import Class
from aoe_nbd.core.path import Path
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.frames import Config

RNG = random.Random(1)
PATH = Path("eth0", bytes(6), bytes(6), 1500, Config(), 255, Copies(0), RNG, 0.0)
FLIGHT = PATH.flights[Class.READ]
REQUEST = Request(Kind.FLUSH)
WRAP = 1 << 31


def enter(copies: Copies, count: int, offset: int, length: int, step: int, now: float) -> int:
    run = Run(PATH, FLIGHT, REQUEST, copies.next, count, offset, length, step, now)
    copies.add(run)
    return run.seq


def put(copies: Copies, count: int = 1, offset: int = 0, step: int = 1, now: float = 0.0) -> int:
    assert copies.room(count) >= count
    return enter(copies, count, offset, count * step, step, now)


@pytest.mark.parametrize("start", [0, 1, 12345, SIZE - 1, WRAP - 2, WRAP - 1, WRAP, 5 * WRAP - 1, (1 << 62) - 1])
def test_tags_are_never_reserved_ones(start: int) -> None:
    copies = Copies(start)
    seqs = [put(copies) for _ in range(10)]
    tags = [tag_of(seq) for seq in seqs]
    assert all(tag >> 31 == 1 for tag in tags)
    assert not {0, 0xFFFFFFFF} & set(tags)
    assert len(set(tags)) == 10
    assert seqs == sorted(seqs)
    for seq, tag in zip(seqs, tags, strict=True):
        assert copies.find(tag) == seq


def test_tags_differ_over_the_whole_circle() -> None:
    """A tag comes again only after 2^31 - 1 others."""
    assert tag_of(5) == tag_of(5 + WRAP)
    assert len({tag_of(seq) for seq in range(100_000)}) == 100_000
    assert tag_of(WRAP - 1) == 0xFFFFFFFF  # which is why that number is left out


def test_a_run_ends_where_the_ring_or_the_tags_end() -> None:
    copies = Copies(SIZE - 3)
    assert copies.room(100) == 3
    put(copies, 3)
    assert copies.room(100) == 100
    copies = Copies(WRAP - 4)
    assert copies.room(100) == 3
    put(copies, 3)
    assert copies.room(100) == 100
    assert copies.next & (WRAP - 1) == 0


def test_places_that_are_taken_are_skipped() -> None:
    copies = Copies(100)
    for state in (FLYING, LOST, GHOST, PROBED):
        seq = put(copies)
        copies.state[seq & MASK] = state
    last = put(copies)
    copies.free(last)
    stale = put(copies)
    copies.state[stale & MASK] = STALE
    taken = put(copies)
    copies.next = 100 + SIZE  # once around
    assert copies.room(10) == 2
    assert copies.next == last + SIZE
    first = enter(copies, 2, 0, 2, 1, 0.0)
    assert copies.find(tag_of(first)) == first
    assert copies.find(tag_of(taken)) == taken
    assert copies.room(10) == 10
    assert copies.next == taken + SIZE + 1


def test_an_old_tag_at_a_new_copys_place_is_not_found() -> None:
    copies = Copies(7)
    old = put(copies)
    copies.free(old)
    assert copies.find(tag_of(old)) == -1
    copies.next = old + SIZE
    new = put(copies)
    assert new & MASK == old & MASK
    assert copies.find(tag_of(old)) == -1
    assert copies.find(tag_of(new)) == new
    assert copies.find(tag_of(new) ^ 1) == -1
    assert copies.find(0) == -1
    assert copies.find(0xFFFFFFFF) == -1


@pytest.mark.parametrize(("length", "step"), [(1, 1), (16, 16), (17, 16), (160, 16), (161, 16), (7, 2), (255, 1)])
def test_a_run_written_at_once_is_as_if_written_one_by_one(length: int, step: int) -> None:
    count = -(-length // step)
    together, alone = Copies(9), Copies(9)
    first = enter(together, count, 5, length, step, 1.5)
    for i in range(count):
        enter(alone, 1, 5 + i * step, min(step, length - i * step), step, 1.5)
    assert together.next == alone.next
    assert together.state == alone.state
    for seq in range(first, first + count):
        mine, other = together.owner(seq), alone.owner(seq)
        assert mine.part(seq) == other.part(seq)
        assert (mine.request, mine.sent, mine.flight) == (other.request, other.sent, other.flight)
        assert together.find(tag_of(seq)) == alone.find(tag_of(seq)) == seq
    assert together.run.count(None) == alone.run.count(None) == SIZE - count
    assert len(together.state) == len(together.run) == SIZE


def test_freeing_drops_the_references() -> None:
    copies = Copies(9)
    seq = put(copies, 5)
    copies.free(seq)
    assert copies.run[seq & MASK] is None
    copies.free_run((seq + 1) & MASK, (seq + 5) & MASK)
    assert not any(copies.run)
    assert copies.state.count(FREE) == SIZE


def test_a_table_full_of_copies_that_can_no_longer_arrive_has_room() -> None:
    """A target that answers IDENTIFY and nothing else for hours leaves lost copies behind, each of them remembered."""
    copies = Copies(50)
    for state in (LOST, PROBED):
        while copies.state.count(FREE):
            count = copies.room(4096)
            seq = enter(copies, count, 0, count, 1, 10.0)
            copies.state[seq & MASK : (seq & MASK) + count] = bytes((state,)) * count
        assert copies.room(8, gone=10.0) >= 1
        first = enter(copies, 1, 0, 1, 1, 20.0)
        assert copies.find(tag_of(first)) == first
        copies = Copies(50)


def test_a_copy_that_may_still_arrive_keeps_its_place() -> None:
    copies = Copies(50)
    lost = put(copies, now=10.0)
    copies.state[lost & MASK] = LOST
    copies.next = lost + SIZE
    assert copies.room(1, gone=9.0) == 1
    assert copies.next == lost + SIZE + 1
