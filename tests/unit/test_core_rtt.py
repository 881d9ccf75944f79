# SPDX-License-Identifier: BSD-3-Clause
"""Round-trip estimator and congestion window."""

from __future__ import annotations

import pytest

from aoe_nbd.core.constants import MIN_RTT_SPAN, RTO_INITIAL, RTO_MAX, RTO_MIN, WINDOW_CUT, WINDOW_SILENT, WINDOW_START
from aoe_nbd.core.rtt import Rtt
from aoe_nbd.core.window import Window


def test_first_sample_and_smoothing() -> None:
    rtt = Rtt(RTO_INITIAL, RTO_MAX)
    assert rtt.rto == RTO_INITIAL
    rtt.sample(0.1, 0.0)
    assert (rtt.srtt, rtt.rttvar) == (0.1, 0.05)
    assert rtt.rto == pytest.approx(2 * 0.1 + 4 * 0.05)
    rtt.sample(0.2, 1.0)
    assert rtt.rttvar == pytest.approx(0.05 + (0.1 - 0.05) / 4)
    assert rtt.srtt == pytest.approx(0.1 + 0.1 / 8)


def test_timeout_has_a_floor_and_a_ceiling() -> None:
    fast, slow = Rtt(RTO_INITIAL, RTO_MAX), Rtt(RTO_INITIAL, RTO_MAX)
    for i in range(50):
        fast.sample(50e-6, i)
        slow.sample(10.0, i)
    assert fast.rto == RTO_MIN
    assert slow.rto == RTO_MAX


def test_least_round_trip_is_of_the_last_span_only() -> None:
    rtt = Rtt(RTO_INITIAL, RTO_MAX)
    rtt.sample(0.001, 0.0)
    rtt.sample(0.005, 1.0)
    assert rtt.least == 0.001
    now = 1.0
    for _ in range(3):  # the path has become longer for good
        now += MIN_RTT_SPAN + 1
        rtt.sample(0.005, now)
    assert rtt.least == 0.005
    rtt.sample(0.002, now + 1)
    assert rtt.least == 0.002


def steady() -> Rtt:
    rtt = Rtt(RTO_INITIAL, RTO_MAX)
    rtt.sample(0.001, 0.0)
    return rtt


@pytest.mark.parametrize(
    ("buffers", "start"), [(0, 1), (1, 1), (2, 1), (3, 1), (16, 8), (32, 16), (1024, WINDOW_START)]
)
def test_window_starts_at_half_of_the_buffers(buffers: int, start: int) -> None:
    assert Window(buffers).size == start


@pytest.mark.parametrize("buffers", [0, 1, 2, 16, 1024])
def test_window_grows_up_to_the_buffers_and_never_past(buffers: int) -> None:
    window, rtt = Window(buffers), steady()
    for _ in range(3000):
        window.answered(rtt)
        assert window.size <= max(1, buffers)
    assert window.size == max(1, buffers)
    window.answered(rtt, count=1000)
    assert window.size == max(1, buffers)


def test_no_growth_past_what_was_good_while_the_path_is_slow() -> None:
    window, rtt = Window(64), steady()
    for i in range(40):
        rtt.sample(0.01, i * 0.01)  # ten times the least
    before = window.size
    for _ in range(100):
        window.answered(rtt)
    assert window.size == before


def test_many_losses_of_one_round_are_one_cut() -> None:
    """A full buffer loses a burst: that is one event, however many frames it took."""
    window = Window(100)
    window.size = 80.0
    for seq in range(5, 45):
        window.lost(seq, next_seq=50)
    cut = window.size
    assert 2 <= cut <= 80 * WINDOW_CUT + 1e-9
    for seq in range(45, 50):
        window.lost(seq, next_seq=50)  # sent before the cut was made
    assert window.size == pytest.approx(cut)
    for seq in range(50, 100):
        window.lost(seq, next_seq=100)
    assert window.size < cut


def test_a_few_losses_cost_less_than_a_burst() -> None:
    window = Window(100)
    window.size = 80.0
    for seq in range(5, 12):
        window.lost(seq, 50)
    assert 80 * WINDOW_CUT <= window.size < 80


def test_never_below_two_by_loss_and_two_by_silence() -> None:
    window = Window(100)
    for i in range(2000):
        window.lost(i, i + 5)
    assert window.size == WINDOW_SILENT
    window.size = 90.0
    window.silent(5000)
    assert window.size == WINDOW_SILENT
    one = Window(1)
    one.silent(10)
    one.lost(20, 30)
    assert one.size == 1  # not more than the target holds, whatever happens


def test_after_silence_it_grows_again() -> None:
    window, rtt = Window(100), steady()
    window.size = 80.0
    window.silent(500)
    for _ in range(60):
        window.answered(rtt)
    assert window.size > 20


def test_a_cut_for_frames_that_were_only_late_is_undone_once() -> None:
    window = Window(100)
    window.size = 80.0
    for seq in range(5, 45):
        window.lost(seq, 50)
    window.undo()
    assert window.size == 80
    window.size = 10.0
    window.undo()
    assert window.size == 10


def test_a_cut_is_final_when_a_later_copy_was_answered_in_time() -> None:
    window = Window(100)
    window.size = 80.0
    for seq in range(5, 45):
        window.lost(seq, 50)
    cut = window.size
    window.settled(49)
    window.settled(50)
    window.undo()
    assert window.size == cut


def test_fewer_buffers_shrink_it_at_once_and_more_let_it_grow() -> None:
    window, rtt = Window(64), steady()
    window.size = 64.0
    window.set_cap(8)
    assert window.size == 8
    window.undo()
    assert window.size <= 8
    window.set_cap(0)
    assert window.size == 1
    window.set_cap(32)
    for _ in range(1000):
        window.answered(rtt)
    assert window.size == 32
