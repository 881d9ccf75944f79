# SPDX-License-Identifier: BSD-3-Clause
"""Two hosts and one LUN: whose it is, when that changes, and what becomes of the loser's requests."""

from __future__ import annotations

import errno

import pytest

from aoe_nbd.core.constants import FENCE_GRACE, FENCE_LEASE, FENCE_POLL, QUARANTINE
from aoe_nbd.core.fence import HANDOVER, Fence, Phase, Record, State, claim
from aoe_nbd.core.initiator import Initiator
from aoe_nbd.core.policy import Fencing
from aoe_nbd.core.request import Request
from aoe_nbd.wire.codes import SECTOR, Ata
from aoe_nbd.wire.frames import Config
from inmemory import E1_0, REMOTE, Lan, MemoryBackend, Port, read_request, write_request

A, B, C = b"A" * SECTOR, b"B" * SECTOR, b"C" * SECTOR
GUEST = "7d3b2f6e-0000-4000-8000-1234567890ab"


class Site:
    """A target, and hosts that each reach it by a link of their own."""

    def __init__(self, mode: Fencing = Fencing.ENFORCE, like: str = "vblade") -> None:
        self.lan, self.mode, self.like = Lan(), mode, like
        self.disk = MemoryBackend(1 << 16)
        self.ports: dict[str, Port] = {}
        self.lun = self.lan.target(like, disk=self.disk, link="nobody").lun
        self.lun.state.config = b""

    def host(
        self, name: str, tag: str = GUEST, note: str = "", by_force: bool = False, settle: bool = True
    ) -> Initiator:
        """Attach it there."""
        lan = self.lan
        link = f"to-{name}"
        if name not in self.ports:
            self.ports[name] = lan.peer(self.lun, link=link, mac=REMOTE)
        fence = Fence(self.mode, name, tag, note, by_force)
        initiator = lan.attach(E1_0, wait=False, links=[link], fence=fence)
        self.began = lan.now
        lan.run(lambda: initiator.up)
        initiator.change_fence(lambda f: f.begin(lan.now), lan.now)
        lan.work()
        if settle:
            lan.run(lambda: fence.decided)
        return initiator

    def restart(self) -> None:
        """The target ends, and forgets what it keeps in memory; it is back at once, and says nothing of it."""
        self.lun.state.config, self.lun.state.reserved = b"", []

    def unplug(self, name: str, away: bool = True) -> None:
        self.ports[name].unplugged = away

    @property
    def record(self) -> Record | None:
        return Record.parse(self.lun.state.config)

    def submit(self, initiator: Initiator, request: Request) -> Request:
        initiator.submit(request, self.lan.now)
        self.lan.work()
        return request

    def write(self, initiator: Initiator, lba: int, data: bytes, error: int = 0) -> None:
        request = self.submit(initiator, write_request(lba, data))
        self.lan.run(lambda: request.done, 30)
        assert request.error == error, request.reason

    def change(self, initiator: Initiator, what: str) -> None:
        initiator.change_fence(lambda fence: getattr(fence, what)(self.lan.now), self.lan.now)
        self.lan.work()

    def release(self, initiator: Initiator) -> None:
        """As `Device.leave` does."""
        assert initiator.fence is not None
        initiator.quiesce()
        self.lan.run(lambda: initiator.quiet(self.lan.now))
        self.change(initiator, "release")
        self.lan.run(lambda: initiator.fence is not None and initiator.fence.phase is Phase.LEFT)
        self.lan.initiators.remove(initiator)

    def writes_of(self, name: str) -> int:
        return sum(what == "write" for what, *_ in self.disk.log)


def phase(initiator: Initiator) -> Phase:
    assert initiator.fence is not None
    return initiator.fence.phase


# -- the record ---------------------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written() -> None:
    for record in (
        Record(1, "dom0-a", "-", State.HELD),
        Record(999999, "a.b_c-1", GUEST, State.MOVING, "other", 999998),
        Record(7, "a", GUEST, State.FREE),
    ):
        assert Record.parse(record.build()) == record
        assert len(record.build()) < 300


@pytest.mark.parametrize(
    "string",
    [b"", b"a label", b"aoe-nbd", b"aoe-nbd epoch=x owner=a tag=- state=held", b"aoe-nbd epoch=1 owner=a tag=-",
     b"aoe-nbd epoch=1 owner=a tag=- state=gone", b"aoe-nbd epoch=1 owner=a tag=- state=held\n", b"\xff" * 1024],
)  # fmt: skip
def test_what_is_no_record_is_none(string: bytes) -> None:
    assert Record.parse(string) is None


