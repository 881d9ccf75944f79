# SPDX-License-Identifier: BSD-3-Clause
"""Who may write to a LUN that several hosts can reach. Sans-IO: strings and MACs in, questions out, `now` an argument.

The target keeps a record of the owner in its config string, and each change of it has a number, its epoch, that is never
used again: the greater epoch is right, whatever arrives late. An owner reads the record twice a second, and sends nothing
but questions when it has not been shown its own for a LEASE. So whoever has written a record of his own need only wait for
a LEASE, and for the life of a frame, and nothing of his predecessor can land any more. That holds for every target that
keeps a string. Where the target knows reservations, it refuses the others by itself as well.

    fresh attach      the record is free, empty, or this host's own: write ours, HELD
    moving            it is another host's, for the same guest: write ours, MOVING; before the first change of data, HELD
    the other host    sees MOVING: its requests wait (YIELDED). Given back untouched (RETURNED), it goes on as if nothing had
                      been; once the new owner wrote, or anybody else came, its requests fail, for good (LOST)
    an empty record   is a target that lost its memory, never a release: the owner writes it again, and waits a GRACE in
                      which a greater epoch would show itself

All that is decided about a record is in `claim`, `_superseded` and `_await_return`.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..wire.codes import ConfigCommand, ReserveCommand
from ..wire.frames import Config, Reserve
from .constants import FENCE_GRACE, FENCE_LEASE, FENCE_POLL, FENCE_RESERVE, FENCE_RETRY, QUARANTINE
from .policy import Fencing

NOBODY = "-"  # the tag of an attach that is not for a guest: it is never handed over
NEVER, FOREVER = float("-inf"), float("inf")
HANDOVER = FENCE_LEASE + QUARANTINE  # after that nothing of a former owner is on its way

_FORM = re.compile(r"aoe-nbd epoch=([0-9]{1,18})((?: [a-z]+=[\w.:@+-]+)*)", re.ASCII)

Question = Config | Reserve


class State(enum.StrEnum):
    """What a record says of the LUN."""

    HELD = "held"
    MOVING = "moving"  # the owner has taken it over, and has not changed anything yet
    RETURNED = "returned"  # to the owner, by one that had it MOVING
    FREE = "free"


@dataclass(frozen=True)
class Record:
    """What the target keeps. Of a LUN that is MOVING or RETURNED, `source` held it last, with epoch `was`."""

    epoch: int
    owner: str
    tag: str
    state: State
    source: str = ""
    was: int = 0

    def build(self) -> bytes:
        """As a config string."""
        moved = f" from={self.source} was={self.was}" if self.source else ""
        return f"aoe-nbd epoch={self.epoch} owner={self.owner} tag={self.tag} state={self.state}{moved}".encode()

    @classmethod
    def parse(cls, string: bytes) -> Record | None:
        """None if it is not of this form: somebody else's string, or none."""
        match = _FORM.fullmatch(string.decode("ascii", "replace"))
        if match is None:
            return None
        words = dict(word.split("=", 1) for word in match[2].split())
        try:
            return cls(
                int(match[1]),
                words["owner"],
                words["tag"],
                State(words["state"]),
                words.get("from", ""),
                int(words.get("was", "0")),
            )
        except (KeyError, ValueError):
            return None

    def __str__(self) -> str:
        return f"{self.owner} (epoch {self.epoch}, {self.state}{'' if self.tag == NOBODY else f', tag {self.tag}'})"


def claim(seen: Record | None, host: str, tag: str, by_force: bool = False) -> Record | None:
    """The record that a fresh attach of `host` puts in the place of the one that it has `seen`; None: it is another's."""
    if seen is None:
        return Record(1, host, tag, State.HELD)
    epoch = seen.epoch + 1
    ours = seen.owner == host
    if by_force or seen.state is State.FREE or (ours and seen.state is not State.MOVING):
        return Record(epoch, host, tag, State.HELD)  # one host has one bridge a LUN: what held it before is dead
    if seen.tag != tag or (tag == NOBODY and not ours):
        return None
    if seen.state is State.HELD:
        return Record(epoch, host, tag, State.MOVING, seen.owner, seen.epoch)
    source = seen.owner if seen.state is State.RETURNED else seen.source
    return Record(epoch, host, tag, State.MOVING, source, seen.was)


class Phase(enum.StrEnum):
    """How this host stands to the LUN."""

    CLAIMING = "claiming"
    REFUSED = "refused"  # it is another's, or the target's string is: not attached
    UNRECORDED = "unrecorded"  # the same with fence=warn: attached all the same, without a record
    HOLDING = "holding"
    YIELDED = "yielded"
    LOST = "lost"
    LEAVING = "leaving"
    LEFT = "left"


