# SPDX-License-Identifier: BSD-3-Clause
"""What a bridge answers: its status as JSON, quiet and how it is refused, and the end of its clients."""

from __future__ import annotations

import errno
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from bridge_kit import attached, verbs

from aoe_nbd.core.request import Kind, Request
from aoe_nbd.device import DeviceError
from aoe_nbd.host import report
from aoe_nbd.host.clients import Clients
from aoe_nbd.host.control import ControlError
from aoe_nbd.host.verbs import Verbs
from inmemory import Lan, virtual_time, write_request


def lun(verbs: Verbs) -> dict[str, Any]:
    """The only LUN in the status, through JSON as a client gets it."""
    (found,) = json.loads(json.dumps(verbs.status({})))["luns"]
    assert isinstance(found, dict)
    return found


def quiesce(lan: Lan, verbs: Verbs, **question: Any) -> Any:
    with virtual_time(lan):
        return verbs.quiesce(question)


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_of_an_idle_disk() -> None:
    lan, device = attached()
    found = lun(verbs(lan, device))
    assert (found["address"], found["state"], found["size_bytes"]) == ("e1.0", "up", device.size)
    assert found["identity"]["serial"] == device.identify.serial
    assert found["durability"] == "an acknowledged flush is on stable storage, a write before it may not be"
    assert (found["waiting"], found["outstanding"], found["ghosts"], found["silent_s"]) == (0, 0, 0, 0)
    assert (found["quiesced"], found["quiet"]) == (False, False)
    (path,) = found["paths"]
    assert (path["state"], path["mtu"], path["sectors"]["most"]) == ("up", 9000, 16)


def test_status_counts_what_was_carried_out() -> None:
    lan, device = attached()
    device.write(memoryview(bytes(8192)), 0)
    device.write(memoryview(bytes(512)), 512)
    device.read(memoryview(bytearray(4096)), 0)
    device.flush()
    device.trim(0, 1024)
    found = lun(verbs(lan, device))
    assert found["served"] == {
        "read": {"operations": 1, "bytes": 4096},
        "write": {"operations": 2, "bytes": 8704},
        "flush": {"operations": 1, "bytes": 0},
        "trim": {"operations": 1, "bytes": 1024},
    }
    classes = found["paths"][0]["classes"]
    assert classes["write"]["answers"] == sum(classes["write"]["histogram"]) == 2
    assert classes["write"]["percentiles_s"]["p50"] >= 1e-4  # both ways through the Lan
    assert classes["write"]["total_s"] == pytest.approx(2e-4, rel=0.5)


def test_status_tells_losses_and_failures() -> None:
    lan, device = attached()
    lost: list[bytes] = []
    lan.ports[0].to.drop = lambda frame: frame[27] == 0x34 and not lost and not lost.append(frame)  # type: ignore[func-returns-value]
    device.write(memoryview(bytes(512)), 0)
    with pytest.raises(DeviceError):
        device._do(Request(Kind.READ, 1 << 40, 1, memoryview(bytearray(512))))
    found = lun(verbs(lan, device))
    write = found["paths"][0]["classes"]["write"]
    assert (write["answers"], write["unanswered"], write["loss"]) == (1, 1, 0.5)
    assert any(name.startswith("failed_") for name in found["counters"])
    assert found["served"]["read"]["operations"] == 0


def test_status_of_a_dead_target() -> None:
    lan, device = attached()
    lan.ports[0].unplugged = True
    lan.submit(write_request(0, bytes(512)))
    lan.pause(60)
    found = report.of_device(device, lan.now)
    assert (found["state"], found["waiting"]) == ("dead", 1)
    assert 55 < found["silent_s"] <= 61


def test_history_is_of_its_own_lun() -> None:
    lan, device = attached()
    asked = verbs(lan, device)
    asked.bridge.feed.tell("path-out", "by eth0", address="e1.0")
    asked.bridge.feed.tell("path-out", "of another", address="e7.7")
    assert [event["text"] for event in lun(asked)["history"]] == ["by eth0"]


# -- quiesce -----------------------------------------------------------------------------------------------------------


def test_quiesce_and_resume() -> None:
    lan, device = attached()
    asked = verbs(lan, device)
    assert quiesce(lan, asked)["took"] >= 0
    assert (lun(asked)["quiesced"], device.initiator.quiet(lan.now)) == (True, True)
    quiesce(lan, asked)
    assert asked.resume({}) == {"resumed": 1}
    assert asked.resume({}) == {"resumed": 0}
    assert not device.initiator.quiesced