@pytest.mark.parametrize(
    ("seen", "host", "tag", "found"),
    [
        (None, "b", GUEST, "1 b held"),
        ("5 a free", "b", "-", "6 b held"),
        ("5 a held", "b", GUEST, "6 b moving a 5"),
        ("5 a held", "b", "another", None),
        ("5 a held -", "b", "-", None),
        ("5 a held", "a", "another", "6 a held"),
        ("6 b moving a 5", "c", GUEST, "7 c moving a 5"),
        ("6 b moving a 5", "a", GUEST, "7 a moving a 5"),
        ("6 b moving a 5", "b", GUEST, "7 b moving a 5"),
        ("6 b moving a 5", "b", "another", None),
        ("7 a returned b 5", "c", GUEST, "8 c moving a 5"),
        ("7 a returned b 5", "a", GUEST, "8 a held"),
    ],
)
def test_what_a_fresh_attach_makes_of_a_record(seen: str | None, host: str, tag: str, found: str | None) -> None:
    def record(text: str | None, tag: str) -> Record | None:
        if text is None:
            return None
        epoch, owner, state, *more = text.split()
        if more == ["-"]:
            return Record(int(epoch), owner, "-", State(state))
        return Record(
            int(epoch), owner, tag, State(state), *(f(word) for f, word in zip((str, int), more, strict=False))
        )  # type: ignore[arg-type]

    assert claim(record(seen, GUEST), host, tag) == record(found, tag)


# -- a fresh attach -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Fencing.WARN, Fencing.ENFORCE, Fencing.AUTO])
def test_an_empty_record_is_taken_after_a_grace(mode: Fencing) -> None:
    site = Site(mode)
    a = site.host("a")
    assert site.lan.now - site.began == pytest.approx(FENCE_GRACE, abs=0.3)
    assert site.record == Record(1, "a", GUEST, State.HELD)
    assert bool(site.lun.state.reserved) == (mode is not Fencing.WARN)
    site.write(a, 3, A)
    assert site.disk.sector(3) == A


def test_auto_does_without_reservations_where_the_target_has_none() -> None:
    site = Site(Fencing.AUTO, "qaoed")
    a = site.host("a")
    assert phase(a) is Phase.HOLDING
    assert a.fence is not None and not a.fence.enforcing
    site.write(a, 3, A)


def test_enforce_is_refused_by_a_target_without_reservations() -> None:
    site = Site(Fencing.ENFORCE, "kvblade")
    a = site.host("a")
    assert phase(a) is Phase.REFUSED
    assert a.fence is not None and "reservations" in a.fence.why
    assert site.lun.state.config == b""


@pytest.mark.parametrize(("mode", "then"), [(Fencing.WARN, Phase.UNRECORDED), (Fencing.ENFORCE, Phase.REFUSED)])
def test_a_string_of_somebody_else_is_not_touched(mode: Fencing, then: Phase) -> None:
    site = Site(mode)
    site.lun.state.config = b"root of web1"
    assert phase(site.host("a")) is then
    site.lan.pause(3)
    assert site.lun.state.config == b"root of web1"


@pytest.mark.parametrize(("mode", "then"), [(Fencing.WARN, Phase.UNRECORDED), (Fencing.ENFORCE, Phase.REFUSED)])
def test_another_guest_is_refused_or_warned_of(mode: Fencing, then: Phase) -> None:
    site = Site(mode)
    a = site.host("a")
    b = site.host("b", "another-guest")
    assert phase(b) is then
    assert site.record == Record(1, "a", GUEST, State.HELD)
    assert phase(a) is Phase.HOLDING
    site.write(a, 3, A)
    if mode is Fencing.WARN:
        assert "fence-conflict" in [event.what for event in b.history]
        site.write(b, 4, B)


def test_of_two_that_come_at_once_one_gets_it() -> None:
    site = Site()
    both = [site.host(name, f"guest-{name}", settle=False) for name in "ab"]
    site.lan.pause(FENCE_GRACE + HANDOVER + 1)
    assert sorted(map(phase, both)) == [Phase.HOLDING, Phase.REFUSED]


