# SPDX-License-Identifier: BSD-3-Clause
"""Lone callers look for their answers while that is quick, and only then."""

from __future__ import annotations

import itertools
import os

import pytest

from aoe_nbd.affinity import busy_seconds
from aoe_nbd.busypoll import BusyPoll

CPUS = os.sched_getaffinity(0)


class Machine:
    """How long its CPUs have worked, in all and for us."""

    def __init__(self, tells: bool = True) -> None:
        self.tells = tells
        self.worked = dict.fromkeys([*CPUS, max(CPUS) + 1], 5000.0)  # one that we may not run on
        self.own = 7.0
        self.now = 100.0

    def pass_(self, seconds: float, others: float, own: float) -> None:
        """So much time passes, in which others and we had these shares of the CPUs that we may run on."""
        self.now += seconds
        self.own += own * seconds * len(CPUS)
        self.worked[max(CPUS) + 1] += seconds
        for cpu in CPUS:
            self.worked[cpu] += (others + own) * seconds

    def polling(self, limit: float = 1e-4) -> BusyPoll:
        return BusyPoll(limit, lambda: self.worked if self.tells else {}, lambda: self.own)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def ask(polling: BusyPoll, times: int, now: float = 100.0, found: bool = True) -> list[bool]:
    """What so many requests were told, each of which found its answer, or did not, if it looked."""
    told = []
    for _ in range(times):
        told.append(polling.wanted(now))
        if told[-1]:
            polling.over(found)
    return told


def test_who_finds_looks_again(machine: Machine) -> None:
    assert all(ask(machine.polling(), 5000))


def test_in_vain_ever_more_sleep_at_once(machine: Machine) -> None:
    polling = machine.polling()
    told = ask(polling, 10000, found=False)
    looked = [i for i, wanted in enumerate(told) if wanted]
    assert [b - a - 1 for a, b in itertools.pairwise(looked)][:11] == [*(2**n - 1 for n in range(1, 11)), 1023]
    while not polling.wanted(100.0):  # one answer that comes at once, and it is as it was
        pass
    polling.over(True)
    assert all(ask(polling, 100))


def test_off(machine: Machine) -> None:
    assert not any(ask(machine.polling(0.0), 100))


def test_a_crowd(machine: Machine) -> None:
    polling = machine.polling()
    assert ask(polling, 1) == [True]
    polling.crowd()
    polling.crowd()
    assert ask(polling, 18) == [False] * 16 + [True] * 2


def test_not_while_others_have_the_cpus(machine: Machine) -> None:
    polling = machine.polling()
    assert all(ask(polling, 10, machine.now))  # nothing is known yet
    for others, own, looks in [
        (0.1, 0.9, True),
        (0.9, 0.05, False),
        (0.8, 0.0, False),
        (0.7, 0.3, True),
        (0.0, 0.0, True),
    ]:
        machine.pass_(1.5, others, own)
        assert all(wanted is looks for wanted in ask(polling, 10, machine.now))


def test_what_others_do_is_looked_at_once_a_second(machine: Machine) -> None:
    polling = machine.polling()
    ask(polling, 1, machine.now)
    machine.pass_(0.9, 1.0, 0.0)
    assert ask(polling, 1, machine.now) == [True]
    machine.pass_(0.2, 1.0, 0.0)
    assert ask(polling, 1, machine.now) == [False]


def test_a_kernel_that_does_not_tell() -> None:
    machine = Machine(tells=False)
    polling = machine.polling()
    for _ in range(3):
        assert all(ask(polling, 10, machine.now))
        machine.pass_(1.5, 1.0, 0.0)


def test_this_machine_tells() -> None:
    assert busy_seconds().keys() >= CPUS
    assert all(BusyPoll(1e-4).wanted(now) for now in (100.0, 2e9))  # in so long a time, nothing is much
