# SPDX-License-Identifier: BSD-3-Clause
"""Scenarios of one LUN's initiator: what is sent again and when, what a dead target means, and who is trusted.

Time is virtual, so every time here is exact, and none is real.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from aoe_nbd.core import batch, encode
from aoe_nbd.core.constants import DEAD_AFTER, KEEPALIVE, QUARANTINE, RTO_INITIAL, RTO_MIN
from aoe_nbd.core.copies import SIZE, Run
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.path import PathState
from aoe_nbd.core.policy import FAIL, HOLD, OnDead
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.wire.codes import RESPONSE, SECTOR, AoeError, Ata, Command
from aoe_nbd.wire.frames import Config, build_header, parse_header
from inmemory import (
    E1_0,
    LINK,
    LOCAL,
    REMOTE,
    REMOTE2,
    Lan,
    MemoryBackend,
    Scripted,
    lba_of,
    read_request,
    refusal,
    reply,
    rows_of,
    write_request,
)

A, B = b"A" * SECTOR, b"B" * SECTOR
WRITES = (Ata.WRITE, Ata.WRITE_EXT)


def lose(count: int) -> Callable[[bytes], bool]:
    """For Line.drop: the first `count` reads and writes vanish."""
    left = [count]

    def drop(frame: bytes) -> bool:
        hit = bool(left[0]) and frame[19] == Command.ATA and frame[27] in (0x24, 0x34, 0x40)
        left[0] -= hit
        return hit

    return drop


def announcement(source: bytes = REMOTE, sectors: int = 2, buffers: int = 16) -> bytes:
    head = build_header(b"\xff" * 6, source, 1, 0, Command.CONFIG, 0, RESPONSE)
    return head + Config(sector_count=sectors, buffer_count=buffers).build()


def silent() -> tuple[Lan, Scripted, Initiator]:
    lan = Lan()
    peer = Scripted()
    lan.peer(peer)
    return lan, peer, lan.attach()


# -- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 3, 5])
def test_a_lost_frame_is_sent_again_with_another_tag(times: int) -> None:
    lan = Lan()
    port = lan.target()
    lan.attach()
    port.disk.write(A, 7 * SECTOR)
    port.to.drop = lose(times)
    assert lan.read(7, 1) == A
    frames = [f for f in lan.requests(Ata.READ_EXT) if lba_of(f) == 7]
    tags = [parse_header(f).tag for f in frames]
    assert len(set(tags)) == len(tags) == times + 1
    assert len({f[:20] + f[24:] for f in frames}) == 1  # and nothing else is different


def test_a_lost_reply_is_no_different_from_a_lost_request() -> None:
    lan = Lan()
    port = lan.target()
    lan.attach()
    port.back.drop = lose(1)
    lan.write(7, A)
    assert port.disk.log.count(("write", 7, 1)) == 2


def test_waits_before_the_first_answer_double() -> None:
    """No round trip is known: the first timeout is the initial one, and each later one twice as long."""
    lan = Lan()
    peer = Scripted()
    lan.peer(peer)
    initiator = lan.attach()
    times = []
    peer.script = lambda f: times.append(lan.now) or ()  # type: ignore[func-returns-value]
    lan.submit(read_request(0, 1)[0])
    lan.run(lambda: not initiator.up)
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps[0] == pytest.approx(RTO_INITIAL, rel=0.15)


def test_a_tail_is_probed_long_before_its_timeout() -> None:
    """With a round trip of 100 µs, the last frame of a burst is missed after a millisecond or so."""
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    for i in range(30):
        lan.read(i, 1)
    port.to.drop = lose(1)
    began = lan.now
    lan.read(100, 1)
    assert lan.now - began < RTO_MIN
    assert initiator.counters["probes"] == 1
    assert initiator.counters["timeouts"] == 0
    assert initiator.paths[0].window.size > 2  # a probe cuts no window


def test_one_loss_in_a_stream_is_seen_by_what_overtakes_it() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    lan.write(0, A * 100)
    port.to.drop = lose(1)
    lan.write(0, B * 300)
    assert initiator.counters["lost_overtaken"] == 1
    assert initiator.counters["timeouts"] == 0
    assert port.disk.whole(0, 300) == B * 300


def test_no_more_is_outstanding_than_its_share_of_the_room_for_answers() -> None:
    lan = Lan()
    lan.target(buffers=64)
    initiator = lan.attach()
    initiator.share = 5
    request, _ = read_request(0, 100)
    initiator.submit(request, lan.now)
    assert sum(run.count for run in initiator.transmit(lan.now)) == 5
    lan.finish(request)
    assert not request.error


@pytest.mark.parametrize("in_a_batch", [False, True])
def test_what_three_later_answers_prove_lost_is_sent_again_with_them(in_a_batch: bool) -> None:
    lan = Lan()
    lan.target()
    initiator = lan.attach()
    request, _ = read_request(0, 20)  # ten frames
    initiator.submit(request, lan.now)
    (run,) = initiator.transmit(lan.now)
    answers = [reply(encode.frame(initiator, run, i)[0], bytes(2 * SECTOR)) for i in range(6)]
    del answers[2]
    now = lan.now + 1e-4
    if in_a_batch:
        batch.receive(initiator, LINK, *rows_of(answers), now, pytest.fail)
    else:
        for answer in answers:
            assert not initiator.transmit(now)
            initiator.receive(LINK, answer, now)
    (again,) = initiator.transmit(now)
    assert initiator.counters["lost_overtaken"] == 1
    assert (again.request, again.offset, again.length) == (request, 4, 2)


@pytest.mark.parametrize("like", ["ours", "ggaoed", "kvblade"])
@pytest.mark.parametrize("loss", [0.01, 0.1, 0.3])
def test_random_loss_both_ways_loses_no_data(like: str, loss: float) -> None:
    lan = Lan(9000)
    port = lan.target(like)
    lan.attach()
    for seed, line in enumerate((port.to, port.back)):
        line.loss = loss
        line.random.seed(seed)
    rng = random.Random(like)
    data = rng.randbytes(500 * SECTOR)
    lan.do(write_request(40, data), most=1000)
    assert port.disk.whole(40, 500) == data
    request, buffer = read_request(40, 500)
    lan.do(request, most=1000)
    assert buffer == data


def test_reordering_is_not_taken_for_loss_for_ever() -> None:
    """A network that reorders every few frames: the first false alarms widen the window in which that is forgiven."""
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    port.to.reorder, port.to.hold = 0.2, 0.0008
    lan.write(0, A * 2000)
    early = initiator.counters["resent"]
    lan.write(0, A * 2000)
    assert initiator.counters["resent"] - early <= early
    assert initiator.counters["late"] > 0


# -- copies and ghosts ------------------------------------------------------------------------------------------------


def test_a_late_reply_completes_and_undoes_the_cut() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    for i in range(50):
        lan.write(i * 10, A * 10)
    before = initiator.paths[0].window.size
    port.back.delay += 0.008  # longer than the probe, shorter than nothing
    lan.write(0, B * 64)
    lan.pause(1)
    assert port.disk.whole(0, 64) == B * 64
    assert initiator.paths[0].window.size >= min(before, initiator.paths[0].buffers) / 2
    assert initiator.ghosts == 0


def test_no_tag_is_used_again_while_its_ghost_may_live() -> None:
    """Around the table of copies once and more, while the copies of one write are still out."""
    lan, peer, initiator = silent()
    write = lan.submit(write_request(0, A))
    lan.run(lambda: len(peer.seen) >= 2)
    ghosts = {parse_header(f).tag for f in peer.seen}
    initiator.copies.next += SIZE - 2
    seen = len(peer.seen)
    for i in range(20):
        lan.submit(write_request(1000 + i, B))
    lan.pause(0.5)
    assert len(peer.seen) > seen
    assert not ghosts & {parse_header(f).tag for f in peer.seen[seen:]} or write.done
    lan.hear(LINK, reply(peer.seen[0]))
    assert write.done


def test_a_failed_writes_copies_stay_ghosts() -> None:
    """The target refused one part; the other parts are under way and may still be carried out."""
    lan, peer, initiator = silent()
    request = lan.submit(write_request(0, A * 8))
    lan.run(lambda: len(peer.seen) >= 4)
    lan.hear(LINK, refusal(peer.seen[0], AoeError.DEVICE_UNAVAILABLE))
    assert request.done
    assert request.error == errno.EIO
    assert initiator.ghosts == 3
    newer = lan.submit(write_request(2, B))
    beside = lan.submit(write_request(0, B))
    lan.work()
    sent = {lba_of(f) for f in lan.requests(*WRITES)[4:]}
    assert sent == {0}  # its own copy was answered: no ghost there
    for frame in peer.seen[1:4]:
        lan.hear(LINK, reply(frame))
    assert initiator.ghosts == 0
    lan.work()
    assert {lba_of(f) for f in lan.requests(*WRITES)[4:]} >= {0, 2}
    assert not newer.done
    assert not beside.done


def test_quarantine_counts_from_the_sending_of_the_ghost() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach(quarantine=3.0)
    port.to.drop = lose(1)
    sent_at = lan.now
    lan.write(0, A)
    lan.pause(1.0)
    assert initiator.ghosts == 1
    newer = lan.submit(write_request(0, B))
    lan.run(lambda: newer.done)
    assert lan.now == pytest.approx(sent_at + 3.0, abs=0.05)


def test_what_cannot_land_any_more_is_forgotten_however_long_the_trouble_lasts() -> None:
    """Writes get lost for five minutes on a path that is up all the time."""
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    port.to.drop = lambda frame: frame[19] == Command.ATA and frame[27] in WRITES
    write = lan.submit(write_request(0, A * 64))
    lan.pause(300.0)
    sent = initiator.counters["resent"]
    assert sent > 2000
    assert len(write.resent) < 500
    port.to.drop = lambda frame: False
    lan.run(lambda: write.done)
    assert initiator.ghosts < 500 and len(initiator._ghost_ends) < 500
    lan.pause(QUARANTINE)
    assert initiator.ghosts == 0
    assert lan.read(0, 64) == A * 64


def test_the_clients_memory_is_let_go_before_a_request_is_reported_done() -> None:
    """nbdkit uses it for another request at once: an export of it that stayed would be written to by a late reply."""
    lan = Lan()
    lan.target(buffers=64)
    lan.attach()
    buffer = bytearray(300 * SECTOR)
    request = lan.do(Request(Kind.READ, 0, 300, memoryview(buffer)))
    assert request.data is None
    buffer.extend(b"x")  # raises BufferError while anyone holds a view
    for fail in (False, True):
        buffer = bytearray(4 * SECTOR)
        request = Request(Kind.WRITE, 0, 4, memoryview(buffer))
        lan.submit(request)
        if fail:
            lan.initiator.abandon(errno.ESHUTDOWN, "ending", lan.now)
        lan.finish(request)
        buffer.extend(b"x")


# -- a target that does not answer ----------------------------------------------------------------------------------------


def test_hold_waits_and_goes_on_in_place() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach(on_dead=HOLD)
    port.unplugged = True
    requests = [lan.submit(write_request(i * 8, A * 8)) for i in range(5)]
    lan.pause(3600)
    assert initiator.dead
    assert initiator.waiting == 5
    assert not any(r.done for r in requests)
    later = lan.submit(write_request(100, B))
    port.unplugged = False
    lan.run(lambda: all(r.done for r in [*requests, later]), most=2)
    assert not any(r.error for r in requests)
    assert port.disk.whole(0, 40) == A * 40
    assert [e.what for e in lan.events].count("dead") == 1
    assert [e.what for e in lan.events].count("alive") == 1
    assert not initiator.dead


def test_a_held_target_is_asked_gently() -> None:
    lan = Lan()
    port = lan.target()
    lan.attach()
    port.unplugged = True
    lan.submit(write_request(0, A))
    lan.pause(20)
    lan.sent.clear()
    lan.pause(100)
    assert {f[27] for f in lan.sent} == {Ata.IDENTIFY}
    assert 150 <= len(lan.sent) <= 250  # twice a second


@pytest.mark.parametrize(("policy", "after"), [(FAIL, DEAD_AFTER), (OnDead(30.0), 30.0), (OnDead(1.0), 1.0)])
def test_fail_ends_requests_after_its_time(policy: OnDead, after: float) -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach(on_dead=policy)
    lan.read(0, 1)
    answered = lan.now
    lan.pause(0.1)
    port.unplugged = True
    request = lan.submit(write_request(0, A))
    lan.run(lambda: request.done, most=60)
    assert request.error == errno.EIO
    assert "does not answer" in request.reason
    assert answered + after <= lan.now <= answered + after + 1.0
    at_once = lan.submit(write_request(0, A))
    assert at_once.done
    assert at_once.error == errno.EIO
    port.unplugged = False
    lan.run(lambda: initiator.up)
    lan.write(0, B)


def test_silence_while_nothing_is_asked_is_not_held_against_the_target() -> None:
    lan = Lan()
    port = lan.target()
    lan.attach(on_dead=FAIL)
    lan.pause(100)
    port.unplugged = True
    lan.pause(0.5)
    port.unplugged = False
    lan.write(0, A)


def test_a_write_that_waits_for_a_ghost_is_not_a_dead_target() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach(on_dead=OnDead(0.5), quarantine=5.0)
    lan.pause(5)
    port.to.drop = lose(1)
    lan.write(0, A)
    newer = lan.submit(write_request(0, B))
    lan.run(lambda: newer.done, most=10)
    assert not newer.error
    assert initiator.counters["dead"] == 0


def test_abandon_fails_all_and_leaves_nothing() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    port.unplugged = True
    requests = [
        lan.submit(r)
        for r in (write_request(0, A * 20), write_request(5, B), read_request(0, 30)[0], Request(Kind.FLUSH))
    ]
    initiator.abandon(errno.ESHUTDOWN, "the bridge is shutting down", lan.now)
    assert all(r.done and r.error == errno.ESHUTDOWN for r in requests)
    assert initiator.waiting == 0
    lan.pause(QUARANTINE + 0.1)
    assert initiator.ghosts == 0
    assert len(initiator._lock) == 0


# -- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_of_one_part_is_the_requests_error_at_once() -> None:
    lan = Lan()
    peer = Scripted()
    peer.script = lambda f: [reply(f, status=0x41, error=0x40) if lba_of(f) == 6 else reply(f, A * 2)]
    lan.peer(peer)
    lan.attach()
    began = lan.now
    request, _ = read_request(0, 16)
    assert lan.do(request).error == errno.EIO
    assert "uncorrectable" in request.reason
    assert lan.now - began < 0.01
    lan.pause(1)
    assert len({lba_of(f) for f in peer.seen}) == len(peer.seen)  # nothing was asked twice


def test_bad_argument_for_one_sector_is_final() -> None:
    lan = Lan()
    peer = Scripted(lambda f: [refusal(f, AoeError.BAD_ARGUMENT)])
    lan.peer(peer)
    lan.attach()
    request = lan.do(write_request(0, A))
    assert request.error == errno.EINVAL
    assert len(peer.seen) == 1


def test_bad_argument_for_every_size_comes_to_an_end() -> None:
    lan = Lan(9000)
    peer = Scripted(lambda f: [refusal(f, AoeError.BAD_ARGUMENT)], sectors=16)
    lan.peer(peer)
    lan.attach()
    request = lan.do(write_request(0, A * 512), most=10)
    assert request.error == errno.EINVAL
    assert len(peer.seen) < 600


@pytest.mark.parametrize("now_takes", [1, 2, 5, 8])
def test_a_smaller_limit_is_found_while_many_frames_are_under_way(now_takes: int) -> None:
    lan = Lan(9000)
    limit = [17]
    peer = Scripted(sectors=17, buffers=64)

    def script(frame: bytes) -> list[bytes]:
        if frame[26] > limit[0]:
            return [refusal(frame, AoeError.BAD_ARGUMENT)]
        return [reply(frame, A * frame[26] if frame[27] == Ata.READ_EXT else b"")]

    peer.script = script
    lan.peer(peer)
    lan.attach()
    lan.pause(3)
    lan.read(0, 64)
    assert max(f[26] for f in peer.seen) == 16
    limit[0] = peer.sectors = now_takes
    request, buffer = read_request(0, 1024)
    assert not lan.do(request).error
    assert buffer == A * 1024


# -- identity ---------------------------------------------------------------------------------------------------------


def test_an_announcement_makes_us_look_again_before_anything_else_goes_there() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    lan.sent.clear()
    port.announce(lan.now)
    lan.run(lambda: initiator.counters["announced"] == 1)
    assert initiator.paths[0].state is PathState.NEW
    lan.write(0, A)
    assert [f[27] for f in lan.requests()][:2] == [Ata.IDENTIFY, Ata.WRITE_EXT]


def test_an_announcement_may_lower_the_buffers_but_only_an_answer_raises_them() -> None:
    """Whatever arrives with tag 0 passes for one, a reply with a flipped bit as well."""
    lan = Lan()
    port = lan.target(buffers=2)
    initiator = lan.attach()
    path = initiator.paths[0]
    lan.hear(LINK, announcement(buffers=64))
    assert (path.state, path.buffers) == (PathState.NEW, 2)
    lan.run(lambda: path.up)
    assert path.buffers == 2
    lan.hear(LINK, announcement(buffers=1))
    assert path.buffers == 1
    port.lun.buffers = 8  # it has been started anew with more
    lan.hear(LINK, announcement(buffers=8))
    lan.run(lambda: path.up and path.buffers == 8, most=0.1)


def test_an_identity_is_pinned_and_does_not_follow_the_target() -> None:
    lan = Lan()
    port = lan.target(serial="first")
    initiator = lan.attach()
    port.lun.serial = "second"
    lan.pause(KEEPALIVE + 1)  # noticed without any announcement
    assert initiator.paths[0].state is PathState.STRANGER
    assert initiator.identify is not None
    assert initiator.identify.serial == "first"
    request = lan.submit(write_request(0, A))
    lan.pause(60)
    assert not request.done
    assert not port.disk.content
    port.lun.serial = "first"
    lan.run(lambda: request.done, most=60)


def test_growth_is_noticed_without_announcement_and_told_once() -> None:
    lan = Lan()
    port = lan.target(sectors=1000)
    initiator = lan.attach()
    port.disk.sectors = 5000
    lan.pause(2 * KEEPALIVE + 1)
    assert initiator.identify is not None
    assert initiator.identify.sectors == 5000
    assert [e.text for e in lan.events if e.what == "grown"] == ["e1.0 has grown from 1000 to 5000 sectors"]


def test_a_question_to_one_path_is_not_answered_by_another() -> None:
    """On a hub, the stranger hears the IDENTIFY that is meant for our disk, and must not pass for it."""
    lan = Lan()
    lan.target(serial="ours", mac=REMOTE)
    initiator = lan.attach()
    stranger = lan.target("vblade", mac=REMOTE2, hub=True)  # it carries out what is addressed to any MAC
    stranger.back.delay /= 2  # and is quicker than ours
    initiator.add_path(LINK, LOCAL, REMOTE2, 1500, Config(sector_count=2, buffer_count=16), lan.now)
    lan.run(lambda: initiator.paths[1].state is PathState.STRANGER)
    lan.pause(KEEPALIVE * 3)
    assert initiator.paths[0].up
    assert initiator.identify is not None
    assert initiator.identify.serial == "ours"
    assert initiator.counters["dropped_path"] > 0
    initiator.counters.clear()
    lan.write(0, A)  # which the stranger has carried out on its own disk, for it heard that as well: not our doing
    assert initiator.counters["dropped_stranger"] > 0


# -- several paths ------------------------------------------------------------------------------------------------------


def two_paths() -> tuple[Lan, MemoryBackend, Initiator]:
    lan = Lan()
    disk = MemoryBackend(1 << 16)
    lan.target(disk=disk, serial="one", mac=REMOTE, link="eth0")
    lan.target(disk=disk, serial="one", mac=REMOTE2, link="eth1")
    initiator = lan.attach()
    lan.run(lambda: all(p.up for p in initiator.paths))
    return lan, disk, initiator


def test_a_dying_path_hands_its_commands_to_the_other() -> None:
    lan, disk, initiator = two_paths()
    data = random.Random(3).randbytes(2000 * SECTOR)
    request = lan.submit(write_request(0, data))
    lan.pause(0.001)
    lan.ports[0].unplugged = True
    lan.run(lambda: request.done, most=10)
    assert not request.error
    assert disk.whole(0, 2000) == data
    assert [p.up for p in initiator.paths] == [False, True]
    lan.ports[0].unplugged = False
    lan.run(lambda: all(p.up for p in initiator.paths), most=5)


def test_carrier_loss_moves_commands_at_once() -> None:
    lan, disk, initiator = two_paths()
    request = lan.submit(write_request(0, A * 500))
    lan.pause(0.0001)
    lan.ports[0].unplugged = True
    began = lan.now
    initiator.link_changed("eth0", LOCAL, 1500, False, lan.now)
    lan.run(lambda: request.done)
    assert lan.now - began < 0.05
    assert disk.whole(0, 500) == A * 500
    assert initiator.paths[0].state is PathState.DOWN


def test_paths_share_the_targets_buffers() -> None:
    lan, _, initiator = two_paths()
    for path in initiator.paths:
        path.configured(Config(buffer_count=4, sector_count=2), lan.now)
    deepest = 0
    request = lan.submit(write_request(0, A * 500))
    while not request.done:
        lan.step()
        deepest = max(deepest, initiator.outstanding())
    assert deepest == 4


# -- one's own interface ------------------------------------------------------------------------------------------------


def test_frames_that_the_interface_refuses_are_sent_a_moment_later() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    refusals = [3]

    def refuse(run: object) -> int:
        if refusals[0]:
            refusals[0] -= 1
            return 1
        return 1 << 30

    lan.refuse = refuse
    data = random.Random(4).randbytes(100 * SECTOR)
    lan.write(0, data)
    assert port.disk.whole(0, 100) == data
    assert initiator.counters["send_failed_ENOBUFS"] > 0
    assert initiator.ghosts == 0  # what never left is no ghost
    assert port.disk.log.count(("write", 0, 2)) == 1


def test_our_mac_may_change() -> None:
    lan = Lan()
    lan.target()
    initiator = lan.attach()
    initiator.link_changed(LINK, LOCAL[:5] + b"\x77", 1500, True, lan.now)
    lan.sent.clear()
    lan.write(0, A)
    assert {f[6:12] for f in lan.sent} == {LOCAL[:5] + b"\x77"}


# -- bounds and quiet -----------------------------------------------------------------------------------------------------


def test_an_idle_initiator_sends_a_keepalive_and_nothing_else() -> None:
    lan = Lan()
    lan.target()
    lan.attach()
    lan.pause(10)
    lan.sent.clear()
    lan.pause(100)
    kinds = [(f[19], f[27] if f[19] == 0 else None) for f in lan.sent]
    assert set(kinds) == {(0, Ata.IDENTIFY), (1, None)}
    assert len(kinds) == pytest.approx(2 * 100 / KEEPALIVE, abs=2)


def test_questions_take_no_more_buffers_than_there_are() -> None:
    lan = Lan()
    lan.target("vblade", buffers=1)
    initiator = lan.attach()
    deepest = 0
    request = lan.submit(write_request(0, A * 200))
    initiator.paths[0].next_probe = lan.now
    while not request.done:
        lan.step()
        deepest = max(deepest, initiator.outstanding())
    assert deepest == 1


def test_a_flood_of_announcements_makes_no_flood_of_paths_or_events() -> None:
    lan = Lan()
    lan.target()
    initiator = lan.attach(learn_paths=True)
    for i in range(1000):
        initiator.receive(LINK, announcement(b"\x02\x77" + i.to_bytes(4, "big")), lan.now)
    assert len(initiator.paths) <= 64
    for _ in range(5000):
        initiator._tell("test", "x")
    assert len(initiator.events) <= 1000
    assert len(initiator.history) <= 100
    lan.write(0, A)


def test_without_learning_an_unknown_mac_is_nobody() -> None:
    lan = Lan()
    lan.target()
    initiator = lan.attach()
    initiator.receive(LINK, announcement(REMOTE2), lan.now)
    assert len(initiator.paths) == 1
    assert initiator.counters["dropped_source"] == 1


def test_requests_of_no_sectors_or_with_a_wrong_buffer_cannot_be_made() -> None:
    for count, size in ((0, 0), (1, 511), (2, 512), (-1, 0)):
        with pytest.raises(ValueError, match="needs a buffer of that size"):
            Request(Kind.READ, 0, count, memoryview(bytearray(size)))
    with pytest.raises(ValueError, match="needs a buffer"):
        Request(Kind.WRITE, 0, 1, None)


def test_a_lock_holds_its_range_and_lets_its_own_requests_in() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    lock = lan.do(Request(Kind.LOCK, 10, 4))
    inside, buffer = read_request(10, 1)
    inside.under = lock
    other = lan.submit(write_request(11, B))
    reader, _ = read_request(12, 1)
    lan.submit(reader)
    lan.do(inside)
    assert buffer == bytes(SECTOR)
    write = write_request(10, A * 4, under=lock)
    port.to.drop = lose(1)  # it leaves a ghost
    lan.do(write)
    assert not other.done
    assert not reader.done
    initiator.release(lock, lan.now)
    lan.run(lambda: other.done and reader.done)
    assert port.disk.whole(10, 4) == A + B + A + A
    assert initiator.ghosts == 0
    assert len(initiator._lock) == 0


def test_on_dead_names_itself() -> None:
    assert [str(policy) for policy in (HOLD, FAIL, OnDead(30.0))] == ["hold", "fail", "fail-after=30"]
    assert E1_0.shelf == 1


def test_a_read_modify_write_waits_for_an_older_process_too() -> None:
    """Between its read and its write a write of the process before ours could still land, and be undone."""
    lan = Lan()
    lan.target()
    born = lan.now
    initiator = lan.attach(quarantine=3.0, wait=False)
    lan.run(lambda: initiator.up)
    lock = lan.submit(Request(Kind.LOCK, 0, 1))
    lan.pause(1.0)
    assert not lock.done
    lan.run(lambda: lock.done)
    assert lan.now >= born + 3.0
    initiator.release(lock, lan.now)


def test_questions_that_find_no_room_do_not_pile_up() -> None:
    lan = Lan()
    lan.target(buffers=1)
    initiator = lan.attach()
    before = len(initiator._control)
    for _ in range(50):
        initiator._ask(initiator.paths[0], Kind.QUERY)
        initiator._ask(initiator.paths[0], Kind.IDENTIFY)
    assert len(initiator._control) - before <= 2


def test_a_path_that_never_answers_takes_no_room_from_the_others() -> None:
    """A candidate learned from one stray announcement is asked for ever; the target's only buffer is not his."""
    lan = Lan()
    lan.target(buffers=1)
    initiator = lan.attach(learn_paths=True)
    lan.hear(LINK, announcement(REMOTE2))
    assert len(initiator.paths) == 2
    lan.pause(2.0)
    assert initiator.paths[1].outstanding == 1
    lan.write(0, A)
    assert lan.read(0, 1) == A