def test_the_same_host_goes_on_at_once() -> None:
    """Its last bridge is dead, or its machine was started anew: there is nobody to wait for."""
    site = Site()
    site.lan.initiators.remove(site.host("a"))
    a = site.host("a", "another-guest")
    assert site.lan.now - site.began < 1.0
    assert site.record == Record(2, "a", "another-guest", State.HELD)
    site.write(a, 3, A)


def test_what_was_released_is_free_for_all() -> None:
    site = Site()
    site.release(site.host("a"))
    assert site.record == Record(2, "a", GUEST, State.FREE)
    assert site.lun.state.reserved == []
    b = site.host("b", "another-guest")
    assert site.record == Record(3, "b", "another-guest", State.HELD)
    site.write(b, 3, B)


# -- from host to host --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Fencing.WARN, Fencing.ENFORCE])
@pytest.mark.parametrize("like", ["vblade", "ours"])
def test_a_handover(mode: Fencing, like: str) -> None:
    site = Site(mode, like)
    a = site.host("a")
    site.write(a, 3, A)
    b = site.host("b")
    assert site.lan.now - site.began == pytest.approx(HANDOVER, abs=0.3)
    assert site.record == Record(2, "b", GUEST, State.MOVING, "a", 1)
    assert phase(a) is Phase.YIELDED
    late = site.submit(a, write_request(3, A))
    site.write(b, 3, B)
    assert site.record == Record(3, "b", GUEST, State.HELD)
    site.lan.run(lambda: late.done)
    assert (late.error, phase(a)) == (errno.EPERM, Phase.LOST)
    site.write(a, 3, A, error=errno.EPERM)
    site.lan.pause(5)
    assert site.disk.sector(3) == B
    site.write(b, 3, C)


@pytest.mark.parametrize("mode", [Fencing.WARN, Fencing.ENFORCE])
def test_the_new_owner_reads_only_what_the_old_one_can_no_longer_change(mode: Fencing) -> None:
    """The old one's writes are on their way, again and again lost, when the new one takes over."""
    site = Site(mode)
    a = site.host("a")
    site.write(a, 3, A)
    held: list[bytes] = []

    def hold(frame: bytes) -> bool:
        if frame[19] == 0 and frame[27] == Ata.WRITE_EXT:
            held.append(frame)
            return True
        return False

    site.ports["a"].to.drop = hold
    stuck = site.submit(a, write_request(3, C))
    site.lan.pause(0.5)
    b = site.host("b", settle=False)
    site.ports["a"].to.drop = None
    last = max((site.lan.now for _ in held), default=0.0)
    request, buffer = read_request(3, 1)
    site.submit(b, request)
    site.lan.run(lambda: request.done, 30)
    seen = bytes(buffer)
    assert site.lan.now >= last + FENCE_LEASE
    site.lan.pause(10)
    assert site.disk.sector(3) == seen
    assert not stuck.done  # B has not written: it may be given back


def test_a_failed_migration_gives_it_back_and_nobody_notices() -> None:
    site = Site()
    a = site.host("a")
    site.write(a, 3, A)
    b = site.host("b")
    parked = [site.submit(a, write_request(lba, C)) for lba in range(5, 9)]
    site.lan.pause(1)
    assert not any(request.done for request in parked)
    site.release(b)
    assert site.record == Record(3, "a", GUEST, State.RETURNED, "b", 1) or phase(a) is Phase.HOLDING
    site.lan.run(lambda: all(request.done for request in parked), 5)
    assert not any(request.error for request in parked)
    assert site.record == Record(4, "a", GUEST, State.HELD)
    site.write(a, 3, B)


def test_commands_that_the_reservation_refuses_wait_and_are_done_later() -> None:
    """Error 6 comes before the record is read: what is under way then is not failed."""
    site = Site()
    a = site.host("a")
    site.write(a, 3, A)
    b = site.host("b", settle=False)
    site.lan.run(lambda: site.lun.state.reserved != [] and site.record is not None and site.record.owner == "b")
    site.lan.run(lambda: bool(site.lun.state.reserved) and site.lan.links["to-b"].mac in site.lun.state.reserved)
    request = site.submit(a, write_request(3, C))
    site.lan.run(lambda: a.counters["aoe_error_6"] > 0)
    site.lan.run(lambda: phase(a) is Phase.YIELDED)
    assert not request.done
    site.lan.run(lambda: b.fence is not None and b.fence.decided)
    site.release(b)
    site.lan.run(lambda: request.done)
    assert not request.error
    assert site.disk.sector(3) == C


