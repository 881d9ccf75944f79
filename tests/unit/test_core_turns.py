# SPDX-License-Identifier: BSD-3-Clause
"""LUNs that share the room for answers: never more than that, each in its turn, and nobody held up by a dead one."""

from __future__ import annotations

from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.core.turns import Turns
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import SECTOR, Ata
from inmemory import REMOTE, Lan, Port, read_request, write_request

ROOM, PORTION = 16, 4  # as much as a LUN sends at first
STREAM = 400  # sectors: 200 frames


def shelf(count: int, room: int = ROOM) -> tuple[Lan, list[Initiator], list[Port]]:
    """So many LUNs, each on a target of its own, with this room for all."""
    lan = Lan()
    ports = []
    for slot in range(count):
        ports.append(lan.target(address=Address(1, slot), mac=REMOTE[:5] + bytes([slot + 1]), buffers=64))
    luns = [lan.attach(Address(1, slot)) for slot in range(count)]
    lan.turns = Turns(room)
    return lan, luns, ports


def submit(lan: Lan, lun: Initiator, request: Request) -> Request:
    lun.submit(request, lan.now)
    lan.work()
    return request


def stream(lan: Lan, lun: Initiator, count: int = STREAM) -> Request:
    return submit(lan, lun, read_request(0, count)[0])


def test_no_more_is_owed_than_there_is_room_and_all_have_as_much_of_it() -> None:
    lan, luns, _ = shelf(6)
    requests = [stream(lan, lun) for lun in luns for _ in range(2)]
    before = [lun.counters["sent"] for lun in luns]
    most = 0
    while not all(request.done for request in requests):
        owed = sum(lun.outstanding() for lun in luns)
        most = max(most, owed)
        assert owed <= ROOM
        sent = [lun.counters["sent"] - start for lun, start in zip(luns, before, strict=True)]
        if max(sent) < STREAM:  # both its streams
            # who was there first has had what there was then
            assert max(sent) - min(sent) <= ROOM + PORTION
        lan.step()
    assert most == ROOM
    assert not any(request.error for request in requests)


def test_turns_come_in_the_order_of_lining_up() -> None:
    lan, luns, _ = shelf(3)
    busy, other, small = luns
    streams = [stream(lan, busy), stream(lan, other)]
    assert (busy.outstanding(), other.outstanding()) == (ROOM, 0)
    lan.finish(stream(lan, small, 2), *streams)
    slots = [frame[18] for frame in lan.requests(Ata.READ_EXT)]  # the minors, in the order of sending
    assert slots[: ROOM + 2 * PORTION + 1] == [0] * (ROOM + PORTION) + [1] * PORTION + [2]


def test_what_is_free_is_had_at_once_where_nobody_waits() -> None:
    lan, luns, _ = shelf(2)
    first, second = luns
    stream(lan, first, 2 * 5)
    request = stream(lan, second, 2 * 7)
    assert (first.outstanding(), second.outstanding()) == (5, 7)
    lan.finish(request)


def test_a_target_that_has_gone_silent_takes_no_room() -> None:
    """Its frames do not count from the moment on at which it is asked again, long before they count as lost."""
    lan, luns, ports = shelf(2)
    dead, alive = luns
    lan.finish(stream(lan, dead), stream(lan, alive))  # round trips are known
    ports[0].unplugged = True
    request = stream(lan, dead)
    assert dead.outstanding() == ROOM
    lan.finish(stream(lan, alive))
    assert dead.counters["probes"]
    assert not dead.counters["lost"]
    ports[0].unplugged = False
    lan.finish(request)


def test_writes_count_as_reads_do_and_flushes_do_not() -> None:
    lan, luns, ports = shelf(2)
    slow, other = luns
    ports[0].unplugged = True
    submit(lan, slow, Request(Kind.FLUSH))
    assert slow.outstanding() == 1
    write = submit(lan, other, write_request(0, bytes(STREAM * SECTOR)))
    assert other.outstanding() == ROOM
    assert (slow.owed(), other.owed()) == (0, ROOM)
    lan.finish(write)


def test_a_turn_that_cannot_be_used_is_passed_on() -> None:
    """Its interface takes no frame just then: it goes on when that is over, and others need not wait for it."""
    lan, luns, _ = shelf(3)
    held, first, second = luns
    streams = [stream(lan, first), stream(lan, second)]
    lan.refuse = lambda run: 0 if run.path is held.paths[0] else run.count
    late = stream(lan, held)
    lan.finish(*streams, most=0.1)
    assert not late.done
    lan.refuse = None
    lan.finish(late, most=0.1)
    assert late.answered.count(0) == 0


def test_who_has_left_leaves_its_room() -> None:
    lan, luns, ports = shelf(2)
    gone, left = luns
    ports[0].unplugged = True
    stream(lan, gone)
    request = stream(lan, left)
    assert left.outstanding() == 0
    lan.initiators.remove(gone)
    assert lan.turns is not None
    lan.turns.forget(gone)
    lan.work()
    assert left.outstanding() == ROOM
    lan.finish(request)


def test_less_room_than_is_owed_is_waited_for() -> None:
    """A smaller ring after a change of the MTU, say."""
    lan, luns, _ = shelf(2)
    requests = [stream(lan, lun) for lun in luns]
    assert lan.turns is not None
    lan.turns.resize(8)
    while sum(lun.outstanding() for lun in luns) > 8:
        lan.step()
    while not all(request.done for request in requests):
        assert sum(lun.outstanding() for lun in luns) <= 8
        lan.step()
