# SPDX-License-Identifier: BSD-3-Clause
"""When a copy counts as lost: overtaken by later ones, a probe for the tail, timeouts that back off, and false alarms."""

from __future__ import annotations

import random

import pytest

from aoe_nbd.core.constants import (
    DUPLICATES,
    JITTER,
    PROBE_MIN,
    PROBES,
    REORDER_DECAY,
    REORDER_MEMORY,
    REORDER_MIN,
    RTO_INITIAL,
    RTO_INITIAL_FLUSH,
    RTO_MAX,
    RTO_MAX_FLUSH,
)
from aoe_nbd.core.copies import LOST, MASK, Copies, Run
from aoe_nbd.core.flight import FOREVER, Class, Flight
from aoe_nbd.core.path import Path
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.frames import Config

OWNER = Request(Kind.FLUSH)
PATH = Path("eth0", bytes(6), bytes(6), 1500, Config(), 255, Copies(0), random.Random(1), 0.0)
RTT = 0.002


class Sender:
    """A flight with its table of copies, and what `Initiator` does with both."""

    def __init__(self, kind: Class = Class.WRITE, samples: int = 20) -> None:
        self.copies = Copies(1000)
        self.flight = Flight(self.copies, kind, random.Random(1))
        self.now = 0.0
        for _ in range(samples):
            (seq,) = self.send()
            self.now += RTT
            self.answer(seq)

    def send(self, count: int = 1) -> list[int]:
        assert self.copies.room(count) == count
        run = Run(PATH, self.flight, OWNER, self.copies.next, count, 0, count, 1, self.now)
        self.copies.add(run)
        self.flight.sent(run)
        return list(range(run.seq, run.seq + count))

    def answer(self, seq: int) -> None:
        self.flight.answered(self.copies.owner(seq), seq, self.now)
        self.copies.free(seq)

    def lose(self, seq: int) -> None:
        self.flight.gone(self.copies.owner(seq))
        self.copies.state[seq & MASK] = LOST


def test_nothing_under_way_has_no_timer() -> None:
    sender = Sender()
    assert sender.flight.head() == -1
    assert sender.flight.timer() == FOREVER
    assert sender.flight.overtaken(1e9) == []
    assert sender.flight.members() == []


def test_a_copy_that_later_ones_overtook_is_lost_after_the_reorder_window() -> None:
    sender = Sender()
    a, b, c = sender.send(3)
    sender.now += RTT
    sender.answer(c)
    flight = sender.flight
    assert flight.overtaken(sender.now) == []  # perhaps only reordered
    due = flight.timer()
    assert due == pytest.approx(sender.copies.owner(a).sent + flight.rtt.srtt + flight.reorder)
    assert flight.overtaken(due - 1e-9) == []
    assert flight.overtaken(due) == [a, b]


def test_a_copy_that_three_later_ones_overtook_is_lost_at_once() -> None:
    sender = Sender()
    first, second, *others = sender.send(6)
    flight = sender.flight
    sender.now += RTT
    flight.gap = True
    for seq in others[: DUPLICATES - 1]:
        sender.answer(seq)
        assert flight.passed(sender.now) == []
    sender.answer(others[DUPLICATES - 1])
    assert flight.passed(sender.now) == [first, second]
    assert not flight.gap
    for seq in (first, second):
        sender.lose(seq)
    flight.gap = True
    sender.answer(others[-1])
    assert flight.passed(sender.now) == []
    assert not flight.gap, "nothing older is under way"


def test_what_fewer_than_three_overtook_is_left_to_the_reorder_window() -> None:
    sender = Sender()
    first, *others = sender.send(8)
    sender.now += RTT
    sender.flight.gap = True
    for seq in (*others[:4], others[5]):  # others[4] is a second gap, which one answer alone has shown
        sender.answer(seq)
    assert sender.flight.passed(sender.now) == [first]
    assert sender.flight.gap
    sender.lose(first)
    sender.now += sender.flight.reorder * 2
    assert sender.flight.overtaken(sender.now) == [others[4]]


def test_where_answers_came_out_of_order_the_reorder_window_decides() -> None:
    sender = Sender()
    flight = sender.flight
    flight.false_alarm(sender.now)

    def passed() -> list[int]:
        first, *others = sender.send(8)
        sender.now += RTT
        flight.gap = True
        for seq in others:
            sender.answer(seq)
        lost = flight.passed(sender.now)
        sender.answer(first)
        return [first - seq for seq in lost]

    assert passed() == []
    sender.now += REORDER_MEMORY
    assert passed() == [0]


def test_size_probes_overtake_each_other_and_prove_nothing() -> None:
    sender = Sender(Class.PROBE)
    _, *others = sender.send(8)
    sender.now += RTT
    sender.flight.gap = True
    for seq in others:
        sender.answer(seq)
    assert sender.flight.passed(sender.now) == []


def test_only_what_was_sent_before_the_answered_one_is_lost() -> None:
    sender = Sender()
    a, b, c = sender.send(3)
    sender.now += RTT
    sender.answer(b)
    assert sender.flight.overtaken(sender.now + 100) == [a]
    assert c in sender.flight.members()


def test_a_copy_that_was_answered_meanwhile_is_not_lost() -> None:
    sender = Sender()
    a, b, c = sender.send(3)
    sender.now += RTT
    for seq in (c, a, b):
        sender.answer(seq)
    assert sender.flight.overtaken(sender.now + 100) == []
    assert sender.flight.timer() == FOREVER
    assert sender.flight.count == 0


