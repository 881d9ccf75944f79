# SPDX-License-Identifier: BSD-3-Clause
"""Quiesce: new requests wait, old ones end, and it is quiet only when no copy of any write can land any more."""

from __future__ import annotations

import errno

import pytest

from aoe_nbd.core.constants import DEAD_AFTER, QUARANTINE
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.policy import FAIL, HOLD, OnDead
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.codes import SECTOR, Ata
from inmemory import Lan, Port, read_request, write_request

A, B = b"A" * SECTOR, b"B" * SECTOR


def attached(on_dead: OnDead = HOLD, wait: bool = True) -> tuple[Lan, Port, Initiator]:
    lan = Lan()
    port = lan.target()
    return lan, port, lan.attach(on_dead=on_dead, wait=wait)


def settle(lan: Lan, most: float = 30.0) -> float:
    """Run until it is quiet; how long that took."""
    began = lan.now
    lan.run(lambda: lan.initiator.quiet(lan.now), most)
    return lan.now - began


def test_an_idle_one_is_quiet_at_once() -> None:
    lan, _, initiator = attached()
    assert not initiator.quiet(lan.now)
    initiator.quiesce()
    assert initiator.quiet(lan.now)


def test_what_is_under_way_ends_and_what_comes_waits() -> None:
    lan, port, initiator = attached()
    first = lan.submit(write_request(7, A))
    initiator.quiesce()
    assert not initiator.quiet(lan.now)
    late = [lan.submit(write_request(7, B)), lan.submit(read_request(7, 1)[0]), lan.submit(Request(Kind.FLUSH))]
    settle(lan)
    assert first.done
    assert not any(request.done for request in late)
    assert (initiator.waiting, initiator.withheld) == (3, 2)
    lan.pause(20.0)
    assert port.disk.sector(7) == A
    assert not initiator.dead
    initiator.resume(lan.now)
    lan.work()
    lan.finish(*late)
    assert port.disk.sector(7) == B


def test_parked_requests_go_on_in_their_order() -> None:
    lan, port, initiator = attached()
    initiator.quiesce()
    data = [bytes([number]) * SECTOR for number in range(1, 20)]
    requests = [lan.submit(write_request(7, each)) for each in data]
    initiator.resume(lan.now)
    lan.work()
    lan.finish(*requests)
    assert port.disk.sector(7) == data[-1]
    assert [what for what, *_ in port.disk.log].count("write") == len(data)


def test_a_ghost_is_waited_for() -> None:
    """The first copy of an acknowledged write is still somewhere: not quiet until it has landed, or its quarantine is over."""
    lan, port, initiator = attached()
    held: list[bytes] = []

    def hold(frame: bytes) -> bool:
        if not held and frame[27] == Ata.WRITE_EXT:
            held.append(frame)
            return True
        return False

    port.to.drop = hold
    lan.do(write_request(7, A))
    assert initiator.ghosts == 1
    initiator.quiesce()
    assert not initiator.quiet(lan.now)
    took = settle(lan)
    assert 0.5 * QUARANTINE < took <= QUARANTINE


def test_a_ghosts_answer_ends_the_wait() -> None:
    lan, port, initiator = attached()
    port.to.drop = lambda frame: frame[27] == Ata.WRITE_EXT and bool(lan.later(0.3, lambda: late(frame)) or 1)

    def late(frame: bytes) -> None:
        port.to.drop = None
        port.to.push(frame, lan.now)

    request = lan.submit(write_request(7, A))
    initiator.quiesce()
    took = settle(lan)
    assert request.done
    assert took < 0.5 * QUARANTINE


def test_an_older_process_is_waited_for() -> None:
    lan, _, initiator = attached(wait=False)
    initiator.quiesce()
    lan.run(lambda: initiator.up)
    assert not initiator.quiet(lan.now)
    lan.pause(QUARANTINE)
    assert initiator.quiet(lan.now)


def test_a_dead_target_is_never_quiet() -> None:
    lan, port, initiator = attached()
    port.unplugged = True
    request = lan.submit(write_request(7, A))
    initiator.quiesce()
    lan.pause(60.0)
    assert initiator.dead
    assert not initiator.quiet(lan.now)
    port.unplugged = False
    settle(lan)
    assert request.done
    assert not request.error


def test_a_write_that_failed_with_a_dead_target_is_waited_for() -> None:
    """The client has its error sooner than its copies have vanished: they may still be on their way."""
    lan, port, initiator = attached(on_dead=OnDead(QUARANTINE / 2))
    port.unplugged = True
    request = lan.submit(write_request(7, A))
    initiator.quiesce()
    parked = lan.submit(write_request(8, A))
    lan.run(lambda: request.done)
    assert request.error == errno.EIO
    assert not parked.done  # nobody has tried it yet
    assert initiator.ghosts
    assert not initiator.quiet(lan.now)
    assert QUARANTINE / 4 < settle(lan) <= QUARANTINE
    initiator.resume(lan.now)
    lan.work()
    assert (parked.done, parked.error) == (True, errno.EIO)


def test_a_write_that_failed_long_after_it_was_last_sent_is_not_waited_for() -> None:
    lan, port, initiator = attached(on_dead=FAIL)
    port.unplugged = True
    request = lan.submit(write_request(7, A))
    initiator.quiesce()
    lan.run(lambda: request.done)
    sent_at = max(run.sent for run in initiator.copies.run if run is not None and run.request is request)
    assert lan.now > sent_at + QUARANTINE
    assert initiator.quiet(lan.now)


def test_a_read_modify_write_is_not_cut_in_two() -> None:
    """It holds its range: what it has begun is carried out, and others that wait for it are as well."""
    lan, port, initiator = attached()
    lock = lan.do(Request(Kind.LOCK, 7, 1))
    waiting = lan.submit(write_request(7, B))
    initiator.quiesce()
    lan.pause(2.0)
    assert not initiator.quiet(lan.now)
    lan.do(write_request(7, A, under=lock))
    assert not initiator.quiet(lan.now)
    initiator.release(lock, lan.now)
    lan.work()
    settle(lan)
    assert waiting.done
    assert port.disk.sector(7) == B


def test_twice_is_once() -> None:
    lan, _, initiator = attached()
    initiator.quiesce()
    request = lan.submit(write_request(7, A))
    initiator.quiesce()
    assert initiator.waiting == 1
    initiator.resume(lan.now)
    initiator.resume(lan.now)
    lan.work()
    lan.finish(request)
    assert [event.what for event in initiator.history if event.what in ("quiesced", "resumed")] == [
        "quiesced",
        "resumed",
    ]


def test_abandon_fails_what_is_parked() -> None:
    lan, _, initiator = attached()
    initiator.quiesce()
    request = lan.submit(write_request(7, A))
    initiator.abandon(errno.ESHUTDOWN, "ending", lan.now)
    assert (request.done, request.error) == (True, errno.ESHUTDOWN)
    assert not initiator.waiting
    initiator.resume(lan.now)


@pytest.mark.parametrize("seconds", [DEAD_AFTER + 1])
def test_a_quiesced_lun_is_still_looked_after(seconds: float) -> None:
    """Questions to its paths are no client's requests: it notices growth, and a path that is gone."""
    lan, port, initiator = attached()
    initiator.quiesce()
    port.lun.backend.sectors += 8
    lan.pause(seconds)
    assert initiator.identify is not None
    assert initiator.identify.sectors == port.disk.sectors
    assert initiator.quiet(lan.now)