def test_a_size_is_not_tried_on_a_path_that_has_just_lost_our_trust() -> None:
    lan = Lan(mtu=9000)
    lan.target(mtu=9000)
    initiator = lan.attach()
    path = initiator.paths[0]
    path.state = PathState.NEW
    initiator._ask(path, Kind.PROBE_REPLY, 8)
    assert not [run for run in initiator.transmit(lan.now) if run.request.kind is Kind.PROBE_REPLY]
    assert not initiator._control


# -- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.sources
def test_a_long_request_goes_out_in_portions_of_the_window_and_nothing_waits_in_the_end() -> None:
    """Answered one by one, it is not sent one by one; and a command that takes long does not hold it back."""
    lan = Lan()
    peer = Scripted(buffers=32)
    lan.peer(peer)
    initiator = lan.attach()
    peer.script = lambda f: () if f[27] in (Ata.FLUSH, Ata.FLUSH_EXT) else (reply(f, bytes(f[26] * SECTOR)),)
    portions: list[int] = []
    transmit = initiator.transmit

    def watched(now: float) -> list[Run]:
        runs = transmit(now)
        portions.extend(run.count for run in runs if run.request.kind is Kind.READ)
        return runs

    initiator.transmit = watched  # type: ignore[method-assign]
    done, _ = read_request(0, 1000)
    lan.do(done)
    assert not done.error
    assert sum(portions) == 500
    assert len(portions) < 500 / 3
    flushes = [lan.submit(Request(Kind.FLUSH)) for _ in range(14)]
    done, _ = read_request(0, 200)
    lan.do(done, most=1.0)
    assert not any(flush.done for flush in flushes)
