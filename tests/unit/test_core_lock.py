# SPDX-License-Identifier: BSD-3-Clause
"""The interval lock: who waits for whom, in which order they go on, and what a ghost keeps closed."""

from __future__ import annotations

import pytest

from aoe_nbd.core.lock import IntervalLock, Range

BUCKET = 1 << 11


def read(start: int, end: int) -> Range:
    return Range(start, end, exclusive=False)


def write(start: int, end: int) -> Range:
    return Range(start, end, exclusive=True)


@pytest.mark.parametrize(
    ("a", "b", "conflict"),
    [
        (read(0, 8), read(0, 8), False),
        (read(0, 8), write(0, 8), True),
        (write(0, 8), read(7, 9), True),
        (write(0, 8), write(4, 5), True),
        (write(0, 8), write(8, 16), False),
        (write(8, 16), write(0, 8), False),
        (write(0, 1 << 22), write((1 << 22) - 1, 1 << 22), True),
    ],
)
def test_conflicts(a: Range, b: Range, conflict: bool) -> None:
    assert a.conflicts(b) is conflict
    assert b.conflicts(a) is conflict
    lock = IntervalLock()
    assert lock.acquire(a)
    assert lock.acquire(b) is not conflict


def test_writes_go_in_order_of_arrival() -> None:
    lock = IntervalLock()
    first, second, third = write(0, 8), write(4, 12), write(0, 16)
    assert [lock.acquire(r) for r in (first, second, third)] == [True, False, False]
    assert lock.release(first) == [second]
    assert lock.release(second) == [third]
    assert lock.release(third) == []
    assert len(lock) == 0


def test_readers_go_together_and_do_not_pass_a_waiting_writer() -> None:
    lock = IntervalLock()
    early, late = read(0, 8), read(0, 8)
    writer = write(4, 5)
    assert lock.acquire(early)
    assert not lock.acquire(writer)
    assert not lock.acquire(late)  # or readers could keep the writer out for ever
    assert lock.release(early) == [writer]
    assert lock.release(writer) == [late]


def test_one_release_lets_all_go_that_waited_for_nothing_else() -> None:
    lock = IntervalLock()
    whole = write(0, 100)
    parts = [write(i * 10, i * 10 + 10) for i in range(10)]
    assert lock.acquire(whole)
    assert not any(lock.acquire(part) for part in parts)
    assert lock.release(whole) == parts


def test_one_waits_for_all_that_were_before_it() -> None:
    lock = IntervalLock()
    parts = [write(i * 10, i * 10 + 10) for i in range(10)]
    whole = write(0, 100)
    assert all(lock.acquire(part) for part in parts)
    assert not lock.acquire(whole)
    for part in parts[:-1]:
        assert lock.release(part) == []
    assert lock.release(parts[-1]) == [whole]


@pytest.mark.parametrize("start", [0, BUCKET - 1, BUCKET, 3 * BUCKET - 4, (1 << 48) - 8])
def test_ranges_that_cross_the_lookup_borders(start: int) -> None:
    lock = IntervalLock()
    held = write(start, start + 8)
    wide = write(max(0, start - 5 * BUCKET), start + 5 * BUCKET)
    assert lock.acquire(held)
    assert not lock.acquire(wide)
    assert wide.blockers == 1  # found once, though it lies in several buckets
    beside = write(start + 5 * BUCKET, start + 5 * BUCKET + 1)
    assert lock.acquire(beside)
    assert lock.release(held) == [wide]
    lock.release(wide)
    lock.release(beside)
    assert len(lock) == 0


def test_a_ghost_keeps_writers_out_and_lets_readers_pass() -> None:
    lock = IntervalLock()
    done = write(0, 16)
    assert lock.acquire(done)
    waiting = write(0, 4)
    assert not lock.acquire(waiting)
    ghost = read(2, 4)
    assert lock.release(done, [ghost]) == []  # the writer waits on for the ghost
    assert waiting.blockers == 1
    beside = write(8, 16)
    assert lock.acquire(beside)
    reader = read(2, 3)
    assert not lock.acquire(reader)  # behind the waiting writer
    assert lock.release(ghost) == [waiting]
    assert lock.release(waiting) == [reader]


def test_a_reader_passes_a_ghost_when_no_writer_waits() -> None:
    lock = IntervalLock()
    done = write(0, 16)
    lock.acquire(done)
    ghost = read(0, 16)
    lock.release(done, [ghost])
    assert lock.acquire(read(0, 16))
    assert not lock.acquire(write(15, 16))


def test_several_ghosts_must_all_go() -> None:
    lock = IntervalLock()
    done, waiting = write(0, 16), write(0, 16)
    lock.acquire(done)
    lock.acquire(waiting)
    ghosts = [read(0, 2), read(8, 10), read(0, 2)]
    assert lock.release(done, ghosts) == []
    assert lock.release(ghosts[1]) == []
    assert lock.release(ghosts[2]) == []
    assert lock.release(ghosts[0]) == [waiting]


def test_a_waiter_that_gives_up_does_not_block_those_behind_it() -> None:
    lock = IntervalLock()
    first, quitter, last = write(0, 8), write(0, 8), write(0, 8)
    for r in (first, quitter, last):
        lock.acquire(r)
    assert lock.release(quitter) == []  # `last` still waits for `first`
    assert last.blockers == 1
    granted = lock.release(first)
    assert last in granted
