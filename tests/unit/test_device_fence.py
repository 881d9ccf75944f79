# SPDX-License-Identifier: BSD-3-Clause
"""A guarded disk as its users see it: the sentence of each refusal, and what attach, detach and takeover leave at the target."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from bridge_kit import verbs

from aoe_nbd.bridge import Bridge
from aoe_nbd.core.fence import Fence, Phase, Record, State
from aoe_nbd.core.policy import Fencing
from aoe_nbd.device import Device, DeviceError
from aoe_nbd.host import owner, report
from aoe_nbd.host.verbs import Verbs
from aoe_nbd.options import Options
from aoe_nbd.wire.address import Address
from inmemory import Lan, MemoryBackend, Port, open_device, virtual_time

HELD = b"aoe-nbd epoch=5 owner=other tag=guest state=held"


def target(string: bytes = b"", like: str = "vblade", **disk: Any) -> tuple[Lan, Port]:
    lan = Lan()
    port = lan.target(like, disk=MemoryBackend(1 << 12, **disk))
    port.lun.state.config = string
    return lan, port


def attach(lan: Lan, mode: Fencing = Fencing.ENFORCE, tag: str = "guest", **options: Any) -> Device:
    return open_device(lan, fence=Fence(mode, "here", tag), **options)


def record(port: Port) -> Record | None:
    return Record.parse(port.lun.state.config)


@pytest.mark.parametrize(
    ("string", "like", "options", "sentence"),
    [
        (
            HELD,
            "vblade",
            {"tag": "another"},
            "e1.0 is held by other (epoch 5, held, tag guest): detach it there first, or, if that host is dead, "
            "`aoe-nbd takeover e1.0`",
        ),
        (
            b"a label",
            "vblade",
            {},
            "e1.0 cannot be guarded by fence=enforce: the target keeps a config string that is not ours, 'a label': "
            "`aoe-nbd config fset e1.0 ''` clears it",
        ),
        (
            b"",
            "kvblade",
            {},
            "e1.0 cannot be guarded by fence=enforce: the target knows no reservations: give fence=warn",
        ),
        (
            HELD,
            "vblade",
            {"read_only": True},
            "e1.0 is held by other (epoch 5, held, tag guest): detach it there first, or, if that host is dead, "
            "`aoe-nbd takeover e1.0`",
        ),
    ],
)
def test_refused(string: bytes, like: str, options: dict[str, Any], sentence: str) -> None:
    lan, port = target(string, like)
    with pytest.raises(DeviceError) as caught:
        attach(lan, **options)
    assert (caught.value.errno, caught.value.strerror) == (errno.EBUSY, sentence)
    assert (port.lun.state.config, port.lun.state.reserved, lan.initiators) == (string, [], [])


@pytest.mark.parametrize("string", [b"", HELD.replace(b"held", b"free")])
def test_who_only_reads_owns_nothing(string: bytes) -> None:
    lan, port = target(string)
    device = attach(lan, read_only=True)
    device.read(memoryview(bytearray(512)), 0)
    assert (port.lun.state.config, port.lun.state.reserved) == (string, [])
    assert report.of_fence(device.initiator, lan.now) == {"mode": "off", "state": "off", "taken_over": False}


def test_leave_frees_it() -> None:
    lan, port = target(HELD.replace(b"held", b"free"))
    device = attach(lan, tag="another")
    device.write(memoryview(bytes(512)), 0)
    found = report.of_fence(device.initiator, lan.now)
    shown = [found[name] for name in ("state", "epoch", "owner", "open", "reserves")]
    assert shown == ["held", 6, "here", True, True]
    with virtual_time(lan):
        verbs(lan, device).leave({"timeout": 5})
        device.leave(5)  # twice does no harm
    assert record(port) == Record(7, "here", "another", State.FREE)
    assert port.lun.state.reserved == []


def test_leave_without_an_answer_is_none() -> None:
    lan, port = target(HELD.replace(b"held", b"free"))
    device = attach(lan)
    lan.pause(1)
    port.unplugged = True
    with virtual_time(lan), pytest.raises(DeviceError, match=r"the target does not answer: e1\.0 stays recorded"):
        device.leave(5)


def test_leave_after_a_handover_waits_for_nothing() -> None:
    lan, port = target(HELD)
    device = attach(lan)
    port.lun.state.config = b"aoe-nbd epoch=9 owner=third tag=guest state=held"
    lan.run(lambda: device.initiator.fence is not None and device.initiator.fence.phase is Phase.LOST)
    port.unplugged = True
    with virtual_time(lan):
        device.leave(0)
    with pytest.raises(DeviceError) as caught:
        device.flush()
    assert caught.value.errno == errno.EPERM
    assert "taken over by third (epoch 9, held, tag guest)" in caught.value.strerror


def test_takeover_of_what_is_not_guarded() -> None:
    lan, _ = target()
    device = open_device(lan)
    with pytest.raises(DeviceError, match="attached with fence=off: there is no owner"):
        verbs(lan, device).takeover({})


def test_takeover_in_place() -> None:
    lan, port = target(HELD)
    device = attach(lan)
    port.lun.state.config = b"aoe-nbd epoch=7 owner=third tag=guest state=moving from=here was=6"
    fence = device.initiator.fence
    assert fence is not None
    device.write(memoryview(bytes(512)), 0)
    port.lun.state.config = b"aoe-nbd epoch=8 owner=third tag=guest state=moving from=here was=7"
    lan.run(lambda: fence.phase is Phase.YIELDED)
    asked: Verbs = verbs(lan, device)
    with virtual_time(lan):
        (found,) = asked.takeover({"timeout": 20})["luns"]
    assert (found["state"], found["epoch"]) == ("held", 9)
    device.write(memoryview(bytes(512)), 0)


# -- the host -----------------------------------------------------------------------------------------------------------


def test_the_host_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner.platform, "node", lambda: "dom0 a.example")
    assert owner.host_name(tmp_path / "none") == "dom0-a.example"
    (tmp_path / "id").write_text("0123456789abcdef0123456789abcdef\n")
    assert owner.host_name(tmp_path / "id") == "dom0-a.example-01234567"


def test_a_note_is_kept_beside_the_control_socket(tmp_path: Path) -> None:
    address = Address(1, 0)
    note = owner.Note(str(tmp_path / "control"), address)
    assert note.read() == ""
    note.write("held")
    assert owner.Note(str(tmp_path / "control"), address).read() == "held"
    note.write("")
    assert (note.read(), list(tmp_path.iterdir())) == ("", [])
    owner.Note("", address).write("nowhere")
    assert owner.Note("", address).read() == ""


@pytest.mark.parametrize("note", ["nonsense", "{}", '{"record": 7}', '{"record": "a", "above": "", "phase": "gone"}'])
def test_a_note_that_cannot_be_read_is_none(note: str) -> None:
    assert Fence(Fencing.WARN, "here", "guest", note).phase is Phase.CLAIMING


def test_a_bridge_guards_as_it_is_told(tmp_path: Path) -> None:
    options = Options()
    bridge = Bridge(options)
    assert bridge._fence(Address(1, 0)) is None
    for key, value in (("fence", "warn"), ("owner", "me"), ("owner-tag", "guest"), ("control", str(tmp_path / "c"))):
        options.set(key, value)
    fence = bridge._fence(Address(1, 0))
    assert fence is not None
    assert (fence.mode, fence.host, fence.tag, fence.phase) == (Fencing.WARN, "me", "guest", Phase.CLAIMING)
