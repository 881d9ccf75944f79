# SPDX-License-Identifier: BSD-3-Clause
"""`status`, `quiesce`, `resume` and `metrics` against a bridge in memory that answers by a real control socket."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bridge_kit import attached, verbs
from prometheus_client.parser import text_string_to_metric_families

from aoe_nbd import cli
from aoe_nbd.cli import metrics, status
from aoe_nbd.cli.bridges import Bridge
from aoe_nbd.host.verbs import Verbs
from inmemory import Lan


class Running:
    """A bridge that answers at `control`."""

    def __init__(self, folder: Path) -> None:
        self.lan: Lan
        self.lan, self.device = attached()
        self.verbs: Verbs = verbs(self.lan, self.device)
        self.server = self.verbs.serve(str(folder / "control"))
        self.server.start()
        self.control = self.server.path


@pytest.fixture
def bridge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """The bridge of e1.0, where the verbs look for it."""
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path))
    (tmp_path / "e1.0").mkdir()
    running = Running(tmp_path / "e1.0")
    yield running
    running.server.close()


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit status, output, errors) of a command."""
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


# -- status ------------------------------------------------------------------------------------------------------------


def test_one_line_each(bridge: Running, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "status")
    head, line = out.splitlines()
    assert (code, err) == (0, "")
    assert head.split()[:3] == ["ADDRESS", "STATE", "SIZE"]
    assert line.split()[:6] == ["e1.0", "up", "33.55", "MB", "rw", "1/1"]


def test_all_of_one(bridge: Running, capsys: pytest.CaptureFixture[str]) -> None:
    bridge.device.write(memoryview(bytes(4096)), 0)
    bridge.verbs.bridge.feed.tell("path-out", "no answer by eth0", address="e1.0")
    code, out, _ = said(capsys, "status", "e1.0")
    assert code == 0
    for part in (
        "e1.0: up, 33.55 MB (33554432 bytes), read-write",
        "an acknowledged flush is on stable storage",
        "on-dead=hold",
        "written     1 times, 4.10 kB",
        "02:00:00:00:02:01",
        "frames sent for clients",
        "no answer by eth0",
    ):
        assert part in out


def test_json_is_what_the_bridge_says(bridge: Running, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "status", "--json", "e1.0")
    (answer,) = json.loads(out)
    assert code == 0
    assert answer["luns"][0]["address"] == "e1.0"


def test_a_target_that_is_away(bridge: Running, capsys: pytest.CaptureFixture[str]) -> None:
    lan = bridge.lan
    lan.ports[0].unplugged = True
    lan.pause(20)
    code, out, _ = said(capsys, "status")
    assert code == 3
    assert out.splitlines()[1].split()[1] in ("away", "dead")


def test_a_bridge_that_is_gone(bridge: Running, capsys: pytest.CaptureFixture[str]) -> None:
    bridge.server.close()
    code, out, err = said(capsys, "status")
    assert (code, out.splitlines()[1].split()[:3]) == (1, ["e1.0", "no", "bridge"])
    assert err.startswith("aoe-nbd status: no bridge of e1.0 runs here: nothing listens on ")
    code, out, _ = said(capsys, "status", "--json")
    assert code == 1
    assert json.loads(out)[0]["error"].startswith("no bridge of e1.0 runs here")


def test_nothing_attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path / "none"))
    code, out, err = said(capsys, "status")
    assert (code, out) == (1, "")
    assert err.startswith("aoe-nbd status: no bridge runs here")


def test_a_bridge_that_serve_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path))
    running = Running(tmp_path)
    os.rename(running.control, tmp_path / "e1.0.control")
    try:
        assert said(capsys, "status")[1].splitlines()[1].split()[:2] == ["e1.0", "up"]
        assert said(capsys, "status", "e1.0")[0] == 0
    finally:
        running.server.close()