def test_no_quiet_from_a_dead_target() -> None:
    """It says so, and all is as before: the request that came meanwhile goes on."""
    lan, device = attached()
    lan.ports[0].unplugged = True
    request = lan.submit(write_request(0, bytes(512)))
    with pytest.raises(DeviceError, match=r"e1.0 is not quiet after 30 s: the target does not answer.*; resumed"):
        quiesce(lan, verbs(lan, device))
    assert not device.initiator.quiesced
    lan.ports[0].unplugged = False
    lan.finish(request)


def test_a_quiesced_disk_stays_so_when_asked_again_in_vain() -> None:
    lan, device = attached()
    asked = verbs(lan, device)
    quiesce(lan, asked)
    lan.initiator._quarantined_until = lan.now + 1000  # as if it were not quiet
    with pytest.raises(DeviceError, match="an older process's writes may still land; still quiesced, as before"):
        quiesce(lan, asked, timeout=5)
    assert device.initiator.quiesced


def test_a_resume_meanwhile_is_told() -> None:
    lan, device = attached()
    lan.ports[0].unplugged = True
    lan.submit(write_request(0, bytes(512)))
    lan.later(3.0, lambda: device.initiator.resume(lan.now))
    with pytest.raises(DeviceError, match="it was resumed meanwhile"):
        quiesce(lan, verbs(lan, device), timeout=600)


def test_quiesced_outlives_the_bridge(tmp_path: Path) -> None:
    """A bridge that is started at the same place begins as the one that was killed there ended."""
    lan, device = attached()
    first = verbs(lan, device)
    server = first.serve(str(tmp_path / "control"))
    quiesce(lan, first)
    server.close()

    lan, device = attached()
    second = verbs(lan, device)
    server = second.serve(str(tmp_path / "control"))
    second.bridge.on_open(device)
    assert device.initiator.quiesced
    request = lan.submit(write_request(0, bytes(512)))
    lan.pause(5)
    assert not request.done
    second.resume({})
    lan.finish(request)
    server.close()

    lan, device = attached()
    third = verbs(lan, device)
    server = third.serve(str(tmp_path / "control"))
    third.bridge.on_open(device)
    assert not device.initiator.quiesced
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_what_could_not_be_reached_is_not_kept(tmp_path: Path) -> None:
    lan, device = attached()
    asked = verbs(lan, device)
    server = asked.serve(str(tmp_path / "control"))
    lan.ports[0].unplugged = True
    lan.submit(write_request(0, bytes(512)))
    with pytest.raises(DeviceError):
        quiesce(lan, asked, timeout=1)
    server.close()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    lan, device = attached()
    asked = verbs(lan, device)
    asked._note = str(tmp_path / "no" / "where")
    with pytest.raises(ControlError, match=r"where cannot be written, which is to outlive the bridge: No such file"):
        quiesce(lan, asked)
    assert not device.initiator.quiesced


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"address": "e1.1"}, "this bridge does not serve e1.1: it serves e1.0"),
        ({"address": "nonsense"}, "nonsense"),
        ({"address": 7}, "address=7 is not an address"),
        ({"timeout": "long"}, "timeout='long' is not a number of seconds"),
    ],
)
def test_bad_questions(question: dict[str, Any], sentence: str) -> None:
    lan, device = attached()
    with pytest.raises((ControlError, ValueError), match=sentence):
        quiesce(lan, verbs(lan, device), **question)
    assert not device.initiator.quiesced


# -- clients -----------------------------------------------------------------------------------------------------------


def test_stop_reading_leaves_what_was_sent(tmp_path: Any) -> None:
    """What the client had sent is still read, it can send no more, and it still gets its answer."""
    path = str(tmp_path / "sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            ours, _ = listener.accept()
            client.sendall(b"request")
            with ours:
                clients = Clients()
                clients.spared.add(client.getsockname())  # both ends are in this process
                clients.stop_reading()
                assert ours.recv(100) == b"request"
                assert ours.recv(100) == b""
                with pytest.raises(BrokenPipeError):
                    client.sendall(b"more")
                ours.sendall(b"answer")
                assert client.recv(100) == b"answer"
            again = socket.socket(socket.AF_UNIX)
            again.connect(path)  # the listening socket still listens
            again.close()


def test_spared_sockets_are_left_alone() -> None:
    a, b = socket.socketpair()
    with a, b:
        clients = Clients()
        clients.spared.add(a.getsockname())
        clients.hang_up()
        a.sendall(b"x")
        assert b.recv(1) == b"x"


def test_drain_waits_for_the_clients() -> None:
    lan, device = attached()
    asked = verbs(lan, device)
    asked.clients.spared.update({"", b""})
    assert asked.drain({}) == {}
    asked.clients.came()
    with pytest.raises(ControlError, match="1 clients of the bridge are not done yet") as late:
        asked.drain({"timeout": 0})
    assert late.value.errno == errno.ETIMEDOUT
    threading.Timer(0.1, asked.clients.went).start()
    assert asked.drain({"timeout": 60}) == {}
