# SPDX-License-Identifier: BSD-3-Clause
"""Clients: each does its operations one after the other, several run at once, over sectors that they share.

Like nbdkit they use a request's memory for something else as soon as it is done, and look whether it stays that way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from aoe_nbd.core.request import Kind, Request

from .checker import Value, Violation, Write
from .ether import MARK, REPEAT, data_of
from .scenario import OPERATOR, Op

if TYPE_CHECKING:
    from .world import World

_REUSED = bytes((0xDB,)) * 512


class Token:
    """What the driver calls when a request is done. `op` tells the simulation whose frames they are."""

    __slots__ = ("_call", "op")

    def __init__(self, op: int, call: Callable[[Request], None]) -> None:
        self.op, self._call = op, call

    def __call__(self, request: Request) -> None:
        self._call(request)


Script = Generator[Request | float, None, None]  # what to ask, or how long to wait


class Client:
    """One of several that share the LUN."""

    def __init__(self, world: World, ops: list[Op]) -> None:
        self.world, self.ops = world, ops
        self.at = 0  # which op is next, or runs
        self.done = not ops
        self.waits_for = ""
        self._script: Script | None = None
        self._life = 0  # of the process; what an older one asked is forgotten
        self._write: Write | None = None
        if ops:
            world.clock.at(ops[0].think, self._begin, 0)

    def _begin(self, life: int) -> None:
        world = self.world
        if life != self._life:
            return
        if world.driver.initiator.identify is None or world.clock.now < world.driver.frozen_until:
            world.clock.at(world.clock.now + 0.01, self._begin, life)  # not attached (yet)
            return
        op = self.ops[self.at]
        if world.trace:
            world.say(f"client {op.client}: op {op.number} {op.kind} {op.lba}+{op.count}")
        self._script = getattr(self, f"_do_{op.kind}")(op)
        self._go_on()

    def _go_on(self) -> None:
        script = self._script
        assert script is not None
        try:
            request = next(script)
        except StopIteration:
            self._next()
            return
        life = self._life
        if isinstance(request, float):
            self.world.clock.at(self.world.clock.now + request, self._wake, life)
            return
        op = self.ops[self.at]
        self.waits_for = f"op {op.number} {request.kind.name} {op.lba}+{op.count}"
        request.token = Token(op.number, lambda request: self._completed(request, life))
        self.world.driver.submit(request)

    def _completed(self, request: Request, life: int) -> None:
        """The request is done; the client's thread wakes a little later."""
        world = self.world
        if life != self._life:
            return
        if request.data is not None:
            raise Violation("buffer", f"{self.waits_for} is done and its buffer is still referred to")
        op = self.ops[self.at]
        if request.error and op.number not in world.excused and not world.may_fail():
            raise Violation("error", f"{self.waits_for} failed without a cause: {request.reason}")
        if world.trace:
            world.say(f"client {op.client}: op {op.number} {request.kind.name} {request.reason or 'done'}")
        request.submitted = world.clock.now  # from here on: when it was done
        world.clock.at(world.clock.now + 3e-6, self._wake, life)

    def _wake(self, life: int) -> None:
        driver = self.world.driver
        if life != self._life:
            return
        if self.world.clock.now < driver.frozen_until:
            self.world.clock.at(driver.frozen_until, self._wake, life)
            return
        self._go_on()

    def _next(self) -> None:
        self._script = None
        self.waits_for = ""
        self.world.progress = self.world.clock.now
        self.at += 1
        if self.at == len(self.ops):
            self.done = True
            return
        self.world.clock.at(self.world.clock.now + self.ops[self.at].think, self._begin, self._life)

    def crash(self) -> None:
        """The bridge has died under it."""
        self._life += 1
        if self._write is not None:
            self.world.history.written(self._write, self.world.clock.now, True)
            self.world.orphans.add(self._write.number)
            self._write = None
        if self.done:
            return
        if self._script is not None:
            self._script.close()
            self._next()
        else:
            self.world.clock.at(self.world.clock.now + self.ops[self.at].think, self._begin, self._life)

    # -- what they do ------------------------------------------------------------------------------------------------

    def _reading(
        self, op: Op, lba: int, count: int, under: Request | None = None
    ) -> Generator[Request, None, list[Value]]:
        world = self.world
        buffer = bytearray(count * 512)
        begin = world.clock.now
        request = Request(Kind.READ, lba, count, memoryview(buffer), under=under)
        yield request
        values: list[Value] = []
        if not request.error:
            for i in range(count):
                data = buffer[i * 512 : i * 512 + 512]
                number, epoch, sector = MARK.unpack_from(data)
                if sector != lba + i or data != data[: MARK.size] * REPEAT:
                    raise Violation("data", f"op {op.number} read sector {lba + i} and got what is not a sector's data")
                values.append(Value(number, epoch))
                world.history.read(lba + i, begin, request.submitted, values[-1], f"op {op.number}")
        self._reuse(buffer)
        return values

    def _writing(self, op: Op, fua: bool = False, under: Request | None = None) -> Generator[Request, None, bool]:
        world = self.world
        buffer = bytearray(b"".join(data_of(op.number, 0, op.lba + i) for i in range(op.count)))
        write = self._write = world.history.write(op.number, op.lba, op.count, world.clock.now)
        request = Request(Kind.WRITE, op.lba, op.count, memoryview(buffer), fua, under=under)
        yield request
        self._write = None
        world.history.written(write, request.submitted, bool(request.error), fua)
        self._reuse(buffer)
        return not request.error

    def _reuse(self, buffer: bytearray) -> None:
        buffer[:] = _REUSED * (len(buffer) // 512)
        self.world.buffers.append(buffer)

    def _flushing(self) -> Generator[Request, None, None]:
        begin = self.world.clock.now
        request = Request(Kind.FLUSH)
        yield request
        if not request.error:
            self.world.history.flush(begin)

    def _do_read(self, op: Op) -> Script:
        yield from self._reading(op, op.lba, op.count)

    def _do_write(self, op: Op) -> Script:
        yield from self._writing(op)

    def _do_fua(self, op: Op) -> Script:
        native = self.world.scenario.native_fua and self.world.scenario.lba48
        if (yield from self._writing(op, native)) and not native:
            yield from self._flushing()

    def _do_flush(self, op: Op) -> Script:
        yield from self._flushing()

    def _do_trim(self, op: Op) -> Script:
        world = self.world
        write = self._write = world.history.write(op.number, op.lba, op.count, world.clock.now)
        request = Request(Kind.TRIM, op.lba, op.count)
        yield request
        self._write = None
        world.history.written(write, request.submitted, bool(request.error))

    def _do_quiesce(self, op: Op) -> Script:
        """Until `resume`, nothing may change on the target once it is quiet."""
        world = self.world
        clock, initiator = world.clock, world.driver.initiator
        self.waits_for = f"op {op.number} for quiet"
        give_up = clock.now + op.lba / 1e3 if op.lba else float("inf")
        initiator.quiesce()
        try:
            while not initiator.quiet(clock.now) and clock.now < give_up:
                yield 1e-3
            if initiator.quiet(clock.now):
                world.counters["quiet"] += 1
                world.quiet = True
                yield op.count / 1e3
        finally:  # a process that dies is not quiesced any more either
            world.quiet = False
        world.driver.resume()

    def _do_modify(self, op: Op) -> Script:
        """As the device writes bytes that are not whole sectors: lock, read first and last sector, write."""
        world = self.world
        lock = Request(Kind.LOCK, op.lba, op.count)
        yield lock
        if any(other.client == OPERATOR for other in world.scenario.ops):
            yield 1e-3  # its thread is slow to go on, and holds the lock meanwhile
        for sector in () if lock.error else dict.fromkeys((op.lba, op.lba + op.count - 1)):
            epoch = world.target.disk.epoch
            values = yield from self._reading(op, sector, 1, lock)
            if not values:
                break
            world.expected[op.number, sector] = (epoch, values[0])
        else:
            if not lock.error:
                yield from self._writing(op, under=lock)
        world.driver.release(lock)
