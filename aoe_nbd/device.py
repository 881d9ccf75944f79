# SPDX-License-Identifier: BSD-3-Clause
"""A Device: one LUN as a disk of bytes. Found, identified, pinned, then read, written, flushed and trimmed.

What the disk can do follows from its IDENTIFY and config replies; nothing is offered that would do nothing.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from .core.constants import FENCE_GRACE
from .core.exchange import Answer, Exchange
from .core.fence import HANDOVER, Fence, Phase, Record, State
from .core.initiator import Event, Initiator
from .core.path import PathState
from .core.policy import HOLD, Fencing, OnDead
from .core.request import Kind, Request
from .engine import Engine
from .wire.address import Address, format_mac
from .wire.codes import ALL_SHELVES, ALL_SLOTS, BROADCAST_MAC, SECTOR
from .wire.frames import ATA_SIZE, TRIM_ENTRIES, TRIM_RANGE, Config, FrameError, mtu_sectors
from .wire.identify import Identify

log = logging.getLogger("aoe_nbd")

GRACE = 0.05  # s after a first answer in which the LUN's other paths may answer too
IDENTIFY_GRACE = 0.5  # s after a first path is up in which the others may show who they are
MAX_REQUEST = 32 << 20
_RELEASE = 2.0  # s for giving an ownership back that is of no use
TRIM_MOST = TRIM_ENTRIES * TRIM_RANGE  # sectors of one DATA SET MANAGEMENT block
_SERIOUS = {"dead", "path-out", "path-down", "path-stranger", "refused"}
_SERIOUS |= {"fence-conflict", "fence-foreign", "fence-lost", "fence-refused", "fence-restored", "fence-yielded"}


class DeviceError(OSError):
    """A request or an attach that failed: an errno, and one sentence."""


def durability(identify: Identify) -> str:
    """What an acknowledged write and an acknowledged flush mean on this target, as far as it can be known."""
    model = identify.model.lower()
    if identify.sync_writes:
        return "every acknowledged write is on stable storage"
    if identify.true_flush:
        return "an acknowledged flush is on stable storage, a write before it may not be"
    if "vblade" in model and "coraid" in model:
        return (
            "flushes are acknowledged but not carried out: writes are durable only if vblade was started with -s or -d"
        )
    if model == "ggaoed":
        return "flushes are acknowledged but not carried out: durability is up to ggaoed's own direct-io setting"
    if not identify.flush:
        return "the target offers no flush: durability is up to its own settings"
    return "the target acknowledges flushes; whether they reach stable storage is up to it"


def find(
    engine: Engine, address: Address | None, timeout: float, macs: Sequence[bytes] = (), grace: float | None = GRACE
) -> list[Answer]:
    """Ask for LUNs by Query Config: one (`address`) or all, at `macs` or by broadcast. One answer a LUN, link and MAC."""
    now = time.monotonic()
    shelf, slot = address or (ALL_SHELVES, ALL_SLOTS)
    exchanges = [
        Exchange(
            engine.addresses(),
            Config(),
            seed=engine.seed(),
            now=now,
            timeout=timeout,
            shelf=shelf,
            slot=slot,
            remote=remote,
        )
        for remote in macs or [BROADCAST_MAC]
    ]
    found: dict[tuple[Address, str, bytes], Answer] = {}
    for exchange in exchanges:
        for answer in engine.ask(exchange, grace).answers:
            found.setdefault((answer.address, answer.link, answer.mac), answer)
    return list(found.values())


def config_of(answer: Answer) -> Config | None:
    """The configuration in a reply to Query Config; None for a refusal or for nonsense."""
    if answer.header.failed:
        return None
    try:
        return Config.parse(answer.frame)
    except FrameError:
        return None


class Device:
    """One LUN. `open` it first; then every method may be called from any thread, and blocks until done.

    Raises DeviceError (an OSError with errno) wherever something fails.
    """

    def __init__(
        self,
        engine: Engine,
        address: Address,
        *,
        macs: Sequence[bytes] = (),
        cap: int = 255,
        on_dead: OnDead = HOLD,
        read_only: bool = False,
        fence: Fence | None = None,
    ) -> None:
        self.engine, self.address, self.macs, self._read_only = engine, address, tuple(macs), read_only
        self.initiator = Initiator(
            address,
            seed=engine.seed(),
            now=time.monotonic(),
            cap=cap,
            on_dead=on_dead,
            learn_paths=not macs,
            fence=fence,
        )

    # -- attach ------------------------------------------------------------------------------------------------------

    def open(self, timeout: float) -> None:
        """Find the LUN's paths, have each show its disk, and pin that. Raises DeviceError within about `timeout` s."""
        engine, address = self.engine, self.address
        answers = find(engine, address, timeout, self.macs)
        configs = [(answer, config) for answer in answers if (config := config_of(answer)) is not None]
        if not configs:
            raise DeviceError(errno.ENODEV, self._nobody(timeout))
        silent = [mac for mac in self.macs if mac not in {answer.mac for answer, _ in configs}]
        if silent:
            raise DeviceError(
                errno.ENODEV,
                f"mac={format_mac(silent[0])} does not serve {address}: `aoe-nbd discover` shows the MACs that do",
            )
        engine.add(self.initiator)
        try:
            self._identify(configs, timeout)
            if self.initiator.fence is not None:
                self._claim(self.initiator.fence, configs[0][1], timeout)
        except BaseException:
            engine.remove(self.initiator)
            raise
        log.info("%s: %s", address, self.describe())
        log.info("%s: %s", address, durability(self.identify))

    def _nobody(self, timeout: float) -> str:
        where = ", ".join(self.engine.links)
        which = f" at mac={', '.join(map(format_mac, self.macs))}" if self.macs else ""
        others = [] if not self.macs else find(self.engine, self.address, 1.0)
        if others:
            known = ", ".join(sorted({format_mac(answer.mac) for answer in others}))
            return f"mac={format_mac(self.macs[0])} does not serve {self.address}: {known} does"
        return (
            f"no answer from {self.address}{which} within {timeout:g} s on {where}: `aoe-nbd discover` shows the exports "
            f"that answer there; check shelf and slot, the interface, the cable or VLAN, and that the target runs"
        )

    def _identify(self, configs: list[tuple[Answer, Config]], timeout: float) -> None:
        engine, initiator = self.engine, self.initiator
        now = time.monotonic()
        for answer, config in configs:
            link = engine.links[answer.link]
            if not mtu_sectors(link.mtu):
                raise DeviceError(
                    errno.EINVAL,
                    f"interface {link.name} has an MTU of {link.mtu}, too small for one sector: AoE needs {ATA_SIZE + SECTOR}",
                )
            initiator.add_path(link.name, link.mac, answer.mac, link.mtu, config, now)
        engine.kick()
        engine.wait(lambda: initiator.up, now + timeout)
        refusals = self._refusals()
        if not initiator.up:
            raise DeviceError(errno.ENODEV, refusals or f"{self.address} answers Query Config but not IDENTIFY")
        engine.wait(
            lambda: all(path.state is not PathState.NEW for path in initiator.paths), time.monotonic() + IDENTIFY_GRACE
        )
        strangers = [path for path in initiator.paths if path.state is PathState.STRANGER]
        if strangers:
            ours = ", ".join(str(path) for path in initiator.paths if path.up)
            raise DeviceError(
                errno.ENOTUNIQ,
                f"two different disks answer for {self.address}: one by {ours}, another by "
                f"{', '.join(map(str, strangers))}; give one of them another shelf or slot, or say which by mac=",
            )

    def _claim(self, fence: Fence, config: Config, timeout: float) -> None:
        """Become the owner, and return once nothing of a former one can land. Raises DeviceError if it is another host's."""
        if not self.can_write:
            self._share(fence, Record.parse(config.string))
            return
        self._change_fence(fence.begin)
        patience = timeout + FENCE_GRACE + HANDOVER
        self.engine.wait(lambda: fence.decided, time.monotonic() + patience)
        if fence.phase is Phase.REFUSED:
            raise DeviceError(errno.EBUSY, self._taken(fence))
        if not fence.decided:
            self._release(fence, time.monotonic() + _RELEASE)
            raise DeviceError(
                errno.ETIMEDOUT,
                f"{self.address} could not be made this host's own (fence={fence.mode}) in {patience:g} s",
            )

    def _share(self, fence: Fence, seen: Record | None) -> None:
        """Who only reads owns nothing. But while another host writes, what is read here may be out of date at once."""
        self.initiator.fence = None
        if seen is None or seen.state is State.FREE or fence.host in (seen.owner, seen.source):
            return
        if fence.mode is not Fencing.WARN:
            fence.above = seen
            raise DeviceError(errno.EBUSY, self._taken(fence))
        log.warning("%s is held by %s, and attached read-only here all the same (fence=warn)", self.address, seen)

    def _taken(self, fence: Fence) -> str:
        """The sentence for a LUN that must not be had."""
        if fence.above is not None:
            return (
                f"{self.address} is held by {fence.above}: detach it there first, or, if that host is dead, "
                f"`aoe-nbd takeover {self.address}`"
            )
        remedy = (
            "give fence=warn" if "reservations" in fence.why else f"`aoe-nbd config fset {self.address} ''` clears it"
        )
        return f"{self.address} cannot be guarded by fence={fence.mode}: {fence.why}: {remedy}"

    def _refusals(self) -> str:
        with self.engine.locked():
            return "; ".join(event.text for event in self.initiator.history if event.what in ("refused", "empty"))

    def close(self) -> None:
        """Let go of the LUN."""
        self.engine.remove(self.initiator)

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def identify(self) -> Identify:
        """The pinned IDENTIFY, with today's capacity."""
        identify = self.initiator.identify
        if identify is None:
            raise DeviceError(errno.ENODEV, f"{self.address} is not open")
        return identify

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self.identify.sectors * SECTOR

    @property
    def block_size(self) -> tuple[int, int, int]:
        """Least, best and largest size of a request in bytes."""
        identify = self.identify
        least = max(SECTOR, identify.logical_size)
        return least, max(4096, least, identify.physical_size), MAX_REQUEST

    @property
    def can_write(self) -> bool:
        return not self._read_only and not self.identify.read_only

    @property
    def can_flush(self) -> bool:
        return self.identify.flush or self.identify.flush_ext

    @property
    def native_fua(self) -> bool:
        return self.identify.fua and self.identify.lba48

    @property
    def can_trim(self) -> bool:
        return self.identify.trim

    @property
    def can_zero(self) -> bool:
        """Whether trimmed sectors surely read as zeros. ATA's RZAT bit lies on some disks, so only our target's counts."""
        return self.identify.trim and self.identify.trim_zeroes and self.identify.vendor_known

    def describe(self) -> str:
        """One line for a log."""
        i = self.identify
        paths = ", ".join(str(path) for path in self.initiator.paths if path.up)
        return f"{i.model} {i.firmware}, serial {i.serial}, {i.sectors} sectors, by {paths}"

    def figures(self) -> list[str]:
        """What has happened so far: counters by reason, and round trips by path and class of command."""
        lines = [" ".join(f"{name}={count}" for name, count in sorted(self.initiator.counters.items()))]
        for path in self.initiator.paths:
            for flight in path.flights.values():
                if any(flight.histogram):
                    shares = ", ".join(
                        f"{share:.1%} in {flight.percentile(share) * 1e3:g} ms" for share in (0.5, 0.99, 0.999)
                    )
                    lines.append(f"{path}, {flight.kind.name}: {sum(flight.histogram)} answers, {shares}")
        return lines

    # -- I/O ---------------------------------------------------------------------------------------------------------

    def _do(self, request: Request) -> Request:
        self.engine.execute(self.initiator, request)
        if request.error:
            raise DeviceError(request.error, f"{self.address}: {request.reason}")
        return request

    def _inside(self, offset: int, length: int, past: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DeviceError(
                past,
                f"{self.address}: bytes {offset} to {offset + length} reach past the end of the disk at {self.size}",
            )

    def read(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` from byte `offset`. EINVAL past the end; the target is not asked then."""
        length = len(buffer)
        self._inside(offset, length, errno.EINVAL)
        if not length:
            return
        if offset % SECTOR or length % SECTOR:
            first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
            whole = bytearray((last - first) * SECTOR)
            self._do(Request(Kind.READ, first, last - first, memoryview(whole)))
            skip = offset - first * SECTOR
            buffer[:] = whole[skip : skip + length]
            return
        self._do(Request(Kind.READ, offset // SECTOR, length // SECTOR, buffer))

    def write(self, buffer: memoryview, offset: int, fua: bool = False) -> None:
        """Write `buffer` at byte `offset`. ENOSPC past the end, EPERM on a read-only disk; the target is not asked then."""
        length = len(buffer)
        self._writable()
        self._inside(offset, length, errno.ENOSPC)
        if not length:
            return
        native = fua and self.native_fua
        if offset % SECTOR or length % SECTOR:
            self._write_unaligned(buffer, offset, native)
        else:
            self._do(Request(Kind.WRITE, offset // SECTOR, length // SECTOR, buffer, native))
        if fua and not native:
            self.flush()

    def _write_unaligned(self, buffer: memoryview, offset: int, fua: bool) -> None:
        """Read, modify, write, with the range locked, so that a neighbour's bytes in the same sector are never torn."""
        length = len(buffer)
        first, last = offset // SECTOR, -(-(offset + length) // SECTOR)
        whole = bytearray((last - first) * SECTOR)
        view = memoryview(whole)
        with self._locked(first, last - first) as lock:
            if offset % SECTOR:
                self._do(Request(Kind.READ, first, 1, view[:SECTOR], under=lock))
            if (offset + length) % SECTOR and (last - first > 1 or not offset % SECTOR):
                self._do(Request(Kind.READ, last - 1, 1, view[-SECTOR:], under=lock))
            skip = offset - first * SECTOR
            view[skip : skip + length] = buffer
            self._do(Request(Kind.WRITE, first, last - first, view, fua, under=lock))

    @contextmanager
    def _locked(self, first: int, count: int) -> Iterator[Request]:
        lock = Request(Kind.LOCK, first, count)
        try:
            yield self._do(lock)
        finally:
            self.engine.release(self.initiator, lock)

    def flush(self) -> None:
        """Have the target flush its cache; what that means is `durability`'s to say."""
        if self.can_flush:
            self._do(Request(Kind.FLUSH))

    def trim(self, offset: int, length: int) -> None:
        """Tell the target that these bytes are not needed. Sectors only partly inside stay as they are."""
        self._writable()
        self._inside(offset, length, errno.ENOSPC)
        first, last = -(-offset // SECTOR), (offset + length) // SECTOR
        while first < last:
            count = min(last - first, TRIM_MOST)
            self._do(Request(Kind.TRIM, first, count))
            first += count

    def zero(self, offset: int, length: int) -> None:
        """Zero these bytes by trimming them (where `can_zero`), the sectors only partly inside by writing."""
        self._writable()
        self._inside(offset, length, errno.ENOSPC)
        if not self.can_zero:
            raise DeviceError(errno.EOPNOTSUPP, f"{self.address} has no surely zeroing trim")
        end = offset + length
        head = min(end, -(-offset // SECTOR) * SECTOR)
        tail = max(head, end // SECTOR * SECTOR)
        for start, stop in ((offset, head), (tail, end)):
            if start < stop:
                self.write(memoryview(bytes(stop - start)), start)
        self.trim(head, tail - head)

    def check_power(self) -> None:
        """CHECK POWER MODE: the cheapest question whose answer comes from the disk."""
        self._do(Request(Kind.CHECK_POWER))

    # -- quiesce -----------------------------------------------------------------------------------------------------

    def quiesce(self, timeout: float) -> None:
        """Park new requests, and return once no copy of any write of this host can still land. They wait until `resume`.

        Raises DeviceError after `timeout` s without quiet; then all is as it was before. May be called again at any time.
        """
        initiator = self.initiator
        before = initiator.quiesced
        self.engine.change(initiator, lambda now: initiator.quiesce())
        self.engine.wait(
            lambda: not initiator.quiesced or initiator.quiet(time.monotonic()), time.monotonic() + timeout
        )
        obstacle = ""

        def judge(now: float) -> None:  # in one step, so that nobody who was told "quiet" is resumed by us
            nonlocal obstacle
            if not initiator.quiet(now):
                obstacle = self._unquiet(now)
                if not before:
                    initiator.resume(now)

        self.engine.change(initiator, judge)
        if obstacle:
            then = "still quiesced, as before" if before else "resumed"
            raise DeviceError(errno.ETIMEDOUT, f"{self.address} is not quiet after {timeout:.3g} s: {obstacle}; {then}")

    def _unquiet(self, now: float) -> str:
        initiator = self.initiator
        if not initiator.quiesced:
            return "it was resumed meanwhile"
        fence = initiator.fence
        if fence is not None and fence.phase in (Phase.YIELDED, Phase.LOST):
            return f"it is {fence.phase}, and its requests wait for {fence.above}"
        if initiator.dead or not initiator.up:
            return (
                f"the target does not answer, and writes to it may be on their way ({initiator.waiting} requests wait)"
            )
        if now < initiator.writes_from:
            return "an older process's writes may still land"
        if initiator.ghosts:
            return f"{initiator.ghosts} copies of writes may still land"
        return f"{initiator.waiting} requests wait or are under way"

    # -- ownership ---------------------------------------------------------------------------------------------------

    def _change_fence(self, change: Callable[[float], object]) -> None:
        initiator = self.initiator
        self.engine.change(initiator, lambda now: initiator.change_fence(lambda _: change(now), now))

    def leave(self, timeout: float) -> None:
        """Let no more requests out, return once nothing can land, and give up the ownership, if there is one.

        What another host has taken over is left at once. Raises DeviceError after `timeout` s.
        """
        deadline = time.monotonic() + timeout
        fence = self.initiator.fence
        if fence is not None and fence.phase in (Phase.YIELDED, Phase.LOST, Phase.LEFT):
            return
        self.quiesce(timeout)
        if fence is not None and not self._release(fence, deadline):
            raise DeviceError(
                errno.ETIMEDOUT, f"the target does not answer: {self.address} stays recorded as this host's"
            )

    def _release(self, fence: Fence, deadline: float) -> bool:
        self._change_fence(fence.release)
        self.engine.wait(lambda: fence.phase is not Phase.LEAVING, deadline)
        return fence.phase is not Phase.LEAVING

    def take_over(self, timeout: float) -> None:
        """Take it back from a host that has it, and has not written yet. Returns once requests go on. Raises DeviceError."""
        fence, problem = self.initiator.fence, ""
        if fence is None:
            raise DeviceError(
                errno.EINVAL, f"{self.address} is attached with fence=off: there is no owner to take it from"
            )

        def take(now: float) -> None:
            nonlocal problem
            problem = fence.take_over(now)

        self._change_fence(take)
        if problem:
            raise DeviceError(errno.EBUSY, f"{self.address} cannot be taken over: {problem}; detach it here first")
        self.engine.wait(
            lambda: fence.closes_at > time.monotonic() or fence.phase is not Phase.HOLDING, time.monotonic() + timeout
        )
        if fence.phase is not Phase.HOLDING:
            raise DeviceError(errno.EBUSY, f"{self.address} was taken by another host meanwhile: {fence.above}")
        if fence.closes_at <= time.monotonic():
            raise DeviceError(
                errno.ETIMEDOUT, f"{self.address} has not been taken over yet: the target does not answer"
            )

    def resume(self) -> bool:
        """Carry out what was parked. False if nothing was quiesced."""
        initiator = self.initiator
        before = initiator.quiesced
        self.engine.change(initiator, initiator.resume)
        return before

    def _writable(self) -> None:
        if not self.can_write:
            raise DeviceError(errno.EPERM, f"{self.address} is read-only")

    def log_event(self, event: Event) -> None:
        """Say what has happened to the LUN."""
        serious = event.what in _SERIOUS
        log.log(logging.WARNING if serious else logging.INFO, "%s", event.text)