def test_there_and_back_again() -> None:
    site = Site()
    a = site.host("a")
    for number in range(3):
        b = site.host("b")
        site.write(b, 3, bytes([number]) * SECTOR)
        assert phase(a) in (Phase.LOST, Phase.YIELDED)
        site.lan.initiators.remove(a)
        a = site.host("a")
        site.write(a, 4, bytes([number]) * SECTOR)
        site.lan.initiators.remove(b)
    assert site.record is not None and (site.record.owner, site.record.state) == ("a", State.HELD)


def test_a_third_takes_what_was_being_moved() -> None:
    site = Site()
    a, b = site.host("a"), site.host("b")
    c = site.host("c")
    site.lan.pause(1)
    assert (phase(a), phase(b)) == (Phase.YIELDED, Phase.LOST)
    assert site.record == Record(3, "c", GUEST, State.MOVING, "a", 1)
    site.release(c)
    site.lan.run(lambda: phase(a) is Phase.HOLDING, 5)
    site.write(a, 3, A)


# -- a target that loses its memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [Fencing.WARN, Fencing.ENFORCE])
def test_the_owner_writes_its_record_again_and_waits(mode: Fencing) -> None:
    site = Site(mode)
    a = site.host("a")
    site.restart()
    site.lan.pause(FENCE_POLL + 0.1)
    began = site.lan.now
    site.write(a, 3, A)
    assert site.lan.now - began > FENCE_GRACE - 1
    assert site.record == Record(1, "a", GUEST, State.HELD)
    assert bool(site.lun.state.reserved) == (mode is Fencing.ENFORCE)


@pytest.mark.parametrize("mode", [Fencing.WARN, Fencing.ENFORCE])
@pytest.mark.parametrize("wrote", [False, True])
def test_who_has_lost_it_stays_so(mode: Fencing, wrote: bool) -> None:
    site = Site(mode)
    a = site.host("a")
    b = site.host("b")
    site.lan.pause(1)
    if wrote:
        site.write(b, 3, B)
        site.lan.pause(1)
    before = phase(a)
    assert before is (Phase.LOST if wrote else Phase.YIELDED)
    site.restart()
    site.unplug("b")
    site.lan.pause(30)
    assert phase(a) is before
    site.unplug("b", False)
    site.write(b, 3, C)
    assert site.record is not None and site.record.owner == "b"


def test_who_did_not_know_learns_it_in_the_grace() -> None:
    """The target loses its memory just after a handover that the old owner has not heard of."""
    site = Site(Fencing.WARN)
    a = site.host("a")
    site.write(a, 3, A)
    site.unplug("a")
    b = site.host("b")
    site.write(b, 3, B)
    site.restart()
    late = site.submit(a, write_request(3, C))
    site.unplug("a", False)
    site.lan.run(lambda: late.done)
    assert (late.error, phase(a)) == (errno.EPERM, Phase.LOST)
    assert site.disk.sector(3) == B
    assert phase(b) is Phase.HOLDING


def test_an_outage_of_a_durable_target_costs_no_grace() -> None:
    site = Site()
    a = site.host("a")
    site.write(a, 3, A)
    site.unplug("a")
    request = site.submit(a, write_request(3, B))
    site.lan.pause(20)
    site.unplug("a", False)
    began = site.lan.now
    site.lan.run(lambda: request.done)
    assert not request.error
    assert site.lan.now - began < 1.5


def test_nothing_but_questions_without_a_look_at_the_record() -> None:
    """While the record cannot be read, the lease ends, although the target answers all else."""
    site = Site()
    a = site.host("a")
    site.write(a, 3, A)
    site.ports["a"].back.drop = lambda frame: frame[19] == 1
    site.lan.pause(FENCE_LEASE + 0.1)
    request = site.submit(a, write_request(3, B))
    site.lan.pause(5)
    assert not request.done
    assert site.disk.sector(3) == A
    site.ports["a"].back.drop = None
    site.lan.run(lambda: request.done, 5)
    assert not request.error


# -- takeover, and the next bridge --------------------------------------------------------------------------------------


def test_a_takeover_of_a_dead_host() -> None:
    site = Site()
    a = site.host("a")
    site.unplug("a")
    b = site.host("b", "-", by_force=True)
    assert site.record == Record(2, "b", "-", State.HELD)
    site.write(b, 3, B)
    site.unplug("a", False)
    site.write(a, 3, A, error=errno.EPERM)
    assert phase(a) is Phase.LOST
    assert site.disk.sector(3) == B