def test_false_alarms_widen_the_reorder_window_and_calm_narrows_it() -> None:
    sender = Sender()
    flight = sender.flight
    narrow = flight.reorder
    assert narrow == pytest.approx(max(flight.rtt.srtt / 4, REORDER_MIN))
    for _ in range(3):
        flight.false_alarm(sender.now)
    assert flight.reorder >= 2 * narrow
    for _ in range(10_000):
        flight.false_alarm(sender.now)
    assert flight.reorder < RTO_INITIAL + narrow + RTT  # there is an end to it
    for _ in range(100):
        sender.now += 2 * REORDER_DECAY * RTT
        (seq,) = sender.send()
        sender.now += RTT
        sender.answer(seq)
    assert flight.reorder == pytest.approx(narrow, rel=0.2)


def test_tail_probes_come_before_the_timeout_and_are_few() -> None:
    sender = Sender()
    flight = sender.flight
    (seq,) = sender.send()
    assert flight.probe_after == pytest.approx(max(2 * flight.rtt.srtt + 4 * flight.rtt.rttvar, PROBE_MIN))
    assert flight.probe_after < flight.rto
    assert flight.timer() == sender.now + flight.probe_after
    first = flight.probe_after
    flight.probes = 1
    assert flight.probe_after == pytest.approx(2 * first)
    flight.probes = PROBES
    assert flight.probe_after == FOREVER
    assert flight.timer() == sender.now + flight.rto
    sender.now += RTT
    sender.answer(seq)
    sender.send()
    assert flight.probe_after < FOREVER


@pytest.mark.parametrize("kind", [Class.FLUSH, Class.CONTROL, Class.PROBE])
def test_no_tail_probe_of_flushes_and_questions(kind: Class) -> None:
    """A flush takes as long as it takes; a second one helps nobody."""
    sender = Sender(kind)
    sender.send()
    assert sender.flight.probe_after == FOREVER


def test_no_tail_probe_before_the_first_round_trip_is_known() -> None:
    sender = Sender(samples=0)
    sender.send()
    assert sender.flight.probe_after == FOREVER
    assert sender.flight.rto == pytest.approx(RTO_INITIAL, rel=JITTER)
    slow = Sender(Class.FLUSH, samples=0)
    slow.send()
    assert slow.flight.rto == pytest.approx(RTO_INITIAL_FLUSH, rel=JITTER)


def test_timeouts_double_up_to_the_most() -> None:
    sender = Sender()
    flight = sender.flight
    sender.send()
    base = flight.rto
    for backoff in range(1, 30):
        flight.backoff = backoff
        assert flight.rto == pytest.approx(min(base * 2**backoff, RTO_MAX), rel=2 * JITTER)
    slow = Sender(Class.FLUSH)
    slow.flight.backoff = 40
    assert slow.flight.rto <= RTO_MAX_FLUSH * (1 + JITTER)


def test_an_answer_ends_the_backing_off() -> None:
    sender = Sender()
    (seq,) = sender.send()
    sender.flight.backoff, sender.flight.probes = 5, 1
    sender.answer(seq)
    assert (sender.flight.backoff, sender.flight.probes) == (0, 0)
    (seq,) = sender.send()
    sender.flight.backoff, sender.flight.probes = 5, 1
    sender.flight.late(seq, 0.0, sender.now)
    assert (sender.flight.backoff, sender.flight.probes) == (0, 0)


def test_timeouts_of_many_flights_are_not_in_step() -> None:
    rng = random.Random(3)
    timeouts = set()
    for _ in range(50):
        copies = Copies(5)
        flight = Flight(copies, Class.READ, rng)
        flight.sent(Run(PATH, flight, OWNER, 5, 1, 0, 1, 1, 0.0))
        timeouts.add(flight.rto)
    assert len(timeouts) == 50
    assert min(timeouts) >= RTO_INITIAL * (1 - JITTER)
    assert max(timeouts) <= RTO_INITIAL * (1 + JITTER)


def test_head_and_members_leave_out_what_is_gone() -> None:
    sender = Sender()
    seqs = sender.send(5)
    sender.lose(seqs[0])
    sender.answer(seqs[2])
    assert sender.flight.head() == seqs[1]
    assert sender.flight.members() == [seqs[1], seqs[3], seqs[4]]
    assert sender.flight.count == 3


def test_histogram_counts_answers_by_the_size_of_their_round_trip() -> None:
    sender = Sender(samples=10)
    assert sum(sender.flight.histogram) == 10
    assert sender.flight.histogram[int(RTT * 1e6).bit_length()] == 10
    sender.flight.late(1, sender.now - 1e9, sender.now)
    assert sender.flight.histogram[31] == 1


def test_percentiles_of_round_trips() -> None:
    copies = Copies(1)
    flight = Flight(copies, Class.READ, random.Random(1))
    assert flight.percentile(0.5) == 0.0
    flight.histogram[7] = 98  # up to 128 µs
    flight.histogram[10] = 2
    assert flight.percentile(0.5) == pytest.approx(128e-6)
    assert flight.percentile(0.98) == pytest.approx(128e-6)
    assert flight.percentile(0.99) == pytest.approx(1024e-6)