class _View:
    """What one path shows of the target, which may be one with a memory of its own."""

    def __init__(self, now: float) -> None:
        self.string: bytes | None = None  # as last read
        self.holders: tuple[bytes, ...] | None = None  # of the reservation, as last answered
        self.vouched = NEVER  # when the last question was sent whose answer showed our record
        self.next = now  # when it is asked again
        self.wait = 0.0  # s that are to pass once our record stands there
        self.refused = False  # our release of the reservation


class Fence:
    """One LUN's, of one host.

    Attributes for reading: `phase`, `record` (ours), `above` (what overrides it), `found` (by a fresh attach), `why`, `events`.

    Requests may be sent before `closes_at`; those that change data, if `may_write` too. `note` is to be kept where the next
    process finds it, which then goes on in the same place.
    """

    def __init__(self, mode: Fencing, host: str, tag: str = NOBODY, note: str = "", by_force: bool = False) -> None:
        self.mode, self.host, self.tag = mode, host, tag
        self.enforcing = mode is Fencing.ENFORCE
        self.phase = Phase.CLAIMING
        self.record: Record | None = None
        self.above: Record | None = None
        self.found: Record | None = None  # at a fresh attach
        self.why = ""  # of REFUSED, UNRECORDED and LOST
        self.closes_at = NEVER
        self.events: list[tuple[str, str]] = []
        self._by_force = by_force
        self._views: dict[Hashable, _View] = {}
        self._macs: tuple[bytes, ...] = ()
        self._former: tuple[bytes, ...] = ()  # who had it reserved, for whom it is reserved again if it is given back
        self._opens_at = NEVER
        self._owed = 0.0  # s that were still to be waited for by a path that is gone
        self._resumed = False  # and what our record is by now is not known for sure
        self._fresh = True  # an attach that has not had it yet, and so may still make another claim
        self._firm = False  # nobody disputed our record for as long as it takes: of two with one epoch, it is right
        self._refusals = False  # it refuses commands although the record is ours
        self._begun = False  # all paths there are at the start are known
        self._decide_by = FOREVER  # when a target that keeps silent about reservations has none
        if note:
            self._resume(note)

    # -- paths -------------------------------------------------------------------------------------------------------

    def path_up(self, path: Hashable, now: float) -> None:
        """It carries requests, once it has shown our record."""
        self._views[path] = view = _View(now)
        view.wait = self._owed
        self._weigh()

    def path_gone(self, path: Hashable) -> None:
        """It does not any more."""
        view = self._views.pop(path, None)
        if view is not None:
            self._owed = max(self._owed, view.wait)
        self._weigh()

    # -- questions ---------------------------------------------------------------------------------------------------

    def timer(self) -> float:
        """When `due` has something to do."""
        at = min((view.next for view in self._views.values()), default=FOREVER)
        if self.closes_at > NEVER:
            at = min(at, self.closes_at)
        return min(at, self._decide_by)

    def due(self, now: float, macs: Sequence[bytes]) -> list[tuple[Hashable, Question]]:
        """What to ask now, and by which path. `macs` are all those that we send from."""
        if tuple(sorted(macs)) != self._macs:
            self._macs = tuple(sorted(macs))  # for ggaoed looks for them as if they were
        if now >= self.closes_at:
            self.closes_at = NEVER
        if now >= self._decide_by:
            self._decide(now)
        questions: list[tuple[Hashable, Question]] = []
        for path, view in self._views.items():
            if view.next > now:
                continue
            asked = self._questions(view)
            questions += [(path, question) for question in asked]
            view.next = FOREVER if not asked else now + (FENCE_POLL if self._idle(view) else FENCE_RETRY)
        return questions

    def _idle(self, view: _View) -> bool:
        """Whether there is nothing to do but to look from time to time."""
        return self.phase is Phase.YIELDED or (view.vouched > NEVER and not view.wait)

    def _questions(self, view: _View) -> list[Question]:
        if self.phase is Phase.CLAIMING:
            asked: list[Question] = [Config()] if view.string is None else []
            if self.mode in (Fencing.ENFORCE, Fencing.AUTO) and view.holders is None:
                asked.append(Reserve())
            return asked
        if self.phase is Phase.YIELDED:
            return [Config()]
        if self.phase not in (Phase.HOLDING, Phase.LEAVING):
            return []
        if view.string is None:
            return [Config()]
        assert self.record is not None
        leaving = self.phase is Phase.LEAVING
        if leaving and self.enforcing:  # before the record says that it is free: who reads that may reserve it at once
            if view.holders is None:
                return [Reserve()]
            if set(view.holders) & set(self._macs):
                rcmd = ReserveCommand.FORCE_SET if view.refused else ReserveCommand.SET
                return [Reserve(rcmd, self._former if self.record.state is State.RETURNED else ())]
        if self._overwrites(view.string):
            how = ConfigCommand.FORCE_SET if view.string else ConfigCommand.SET
            return [Config(how, self.record.build()), Config()]
        if self.enforcing and not leaving and view.holders != self._macs:
            return [Reserve(ReserveCommand.FORCE_SET, self._macs), Config()]
        return [Config()]

    def _overwrites(self, string: bytes) -> bool:
        """Whether ours is to be in the place of that string. Nobody else's ever is overwritten, only records."""
        assert self.record is not None
        return string != self.record.build() and (not string or Record.parse(string) is not None)

    # -- answers -----------------------------------------------------------------------------------------------------

    def read(self, path: Hashable, string: bytes, sent: float, now: float) -> None:
        """The target has this config string, says the answer to what was sent at `sent`."""
        view = self._views.get(path)
        if view is None:
            return
        if string != view.string:
            view.string, view.next = string, now
        seen = Record.parse(string)
        if self.phase is Phase.CLAIMING:
            self._decide(now)
        elif self.phase is Phase.YIELDED:
            self._await_return(seen, now)
        elif self.phase in (Phase.HOLDING, Phase.LEAVING):
            assert self.record is not None
            if not string or (seen is not None and string != self.record.build()):
                view.vouched = NEVER
                if self.phase is Phase.HOLDING and (seen is None or seen.owner != self.host):
                    view.holders = None
                self._judge(view, seen, now)
            else:
                self._confirmed(view, seen, sent, now)
        self._weigh()

    def reserved(self, path: Hashable, holders: tuple[bytes, ...] | None, now: float) -> None:
        """The answer to Reserve/Release: who holds the target; None for a refusal."""
        view = self._views.get(path)
        if view is None:
            return
        if self.phase is Phase.CLAIMING:
            if holders is None and self.mode is Fencing.ENFORCE:
                return self._cannot_reserve()
            self.enforcing |= holders is not None
            view.holders = holders or ()
            return self._decide(now)
        if (holders is None and not view.refused) or (holders is not None and holders != view.holders):
            view.next = now
        view.refused = holders is None
        if holders is not None:
            view.holders = holders
        return None

    def refused(self, now: float) -> bool:
        """A command was refused, for the target is reserved. Returns whether it is to wait until it is known what that means."""
        if self.phase is Phase.YIELDED:
            return True
        if self.phase is not Phase.HOLDING:
            return False
        if not self._refusals:
            self._refusals = True
            self._tell(
                "fence-refused", "the target refuses requests, for it is reserved for another host: looking whose it is"
            )
            self._look_again(now)
            self._weigh()
        return True

    def _look_again(self, now: float) -> None:
        """Nothing of what was read counts any more."""
        for view in self._views.values():
            view.string, view.holders, view.vouched, view.next = None, None, NEVER, now

    # -- judgement ---------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """All paths that there are at the start are known: find out whose the LUN is, and make it ours."""
        if self.phase is Phase.CLAIMING:
            self._begun = True
            self._decide_by = now + FENCE_RESERVE
            self._decide(now)

    def _decide(self, now: float) -> None:
        views = self._views.values()
        if not self._begun or not views or any(view.string is None for view in views):
            if now >= self._decide_by:
                self._decide_by = now + FENCE_RETRY
            return
        if self.mode is not Fencing.WARN and any(view.holders is None for view in views):
            if now < self._decide_by:
                return
            if self.mode is Fencing.ENFORCE:
                return self._cannot_reserve()
            self.enforcing = False
        self._decide_by = FOREVER
        found = [(view.string, Record.parse(view.string)) for view in views if view.string]
        for string, record in found:
            if record is None:
                text = string.decode("utf-8", "backslashreplace")
                return self._refuse(f"the target keeps a config string that is not ours, {text!r}")
        seen = max((record for _, record in found if record), key=lambda record: record.epoch, default=None)
        self.found = seen
        ours = claim(seen, self.host, self.tag, self._by_force)
        if ours is None:
            self.above = seen
            return self._refuse(f"held by {seen}")
        self.phase, self.record = Phase.HOLDING, ours
        self._former = next((view.holders for view in views if view.holders), ())
        for view in views:
            view.next = now
            self._judge(view, Record.parse(view.string or b""), now)
        return None

    def _refuse(self, why: str) -> None:
        """It must not be had. Only `warn` goes on, without a record."""
        self.record, self.why, self._decide_by = None, why, FOREVER
        goes_on = self.mode is Fencing.WARN or (self.mode is Fencing.AUTO and not self.enforcing)
        self.phase = Phase.UNRECORDED if goes_on else Phase.REFUSED
        if goes_on:
            self._tell("fence-conflict", f"{why}: attached all the same (fence={self.mode}), with nothing to guard it")
        self._weigh()

    def _cannot_reserve(self) -> None:
        self._refuse("the target knows no reservations")

    def _judge(self, view: _View, seen: Record | None, now: float) -> None:
        """A path shows `seen`, which is not our record (None: nothing): which of the two is right?"""
        ours = self.record
        assert ours is not None
        if seen is None:
            if self._firm and not view.wait:
                self._tell("fence-restored", "the target has lost its record of the owner: writing it again")
            view.wait = FENCE_GRACE
        elif seen.epoch > ours.epoch or (seen.epoch == ours.epoch and seen.owner != self.host and not self._firm):
            self._superseded(seen, now)
        elif seen.state is State.FREE:
            view.wait = max(view.wait, QUARANTINE)  # in which another, who has read the same, has shown himself
        elif seen.owner != self.host:
            view.wait = max(view.wait, HANDOVER)

    def _superseded(self, seen: Record, now: float) -> None:
        """Another record is right, not ours."""
        ours = self.record
        assert ours is not None
        if self.phase is Phase.LEAVING:
            self._leave()
        elif self._fresh:  # another came in between
            again = claim(seen, self.host, self.tag, self._by_force)
            if again is not None:
                return self._hold(again, now)
            self.above = seen
            self._refuse(f"held by {seen}")
        elif self._is_own(seen):
            self.record = seen
        elif self._is_return(seen):
            self._regain(seen, now)
        elif seen.state is State.MOVING and seen.was == ours.epoch and seen.owner != self.host:
            self.phase, self.above = Phase.YIELDED, seen
            self._tell("fence-yielded", f"taken over by {seen}: requests wait until it gives it back, or has written")
        else:
            self._lose(seen, f"taken over by {seen}")
        return None

    def _is_own(self, seen: Record) -> bool:
        """Whether our last process wrote it, and ended before it could note that."""
        return self._resumed and seen.owner == self.host and seen.state in (State.HELD, State.MOVING)

    def _is_return(self, seen: Record) -> bool:
        return (
            seen.state is State.RETURNED
            and seen.owner == self.host
            and self.record is not None
            and seen.was == self.record.epoch
        )

    def _await_return(self, seen: Record | None, now: float) -> None:
        """It has been yielded. What is empty, or older than what we know, is a target that lost its memory."""
        assert self.record is not None and self.above is not None
        if seen is None or seen.epoch <= self.above.epoch:
            return
        if self._is_return(seen):
            self._regain(seen, now)
        elif self._is_own(seen):
            self._hold(seen, now)
        elif seen.state is State.MOVING and seen.was == self.record.epoch:
            self.above = seen
        else:
            self._lose(seen, f"taken over by {seen}, which has written")

    def _regain(self, seen: Record, now: float) -> None:
        self._hold(Record(seen.epoch + 1, self.host, self.tag, State.HELD), now)
        self._tell("fence-regained", f"given back untouched: it is ours again (epoch {seen.epoch + 1})")

    def _hold(self, record: Record, now: float) -> None:
        self.phase, self.record, self.above = Phase.HOLDING, record, None
        self._look_again(now)

    def _lose(self, seen: Record | None, why: str) -> None:
        self.phase, self.above, self.why = Phase.LOST, seen or self.above, why
        self._tell("fence-lost", f"{why}: all requests fail from now on; detach it here")

    def _leave(self) -> None:
        self.phase = Phase.LEFT
        self._tell("fence-left", f"not ours any more: {self.record}")

    def _confirmed(self, view: _View, seen: Record | None, sent: float, now: float) -> None:
        """Our record stands there (or, with `seen` None, somebody's string, which is not for us to overwrite)."""
        if self.phase is Phase.LEAVING:
            assert self.record is not None
            if all(v.string is not None and not self._overwrites(v.string) for v in self._views.values()):
                self._leave()
            return
        if seen is None and view.vouched == NEVER and not view.wait:
            self._tell("fence-foreign", "somebody has replaced the record of the owner by another string")
        if view.wait:
            self._opens_at = max(self._opens_at, now + view.wait)
            view.wait = self._owed = 0.0
        if self.enforcing and view.holders != self._macs:
            return
        if self._refusals and not self.enforcing:
            self._lose(None, "the target is reserved for another host, although the record is ours")
            return
        if sent >= self._opens_at:
            view.vouched = max(view.vouched, sent)
        else:
            view.next = self._opens_at

    def _weigh(self) -> None:
        """When requests may be sent until, by what all paths show."""
        self.closes_at = NEVER
        if self.phase is Phase.UNRECORDED:
            self.closes_at = FOREVER
        elif self.phase is Phase.HOLDING and self._views:
            self.closes_at = min(view.vouched for view in self._views.values()) + FENCE_LEASE
        if self.closes_at > NEVER and self.record is not None and self.phase is Phase.HOLDING:
            self._refusals = self._resumed = False
            self._fresh = False
            if not self._firm:
                self._firm = True
                how = ", and reserved" if self.enforcing else ""
                self._tell("fence-held", f"recorded as ours: {self.record}{how}")

    def _tell(self, what: str, text: str) -> None:
        self.events.append((what, text))

    # -- what it is asked for ----------------------------------------------------------------------------------------

    @property
    def may_write(self) -> bool:
        """Whether requests that change data may be sent, while any may."""
        if self.phase is Phase.UNRECORDED:
            return True
        return self.closes_at > NEVER and self.record is not None and self.record.state is State.HELD

    @property
    def decided(self) -> bool:
        """Whether a fresh attach knows how it went."""
        return self.phase not in (Phase.CLAIMING, Phase.HOLDING) or not self._fresh

    def want_write(self, now: float) -> None:
        """Data are about to be changed: before that the record must say so."""
        ours = self.record
        if self.phase is Phase.HOLDING and ours is not None and ours.state is State.MOVING and not self._fresh:
            self.record = Record(ours.epoch + 1, self.host, self.tag, State.HELD)
            self._tell("fence-writing", f"about to change data, which {ours.source} is to know: {self.record}")
            for view in self._views.values():
                view.vouched, view.next = NEVER, now
            self._weigh()

    def release(self, now: float) -> None:
        """Nothing of ours is on its way, and nothing will be: give it back, or free. `phase` says when it is LEFT."""
        ours = self.record
        if self.phase is Phase.HOLDING and ours is not None:
            if ours.state is State.MOVING:
                self.record = Record(ours.epoch + 1, ours.source, self.tag, State.RETURNED, self.host, ours.was)
            else:
                self.record = Record(ours.epoch + 1, self.host, self.tag, State.FREE)
            self.phase = Phase.LEAVING
            for view in self._views.values():
                view.next = now
            self._weigh()

    def take_over(self, now: float) -> str:
        """Take it from the host that has it MOVING. Returns why not, or "" if it is under way."""
        if self.phase is Phase.YIELDED and self.record is not None and self.above is not None:
            self._firm = False
            self._hold(Record(self.above.epoch + 1, self.host, self.tag, State.HELD), now)
            self._tell("fence-takeover", f"taken over by an operator: {self.record}")
            return ""
        return "" if self.phase is Phase.HOLDING else f"it is {self.phase}{f' ({self.why})' if self.why else ''}"

    # -- for the next process ----------------------------------------------------------------------------------------

    @property
    def note(self) -> str:
        """What the next process must know; "" if nothing."""
        if self.record is None or self.phase not in (Phase.HOLDING, Phase.YIELDED, Phase.LOST):
            return ""
        return json.dumps(
            {
                "phase": self.phase,
                "record": self.record.build().decode(),
                "above": self.above.build().decode() if self.above else "",
                "why": self.why,
                "enforcing": self.enforcing,
                "firm": self._firm,
                "former": [mac.hex() for mac in self._former],
            }
        )

    def _resume(self, note: str) -> None:
        """Go on where the last process was. A note that cannot be read is none."""
        try:
            kept = json.loads(note)
            record, above = Record.parse(kept["record"].encode()), Record.parse(kept["above"].encode())
            phase, why, enforcing = Phase(kept["phase"]), str(kept["why"]), bool(kept["enforcing"])
            firm = bool(kept["firm"])
            former = tuple(bytes.fromhex(mac) for mac in kept["former"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if record is None or record.owner != self.host:
            return
        self.phase, self.record, self.above, self.why, self.enforcing = phase, record, above, why, enforcing
        self.tag, self._former, self._firm = record.tag, former, firm
        self._resumed, self._fresh, self._owed = True, False, 0.0 if firm else HANDOVER