def test_a_takeover_in_place() -> None:
    """The destination died before it wrote, and did not give it back."""
    site = Site()
    a = site.host("a")
    request = site.submit(a, write_request(3, A))
    b = site.host("b")
    site.lan.run(lambda: phase(a) is Phase.YIELDED)
    later = site.submit(a, write_request(4, A))
    site.unplug("b")
    site.change(a, "take_over")
    site.lan.run(lambda: request.done and later.done, 10)
    assert (request.error, later.error) == (0, 0)
    site.unplug("b", False)
    site.lan.run(lambda: phase(b) is Phase.LOST, 20)


def test_who_has_lost_it_cannot_take_it_over_in_place() -> None:
    site = Site()
    a, b = site.host("a"), site.host("b")
    site.write(b, 3, B)
    site.lan.run(lambda: phase(a) is Phase.LOST)
    assert a.fence is not None and "lost" in a.fence.take_over(site.lan.now)


@pytest.mark.parametrize("forgets", [False, True])
def test_the_next_bridge_goes_on_in_the_same_place(forgets: bool) -> None:
    """A bridge that is started anew is no fresh attach: it must not take back what another host has taken over."""
    site = Site()
    a = site.host("a")
    b = site.host("b")
    site.lan.run(lambda: phase(a) is Phase.YIELDED)
    assert a.fence is not None
    note = a.fence.note
    site.lan.initiators.remove(a)
    if forgets:
        site.restart()
        site.unplug("b")
    a = site.host("a", note=note)
    site.lan.pause(10)
    assert phase(a) is Phase.YIELDED
    site.unplug("b", False)
    site.lan.pause(FENCE_GRACE + 3)
    assert phase(b) is Phase.HOLDING


def test_the_next_bridge_of_the_owner_waits_for_nobody() -> None:
    site = Site()
    a = site.host("a")
    assert a.fence is not None
    note = a.fence.note
    site.lan.initiators.remove(a)
    a = site.host("a", note=note)
    began = site.lan.now
    site.write(a, 3, A)
    assert site.lan.now - began < QUARANTINE + 0.2
    assert site.record == Record(1, "a", GUEST, State.HELD)


def test_of_two_with_the_same_number_the_one_who_had_it_is_right() -> None:
    """The target loses its memory, and the guest is moved before the owner, whose bridge is just being started anew, sees it."""
    site = Site()
    a = site.host("a")
    assert a.fence is not None
    note = a.fence.note
    site.lan.initiators.remove(a)
    site.restart()
    b = site.host("b", settle=False)
    site.lan.run(lambda: site.record == Record(1, "b", GUEST, State.HELD))
    a = site.host("a", note=note)
    site.lan.run(lambda: b.fence is not None and b.fence.decided, 20)
    assert (phase(a), phase(b)) == (Phase.YIELDED, Phase.HOLDING)
    assert site.record == Record(2, "b", GUEST, State.MOVING, "a", 1)


def test_what_is_given_back_is_never_free_for_a_moment() -> None:
    """The reservation goes back to who had it, so that it keeps refusing those before him."""
    site = Site()
    a = site.host("a")
    holders = list(site.lun.state.reserved)
    b = site.host("b")
    site.ports["a"].unplugged = True
    site.release(b)
    assert site.lun.state.reserved == holders
    assert phase(a) is Phase.YIELDED


def test_the_next_bridge_after_a_handover_it_did_not_see() -> None:
    site = Site()
    a = site.host("a")
    assert a.fence is not None
    note = a.fence.note
    site.lan.initiators.remove(a)
    b = site.host("b")
    site.write(b, 3, B)
    a = site.host("a", note=note)
    site.write(a, 3, A, error=errno.EPERM)
    assert site.disk.sector(3) == B


def test_quiesce_and_resume_know_of_nothing() -> None:
    site = Site()
    a = site.host("a")
    a.quiesce()
    request = site.submit(a, write_request(3, A))
    site.lan.pause(3)
    assert not request.done
    a.resume(site.lan.now)
    site.lan.work()
    site.lan.run(lambda: request.done)
    assert site.disk.sector(3) == A


def test_off_asks_nothing() -> None:
    site = Site()
    a = site.lan.attach(E1_0, links=["nobody"])
    site.lan.pause(20)
    assert a.fence is None
    assert not [frame for frame in site.lan.sent if frame[19] == 3]
    assert Config.parse(site.lan.heard[-1] if site.lan.heard[-1][19] == 1 else site.lan.heard[-2])
