# SPDX-License-Identifier: BSD-3-Clause
"""The control socket: questions and answers, clients that misbehave, sockets that others have left."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aoe_nbd.host import control
from aoe_nbd.host.control import Client, ControlError, Feed, Server, seconds


def _refuse(question: Any) -> Any:
    raise ControlError(errno.EBUSY, "it is mounted")


def _break(question: Any) -> Any:
    raise KeyError("oops")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(
        str(tmp_path / "control"),
        {"echo": lambda q: {"said": q.get("say")}, "refuse": _refuse, "break": _break},
    )
    made.start()
    yield made
    made.close()


def raw(path: str, *lines: bytes) -> list[Any]:
    """What is answered to these bytes."""
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(10)
        end.connect(path)
        end.sendall(b"".join(lines))
        end.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in end.makefile("rb")]


def test_question_and_answer(server: Server) -> None:
    client = Client(server.path)
    assert client.ask("echo", say="hello") == {"said": "hello"}
    assert raw(server.path, b'{"do": "echo", "say": 1}\n{"do": "echo", "say": 2}\n') == [
        {"ok": True, "said": 1},
        {"ok": True, "said": 2},
    ]


def test_refusals_are_sentences(server: Server) -> None:
    client = Client(server.path)
    with pytest.raises(ControlError) as refused:
        client.ask("refuse")
    assert (refused.value.errno, refused.value.strerror) == (errno.EBUSY, "it is mounted")
    with pytest.raises(ControlError, match="there is no verb 'dance' here: break, echo, refuse"):
        client.ask("dance")
    with pytest.raises(ControlError, match="internal error: KeyError"):
        client.ask("break")
    assert client.ask("echo", say="still there") == {"said": "still there"}


@pytest.mark.parametrize(
    "line", [b"\n", b"x\n", b"[]\n", b"1\n", b"\xff\xfe\n", b'{"do": []}\n', b'{"do": {}}\n', b"{}\n"]
)
def test_nonsense_is_answered(server: Server, line: bytes) -> None:
    (answer,) = raw(server.path, line)
    assert not answer["ok"]
    assert answer["error"]


def test_only_its_owner_may_ask(server: Server) -> None:
    mode = os.stat(server.path).st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_line_without_end_is_dropped(server: Server) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(10)
        end.connect(server.path)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            end.sendall(b"x" * (64 * control.QUESTION_MOST))
    assert Client(server.path).ask("echo", say=1) == {"said": 1}


def test_silent_clients_give_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """More clients than there are threads connect and say nothing: others are answered nevertheless."""
    monkeypatch.setattr(control, "IDLE", 0.2)
    silent = [socket.socket(socket.AF_UNIX) for _ in range(3 * control.WORKERS)]
    try:
        for one in silent:
            one.connect(server.path)
        assert Client(server.path).ask("echo", say=1) == {"said": 1}
    finally:
        for one in silent:
            one.close()


def test_a_client_that_leaves_harms_nobody(server: Server) -> None:
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(server.path)
            end.sendall(b'{"do": "echo", "say": "' + b"x" * 60000 + b'"}\n')
    assert Client(server.path).ask("echo", say=1) == {"said": 1}


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match=r"no bridge of e1.0 runs here: nothing listens on") as missing:
        Client(tmp_path / "control", "bridge of e1.0").ask("status")
    assert missing.value.errno == errno.ENOENT


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
        left.listen()
    with pytest.raises(ControlError, match=r"no bridge at .* runs here"):
        Client(path).ask("status")
    server = Server(path, {"echo": lambda q: {}})
    server.start()
    assert Client(path).ask("echo") == {}
    server.close()
    assert os.listdir(tmp_path) == []


def test_a_living_socket_is_not_replaced(server: Server) -> None:
    with pytest.raises(ControlError, match="another process answers at"):
        Server(server.path, {})
    assert Client(server.path).ask("echo", say=1) == {"said": 1}
    assert os.listdir(os.path.dirname(server.path)) == ["control"]


def test_places_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ControlError, match="is no socket"):
        Server(str(tmp_path / "file"), {})
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(ControlError, match=r"no control socket can be made at .*: AF_UNIX path too long"):
        Server(str(tmp_path / ("x" * 120)), {})
    with pytest.raises(ControlError, match=r"no control socket can be made at .*: No such file"):
        Server(str(tmp_path / "no" / "where"), {})


def test_an_older_server_leaves_its_successors_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "control")
    older = Server(path, {})
    os.unlink(path)
    newer = Server(path, {"echo": lambda q: {}})
    newer.start()
    older.close()
    assert Client(path).ask("echo") == {}
    newer.close()


def test_close_ends_those_who_wait(tmp_path: Path) -> None:
    feed = Feed()
    server = Server(str(tmp_path / "control"), {"wait": lambda q: feed.wait(q, server.closing)})
    server.start()
    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(Client(server.path).ask("wait", timeout=600))
        except ControlError as error:
            outcome.append(error)

    waiter = threading.Thread(target=ask, daemon=True)
    waiter.start()
    while not server._clients:
        time.sleep(0.01)
    server.close()
    waiter.join(10)
    assert len(outcome) == 1


def test_feed_tells_what_is_new() -> None:
    feed, closing = Feed(most=3), threading.Event()
    assert feed.wait({"timeout": 0}, closing) == {"events": [], "next": 0, "missed": False}
    feed.tell("grown", "it has grown", size=1024)
    answer = feed.wait({"since": 0}, closing)
    assert [(e["number"], e["what"], e["size"]) for e in answer["events"]] == [(1, "grown", 1024)]
    assert (answer["next"], answer["missed"]) == (1, False)
    assert feed.wait({"since": 1, "timeout": 0}, closing)["events"] == []
    for number in range(5):
        feed.tell("alive", f"again {number}")
    answer = feed.wait({"since": 1}, closing)
    assert ([e["number"] for e in answer["events"]], answer["missed"]) == ([4, 5, 6], True)


def test_feed_wakes_who_waits() -> None:
    feed, closing = Feed(), threading.Event()
    answers: list[Any] = []
    waiter = threading.Thread(target=lambda: answers.append(feed.wait({"since": -1, "timeout": 60}, closing)))
    waiter.start()
    while waiter.is_alive():
        feed.tell("dead", "no answer")
        waiter.join(0.01)
    assert answers[0]["events"][-1]["what"] == "dead"


@pytest.mark.parametrize("value", ["1", None, True, -1, 1e9, float("nan"), [1]])
def test_seconds_are_checked(value: object) -> None:
    with pytest.raises(ValueError, match="is not a number of seconds"):
        seconds({"timeout": value}, 1.0)