def test_by_the_socket_of_a_bridge_started_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path / "none"))
    running = Running(tmp_path)
    try:
        assert said(capsys, "status", "--control", running.control)[0] == 0
        code, _, err = said(capsys, "status", "--control", running.control, "e1.9")
        assert (code, err) == (1, "aoe-nbd status: this bridge does not serve e1.9: it serves e1.0\n")
    finally:
        running.server.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min 59 s"),
        (3600, "1 h"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text


def test_every_counter_of_the_code_has_a_meaning() -> None:
    """Each name that is counted anywhere in the source is explained."""
    import re

    source = "\n".join(
        path.read_text() for part in ("core", "engine.py", "host/report.py") for path in _files(cli_root() / part)
    )
    names = set(re.findall(r'counters\[f?"([a-z_{}\[\].()]+)', source))
    assert len(names) > 20
    for name in names:
        example = re.sub(
            r"\{.*", "7" if name.startswith("aoe_") else "41_04" if name.startswith("ata_") else "thing", name
        )
        assert status.meaning(example), name


def cli_root() -> Path:
    return Path(cli.__file__).resolve().parents[1]


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.py")) if path.is_dir() else [path]


# -- quiesce, resume ---------------------------------------------------------------------------------------------------


def test_quiesce_and_resume(
    bridge: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(bridge.device, "quiesce", asked.append)
    monkeypatch.setattr(bridge.device, "resume", lambda: True)
    code, out, _ = said(capsys, "quiesce", "e1.0", "--timeout", "7")
    assert (code, out) == (0, "e1.0 is quiet; `aoe-nbd resume e1.0` lets its requests go on\n")
    assert 6 < asked[0] <= 7
    assert said(capsys, "quiesce", "e1.0", "--timeout", "601")[0] == 1
    assert said(capsys, "resume", "e1.0")[:2] == (0, "e1.0 goes on\n")
    assert json.loads(said(capsys, "resume", "e1.0", "--json")[1]) == {"address": "e1.0", "resumed": True}


def test_an_interrupted_quiesce_says_how_it_stands(
    bridge: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bridge, "ask", interrupted)
    code, out, err = said(capsys, "quiesce", "e1.0")
    assert (code, out) == (130, "")
    assert err == ("aoe-nbd quiesce: e1.0 may be quiesced, or become so: `aoe-nbd resume e1.0` takes it back\n")


def test_quiesce_of_nobody(bridge: Running, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = said(capsys, "quiesce", "e3.0")
    assert code == 1
    assert err.startswith("aoe-nbd quiesce: no bridge of e3.0 runs here")


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_are_what_prometheus_reads(bridge: Running, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        bridge.device.write(memoryview(bytes(4096)), 0)
    code, out, _ = said(capsys, "metrics")
    assert code == 0
    families = {family.name: family for family in text_string_to_metric_families(out)}
    (size,) = families["aoe_nbd_size_bytes"].samples
    assert (size.labels, size.value) == ({"address": "e1.0"}, bridge.device.size)
    served = {sample.labels["operation"]: sample.value for sample in families["aoe_nbd_bytes"].samples}
    assert served == {"read": 0, "write": 3 * 4096, "trim": 0}
    samples = [s for s in families["aoe_nbd_round_trip_seconds"].samples if s.labels["class"] == "write"]
    buckets = [(float(s.labels["le"]), s.value) for s in samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert [value for _, value in buckets] == sorted(value for _, value in buckets)
    assert buckets[-1] == (float("inf"), 3)
    count = next(s.value for s in samples if s.name.endswith("_count"))
    total = next(s.value for s in samples if s.name.endswith("_sum"))
    assert count == 3
    fit = next(le for le, value in buckets if value == 3)
    assert fit / 4 <= total / count <= fit


def test_metrics_of_a_bridge_that_is_gone(bridge: Running, capsys: pytest.CaptureFixture[str]) -> None:
    bridge.server.close()
    code, out, _ = said(capsys, "metrics")
    assert (code, out.splitlines()[-1]) == (0, 'aoe_nbd_bridge_up{bridge="e1.0"} 0.0')


def test_metrics_into_a_file(bridge: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "aoe-nbd.prom"
    assert said(capsys, "metrics", "--output", str(file)) == (0, "", "")
    assert 'aoe_nbd_up{address="e1.0"} 1.0' in file.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aoe-nbd.prom", "e1.0"]
    assert said(capsys, "metrics", "--output", str(tmp_path / "no" / "where"))[0] == 1


def test_two_bridges_are_one_family() -> None:
    lan, device = attached()
    answer = verbs(lan, device).status({})
    other = json.loads(json.dumps(answer))
    other["luns"][0]["address"] = "e1.1"
    text = metrics.exposition([("a", answer), ("b", other)])
    assert text.count("# TYPE aoe_nbd_up gauge") == 1
    assert [line for line in text.splitlines() if line.startswith("aoe_nbd_up{")] == [
        'aoe_nbd_up{address="e1.0"} 1.0',
        'aoe_nbd_up{address="e1.1"} 1.0',
    ]
