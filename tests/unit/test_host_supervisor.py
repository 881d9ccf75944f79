# SPDX-License-Identifier: BSD-3-Clause
"""What a supervisor does about each thing that can happen, against a kernel, bridges and names that are made up."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aoe_nbd.host import supervisor as module
from aoe_nbd.host.control import ControlError
from aoe_nbd.host.handshake import READ_ONLY, Connection, HandshakeError
from aoe_nbd.host.nbd import FOREVER, NbdError
from aoe_nbd.host.state import Folder, State
from aoe_nbd.host.supervisor import Supervisor, SupervisorError, Wish
from aoe_nbd.wire.address import Address

SIZE = 1 << 20


class Signal:
    """Something that a poll can wait for."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def fileno(self) -> int:
        return self._read

    def ring(self) -> None:
        os.write(self._write, b"!")

    def close(self) -> None:
        for fd in (self._read, self._write):
            os.close(fd)


class World:
    """The machine as a supervisor sees it. `did` is what it did to it, in order."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.did: list[str] = []
        self.devices: dict[int, str] = {}  # index -> backend
        self.users: list[str] = []
        self.flushes = self.leaves = True
        self.claimed: str | None = None
        self.watch = Watch()
        self.children: list[FakeChild] = []
        self.born: Callable[[FakeChild], None] = lambda child: child.serve()
        self.status: dict[str, Any] = {"state": "up", "on_dead": "hold", "size_bytes": SIZE}
        self.identity = {"model": "disk", "serial": "1", "wwn": ""}
        self.flags = 5
        self.takes = True  # whether the kernel takes a socket, or drops it
        self.dropped = 0
        self.mute = 0  # questions that the bridge leaves unanswered
        self.deaf = 0  # connections to its socket that are refused, for it does not listen yet
        self.refuses: int | None = None

    # the kernel

    def connect(self, fd: int, size: int, *, flags: int, patience: int, backend: str) -> int:
        os.fstat(fd)
        self.devices[4] = backend
        self.did.append(f"connect {size} patience={patience}")
        return 4

    def reconfigure(self, index: int, backend: str, **what: Any) -> None:
        if self.refuses is not None:
            raise NbdError(self.refuses, "the kernel refused")
        assert self.devices[index] == backend
        if what.pop("fd", None) is not None:
            what["socket"] = True
        self.did.append(" ".join(["reconfigure", *(f"{key}={value}" for key, value in sorted(what.items()))]))

    def disconnect(self, index: int) -> None:
        self.did.append("disconnect")
        self.devices.pop(index, None)

    def lose_link(self, index: int = 4) -> None:
        self.watch.dead.add(index)
        self.watch.ring()

    # the bridge

    def handshake(self, path: Path) -> Connection:
        if not self.children[-1].serving:
            raise HandshakeError(errno.ECONNREFUSED, "nobody there")
        if self.deaf:
            self.deaf -= 1
            raise HandshakeError(errno.ECONNREFUSED, "nobody listens")
        return Connection(os.open(os.devnull, os.O_RDONLY), self.status["size_bytes"], self.flags)

    def held(self, inode: int) -> bool:
        if not self.takes:
            self.dropped += 1
            self.takes = self.dropped >= 3
            return False
        return True

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        if verb == "drain":
            self.did.append("drain")
            self.lose_link()
            return {}
        if verb == "leave":
            self.did.append("leave")
            if not self.leaves:
                raise ControlError(errno.ETIMEDOUT, "e1.0 is not quiet after 20 s")
            return {}
        if not self.children[-1].serving:
            raise ControlError(errno.ENOENT, "no bridge runs here")
        if self.mute:
            self.mute -= 1
            raise ControlError(errno.ETIMEDOUT, "no answer")
        return {"clients": 1, "luns": [{"identity": self.identity, **self.status}]}


class Watch(Signal):
    def __init__(self) -> None:
        super().__init__()
        self.dead: set[int] = set()

    def read(self) -> set[int]:
        os.read(self.fileno(), 64)
        dead, self.dead = self.dead, set()
        return dead


class FakeChild(Signal):
    pid = 0  # no process, so that nobody ends one by mistake

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.ended, self.serving, self.last_word = world, False, False, ""
        world.children.append(self)
        world.born(self)

    def serve(self) -> None:
        self.serving = True
        self.world.folder.nbd.touch()

    def die(self, word: str) -> None:
        self.ended, self.serving, self.last_word = True, False, word
        self.ring()

    def end(self, patience: float = 0) -> None:
        if not self.ended:
            self.world.did.append("end bridge")
            self.die("ended")

    def kill(self) -> None:
        if not self.ended:
            self.world.did.append("kill bridge")
            self.die("killed")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path / "run"))
    folder = Folder(Address(1, 0))
    folder.path.mkdir(parents=True)
    world = World(folder)
    did = world.did

    class Uevents(Signal):
        def __init__(self, index: int) -> None:
            super().__init__()

        def changed(self) -> bool:
            return True

    monkeypatch.setattr(module.handshake, "connect", world.handshake)
    monkeypatch.setattr(module.handshake, "held", world.held)
    monkeypatch.setattr(module.control.Client, "ask", world.ask)
    monkeypatch.setattr(module.command, "supervised", lambda *args: (["bridge"], {}))
    monkeypatch.setattr(module.claim, "holder", lambda address: world.claimed)
    monkeypatch.setattr(module.names, "check", lambda address: None)
    monkeypatch.setattr(module.service, "going_down", lambda: False)
    monkeypatch.setattr(module.names, "make", lambda address, index: did.append(f"names {index}"))
    monkeypatch.setattr(module.names, "remove", lambda address, index: did.append("no names"))
    monkeypatch.setattr(module.names, "Uevents", Uevents)
    monkeypatch.setattr(module.sysfsview, "write", lambda status, root: None)
    monkeypatch.setattr(module.queue, "tune", lambda index: did.append("tune") or {"scheduler": "x"})
    monkeypatch.setattr(module.queue, "restore", lambda index, before: did.append(f"restore {before}"))
    monkeypatch.setattr(
        module.disks, "holding", lambda backend: [index for index, held in world.devices.items() if held == backend]
    )
    monkeypatch.setattr(module.disks, "size_of", lambda index: SIZE)
    monkeypatch.setattr(module.disks, "read_only", lambda index: False)
    monkeypatch.setattr(module.disks, "flush", lambda index, in_vain: did.append("flush") or world.flushes)
    monkeypatch.setattr(module.holders, "users", lambda disk: world.users)
    monkeypatch.setattr(module.service, "notify", lambda text: did.append(text.splitlines()[0]))
    for name, value in {"POLL": 0.015, "SETTLE": 0.0, "DRAIN": 5.0, "RETRY": 0.01, "DELAY_FIRST": 0.01}.items():
        monkeypatch.setattr(module, name, value)
    yield world
    world.watch.close()


def make(world: World, *options: tuple[str, str]) -> Supervisor:
    return Supervisor(world.folder, list(options), world, world.watch, lambda command, env: FakeChild(world))  # type: ignore[arg-type, return-value]


def until(supervisor: Supervisor, done: Callable[[], bool]) -> None:
    """Let it do one thing after another."""
    for _ in range(1000):
        if done():
            return
        supervisor._step()
    raise AssertionError(f"it never came to that: {supervisor.describe()}")


@pytest.fixture
def attached(world: World) -> Supervisor:
    """One that has attached the LUN as /dev/nbd4."""
    supervisor = make(world)
    until(supervisor, lambda: supervisor.linked)
    world.did.clear()
    return supervisor


def test_attach(world: World) -> None:
    supervisor = make(world)
    until(supervisor, lambda: supervisor.linked)
    assert world.did == [f"connect {SIZE} patience={FOREVER}", "tune", "names 4", "READY=1"]
    state = world.folder.state()
    assert state is not None and (state.index, state.size, state.starts) == (4, SIZE, 1)
    assert state.identity == ["disk", "1", ""] and state.queue == {"scheduler": "x"}
    assert supervisor.describe()["state"] == "up" and supervisor.describe()["device"] == "/dev/nbd4"


def test_a_bridge_whose_socket_is_there_before_it_listens(world: World) -> None:
    world.deaf = 3
    supervisor = make(world)
    until(supervisor, lambda: supervisor.linked)
    assert world.deaf == 0 and len(world.children) == 1 and "kill bridge" not in world.did


def test_a_bridge_that_never_listens_is_dismissed(world: World) -> None:
    world.deaf = 1 << 30
    supervisor = make(world)
    supervisor._ready_within = 0.2
    with pytest.raises(SupervisorError, match="nobody listens"):
        supervisor.run()
    assert len(world.children) == 1 and "kill bridge" in world.did and world.devices == {}


def test_patience_goes_by_the_policy(world: World) -> None:
    supervisor = make(world, ("on-dead", "fail-after=10"))
    until(supervisor, lambda: supervisor.linked)
    assert world.did[0] == f"connect {SIZE} patience={10 + module.OUTAGE}"


def test_no_target(world: World) -> None:
    world.born = lambda child: child.die("no answer from e1.0")
    with pytest.raises(SupervisorError, match=r"no answer from e1\.0"):
        make(world).run()
    assert world.devices == {} and world.folder.state() is None
    assert "connect" not in " ".join(world.did)


def test_served_by_another_bridge(world: World) -> None:
    world.claimed = "nbdkit (77)"
    with pytest.raises(SupervisorError, match=r"served read-write by another bridge on this host, nbdkit \(77\)"):
        make(world).run()
    assert world.children == []
    supervisor = make(world, ("readonly", "true"))
    until(supervisor, lambda: supervisor.linked)


@pytest.mark.parametrize("way", ["name", "sysfs"])
def test_attached_by_the_kernels_aoe(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str) -> None:
    def taken(address: Address) -> None:
        raise module.names.NameTaken(errno.EEXIST, "/dev/etherd/e1.0 is a device of the kernel's aoe module")

    if way == "name":
        monkeypatch.setattr(module.names, "check", taken)
    else:
        (tmp_path / "block" / "etherd!e1.0").mkdir(parents=True)
        monkeypatch.setattr(module.disks, "SYS", tmp_path)
    with pytest.raises(SupervisorError, match="kernel's aoe module"):
        make(world).run()
    assert world.children == []


def test_the_bridge_dies(world: World, attached: Supervisor) -> None:
    world.children[-1].die("killed by SIGKILL")
    until(attached, lambda: not attached.linked)
    assert world.did == [f"reconfigure timeout={module.queue.TIMEOUT}"], "what was under way comes back to the queue"
    until(attached, lambda: attached.linked)
    assert world.did[1:] == [
        f"reconfigure patience={FOREVER} size={SIZE} socket=True timeout=0",
        *("tune", "names 4", "READY=1"),
    ]
    assert len(world.children) == 2 and attached.describe()["starts"] == 2


def test_the_kernel_has_not_found_the_old_socket_dead_yet(world: World, attached: Supervisor) -> None:
    world.takes = False
    world.children[-1].die("killed")
    until(attached, lambda: len(world.children) == 2 and attached.linked)
    assert world.dropped == 3
    assert sum("socket=True" in each for each in world.did) == 4


def test_one_that_dies_at_once_is_not_started_in_a_hurry(
    world: World, attached: Supervisor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module.log.propagate = True
    delays: list[float] = []
    real = attached._until

    def until_watched(done: Callable[[], bool], seconds: float, every: float | None = None) -> bool:
        if every is None and seconds != module.POLL:
            delays.append(seconds)
            return True
        return real(done, seconds, every)

    monkeypatch.setattr(attached, "_until", until_watched)
    world.born = lambda child: child.die("no memory")
    world.children[-1].die("no memory")
    until(attached, lambda: len(world.children) == 20)
    assert delays[:5] == [0.01, 0.02, 0.04, 0.08, 0.16] and max(delays) <= module.DELAY_MOST
    assert len(delays) == 18, "only the first is started at once"
    assert sum("no memory" in record.message for record in caplog.records) == 1, "said once"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda world: world.identity.update(serial="2"), "another disk answers there"),
        (lambda world: world.status.update(size_bytes=SIZE // 2), "its capacity has shrunk"),
        (lambda world: setattr(world, "flags", 5 | READ_ONLY), "it has become read-only"),
    ],
)
def test_what_is_not_the_same_disk_gets_nothing(
    world: World, attached: Supervisor, change: Callable[[World], None], sentence: str
) -> None:
    change(world)
    world.children[-1].die("killed")
    until(attached, lambda: len(world.children) == 4)
    assert not any("socket" in each for each in world.did)
    assert sentence in attached.describe()["problem"] and attached.describe()["state"] == "paused"


def test_a_bridge_that_does_not_say_what_it_serves_gets_no_requests(world: World, attached: Supervisor) -> None:
    world.mute = 3
    world.children[-1].die("killed")
    until(attached, lambda: world.mute == 0)
    assert not any("socket" in each for each in world.did)
    until(attached, lambda: attached.linked)


def test_growth(world: World, attached: Supervisor) -> None:
    world.status["size_bytes"] = 2 * SIZE
    until(attached, lambda: attached.linked and attached.describe()["size_bytes"] == 2 * SIZE)
    assert world.did[:2] == [f"reconfigure timeout={module.PLANNED}", "drain"]
    assert any(f"size={2 * SIZE} socket=True" in each for each in world.did)
    assert len(world.children) == 1, "the bridge stays"


def test_a_dead_target_is_a_pause_in_the_kernel(world: World, attached: Supervisor) -> None:
    world.status["state"] = "dead"
    until(attached, lambda: attached.held)
    assert world.did == [f"reconfigure timeout={module.queue.TIMEOUT}"]
    world.lose_link()
    until(attached, lambda: not attached.linked)
    for _ in range(3):
        attached._step()
    assert not attached.linked and attached.describe()["state"] == "held"
    assert not any("socket" in each for each in world.did), "nobody is there to serve it"
    world.status["state"] = "up"
    until(attached, lambda: attached.linked)
    assert len(world.children) == 1 and attached.describe()["state"] == "up"


def test_a_target_that_is_back_before_the_kernel_noticed(world: World, attached: Supervisor) -> None:
    world.status["state"] = "dead"
    until(attached, lambda: attached.held)
    world.status["state"] = "up"
    until(attached, lambda: not attached.held)
    assert world.did[:2] == [f"reconfigure timeout={module.queue.TIMEOUT}", "reconfigure timeout=0"]
    assert attached.linked


def test_where_requests_are_to_fail_the_bridge_fails_them(world: World, attached: Supervisor) -> None:
    world.status.update(state="dead", on_dead="fail")
    for _ in range(3):
        attached._step()
    assert world.did == [] and not attached.held


def test_restart(world: World, attached: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    attached._wishes.append(Wish("restart"))
    until(attached, lambda: attached._over)
    assert attached._again and world.did == [] and world.children[-1].serving, "it serves until the next one is there"
    state = world.folder.state()
    assert state is not None
    world.folder.save(replace(state, bridge=77, bridge_began=5))
    monkeypatch.setattr(module.child, "began", lambda pid: 5 if pid == 77 else 0)
    monkeypatch.setattr(module.child, "parent", lambda pid: os.getpid())
    monkeypatch.setattr(module.child, "end_orphan", lambda pid, start: world.did.append(f"end {pid} {start}"))
    monkeypatch.setattr(module.command, "supervised", lambda *args: world.did.append("prepare") or (["bridge"], {}))
    successor = make(world)
    successor._recover()
    until(successor, lambda: successor.linked)
    assert world.did[:4] == ["READY=1", "prepare", f"reconfigure timeout={module.PLANNED}", "drain"]
    assert "end 77 5" in world.did and not any(each.startswith("connect") for each in world.did)
    assert len(world.children) == 2 and world.devices == {4: "e1.0"}


def test_restart_of_one_that_is_only_starting(world: World) -> None:
    world.born = lambda child: supervisor._wishes.append(Wish("restart")) or child.serve()
    supervisor = make(world)
    assert supervisor.run() is True
    assert world.did[-1] == "kill bridge", "the next one would not know of it"


def test_an_orphan_is_ended_first(world: World, attached: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    state = world.folder.state()
    assert state is not None
    world.folder.save(replace(state, bridge=77, bridge_began=5))
    monkeypatch.setattr(module.child, "began", lambda pid: 5)
    monkeypatch.setattr(module.child, "parent", lambda pid: 1)
    monkeypatch.setattr(module.child, "end_orphan", lambda pid, start: world.did.append(f"end {pid} {start}"))
    successor = make(world)
    successor._recover()
    assert world.did == ["READY=1", "end 77 5"] and not successor.linked


def test_the_next_one_goes_on(world: World, attached: Supervisor) -> None:
    before = world.folder.state()
    assert before is not None
    world.children[-1].die("with its supervisor")
    world.did.clear()
    successor = make(world)
    successor._recover()
    until(successor, lambda: successor.linked)
    assert not any(each.startswith("connect") for each in world.did)
    after = world.folder.state()
    assert after is not None and (after.index, after.since, after.queue) == (before.index, before.since, before.queue)


def test_a_device_whose_state_is_lost(world: World, attached: Supervisor) -> None:
    (world.folder.path / "state.json").unlink()
    world.did.clear()
    successor = make(world)
    successor._recover()
    until(successor, lambda: successor.linked)
    assert not any(each.startswith("connect") for each in world.did)


def test_a_state_whose_device_is_gone(world: World) -> None:
    world.folder.save(State(7, SIZE, False))
    supervisor = make(world)
    supervisor._recover()
    until(supervisor, lambda: supervisor.linked)
    assert any(each.startswith("connect") for each in world.did)


def test_a_device_that_somebody_has_disconnected_is_given_up(world: World, attached: Supervisor) -> None:
    del world.devices[4]
    until(attached, lambda: attached._over)
    assert "disconnect" not in world.did and not world.folder.path.exists()


def test_a_device_that_was_disconnected_but_is_open_still(world: World, attached: Supervisor) -> None:
    world.refuses = errno.EINVAL
    world.children[-1].die("killed")
    until(attached, lambda: not attached.linked)
    until(attached, lambda: attached.linked)
    assert any(each.startswith("connect") for each in world.did)


def detach(supervisor: Supervisor, force: bool = False) -> dict[str, Any]:
    wish = Wish("detach", force)
    supervisor._wishes.append(wish)
    until(supervisor, wish.done.done)
    return wish.done.result()


def test_detach(world: World, attached: Supervisor) -> None:
    assert detach(attached)["device"] == "/dev/nbd4"
    assert world.did == ["leave", "disconnect", "restore {'scheduler': 'x'}", "end bridge", "no names"]
    assert attached._over and not world.folder.path.exists()


def test_detach_in_use(world: World, attached: Supervisor) -> None:
    world.users = ["mounted on /srv"]
    with pytest.raises(ControlError, match=r"e1\.0 is in use: mounted on /srv"):
        detach(attached)
    assert world.did == [] and attached.linked and not attached._over


def test_a_detach_that_may_leave_writes_behind_is_none(world: World, attached: Supervisor) -> None:
    world.leaves = False
    with pytest.raises(ControlError, match=r"e1\.0 is not quiet after 20 s"):
        detach(attached)
    assert world.did == ["leave"] and attached.linked and not attached._over


def test_detach_by_force_does_not_wait_for_a_dead_target(world: World, attached: Supervisor) -> None:
    world.users = ["mounted on /srv"]
    detach(attached, force=True)
    assert world.did[:2] == ["kill bridge", "disconnect"], "the other way round the kernel might wait for the bridge"


def ended(world: World, supervisor: Supervisor) -> None:
    """Run it, and tell it to end as soon as it has attached the LUN."""
    linked = supervisor._linked

    def then_stop() -> None:
        linked()
        world.did.clear()
        supervisor.stop(15, None)

    supervisor._linked = then_stop  # type: ignore[method-assign]
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(supervisor.run()), daemon=True)
    thread.start()
    thread.join(60)
    assert done == [False]


def test_told_to_end(world: World) -> None:
    ended(world, make(world))
    assert world.did == ["flush", "leave", "disconnect", "restore {'scheduler': 'x'}", "end bridge", "no names"]
    assert not world.folder.path.exists()


def test_told_to_end_while_in_use(world: World, caplog: pytest.LogCaptureFixture) -> None:
    module.log.propagate = True
    world.users = ["mounted on /srv"]
    ended(world, make(world))
    assert "drain" in world.did and "end bridge" in world.did
    assert "disconnect" not in world.did and world.folder.state() is not None
    assert any("mounted on /srv" in record.message for record in caplog.records)


def test_a_host_that_goes_down_is_served_until_nobody_uses_the_disk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def users(disk: str) -> list[str]:
        asked.append(disk)
        return ["mounted on /srv"] if len(asked) < 4 else []

    monkeypatch.setattr(module.holders, "users", users)
    monkeypatch.setattr(module.service, "going_down", lambda: True)
    ended(world, make(world))
    assert world.did[:3] == ["flush", "leave", "disconnect"] and len(asked) == 4


def test_told_to_end_while_nobody_serves(world: World, attached: Supervisor) -> None:
    world.status["state"] = "dead"
    until(attached, lambda: attached.held)
    attached._stop()
    assert "flush" not in world.did and "disconnect" not in world.did, "who tried would hang"
    assert world.folder.state() is not None


def test_told_to_end_and_not_flushed(world: World) -> None:
    world.flushes = False
    ended(world, make(world))
    assert "disconnect" not in world.did and world.folder.state() is not None


@pytest.mark.parametrize(
    "status", [{"quiesced": True, "withheld": 0}, {"fence": {"state": "yielded", "taken_over": True, "above": "b"}}]
)
def test_told_to_end_while_nothing_is_carried_out(world: World, attached: Supervisor, status: dict[str, Any]) -> None:
    """The bridge is quiesced, or another host has the disk: who flushed it would wait for ever."""
    world.status |= status
    attached._stop()
    assert world.did[:2] == ["leave", "disconnect"]


def test_what_waits_in_a_quiesced_bridge_is_not_given_up(world: World, attached: Supervisor) -> None:
    world.status |= {"quiesced": True, "withheld": 3}
    attached._stop()
    assert "disconnect" not in world.did and world.folder.state() is not None


def test_a_disk_that_was_taken_over_is_a_problem(world: World, attached: Supervisor) -> None:
    world.status["fence"] = {"state": "yielded", "taken_over": True, "above": "b (epoch 2, moving)"}
    until(attached, lambda: bool(attached.fenced))
    assert attached.describe()["problem"] == "taken over by b (epoch 2, moving); requests wait"
    world.status["fence"] = {"state": "held", "taken_over": False, "above": ""}
    until(attached, lambda: not attached.fenced)
    assert attached.describe()["problem"] == ""


def test_told_to_end_before_it_had_begun(world: World) -> None:
    world.born = lambda child: supervisor.stop(15, None)
    supervisor = make(world)
    assert supervisor.run() is False
    assert "end bridge" in world.did and not world.folder.path.exists()
