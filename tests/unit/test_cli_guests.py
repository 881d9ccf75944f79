# SPDX-License-Identifier: BSD-3-Clause
"""Which guest has which disk, and what it does there: `status --guests`, `status`, `list` and `metrics`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from bridge_kit import attached, verbs
from prometheus_client.parser import text_string_to_metric_families
from xenstore_kit import Xenstored

from aoe_nbd import cli
from aoe_nbd.cli import guests
from aoe_nbd.host import disks, xen
from aoe_nbd.host.state import Folder, State
from aoe_nbd.wire.address import Address

UUID = "7d3b2f6e-0000-4000-8000-1234567890ab"


@pytest.fixture
def xenstored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Xenstored]:
    """A dom0 whose domain d1 has e1.0, which a bridge in memory serves, and where domain 3 had it once."""
    monkeypatch.setenv("AOE_NBD_RUN", str(tmp_path))
    monkeypatch.setattr(xen, "SYS", tmp_path / "sys")
    monkeypatch.setattr(disks, "holding", lambda name: [0])
    daemon = Xenstored(tmp_path)
    monkeypatch.setenv("XENSTORED_PATH", daemon.path)
    daemon.domain(5, "d1", UUID)
    daemon.vbd(5, 51712, "e1.0")
    counters = tmp_path / "sys/bus/xen-backend/devices/vbd-5-51712/statistics"
    counters.mkdir(parents=True)
    for name, value in {"rd_req": 3, "rd_sect": 24, "wr_req": 2, "wr_sect": 16, "f_req": 1, "ds_req": 4}.items():
        (counters / name).write_text(f"{value}\n")
    folder = Folder(Address(1, 0))
    folder.hold({"operator": 2, "xen:5:51712": 1, "xen:3:51712": 1})
    folder.save(State(0, 1 << 20, False))
    lan, device = attached()
    device.write(memoryview(bytes(4096)), 0)
    server = verbs(lan, device).serve(str(folder.control))
    server.start()
    yield daemon
    server.close()
    daemon.close()


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(words) == 0
    return capsys.readouterr().out


def test_a_line_each(xenstored: Xenstored, capsys: pytest.CaptureFixture[str]) -> None:
    head, one, gone = said(capsys, "status", "--guests").splitlines()
    assert head.split()[:4] == ["GUEST", "DISK", "MODE", "READS"]
    assert one.split()[:11] == ["d1", "xvda", "e1.0", "rw", "3", "12.29", "kB", "2", "8.19", "kB", "1"]
    assert one.split()[-3] == "<" and one.split()[-1] == "ms", "the write's round trip"
    assert gone.startswith("xen:3:51712 (domain is gone)")
    assert "d1 xvda" in said(capsys, "status", "e1.0")


def test_json(xenstored: Xenstored, capsys: pytest.CaptureFixture[str]) -> None:
    (answer,) = json.loads(said(capsys, "status", "--json"))
    guest = answer["luns"][0]["guests"][0]
    assert (guest["domain"], guest["uuid"], guest["vdev"], guest["domid"]) == ("d1", UUID, "xvda", 5)
    assert guest["requests"]["write"] == {"operations": 2, "bytes": 8192}
    write = guest["round_trips"]["write"]
    assert write["answers"] == sum(write["histogram"]) > 0 and write["percentiles_s"]["p50"] > 0


def test_list(xenstored: Xenstored, capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "list")
    assert "operator (2),d1 xvda,xen:3:51712 (domain is gone)" in out
    (disk,) = json.loads(said(capsys, "list", "--json"))
    assert disk["holders"] == {"operator": 2, "xen:5:51712": 1, "xen:3:51712": 1}
    assert [guest["domain"] for guest in disk["guests"]] == ["d1", None]


def test_metrics(xenstored: Xenstored, capsys: pytest.CaptureFixture[str]) -> None:
    """By labels that stay the same when the domain moves to another host."""
    out = said(capsys, "metrics")
    figures = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(out)
        for sample in family.samples
    }
    labels = (("address", "e1.0"), ("domain", "d1"))
    rest = (("uuid", UUID), ("vdev", "xvda"))
    assert figures[("aoe_nbd_guest_info", *labels, ("domid", "5"), *rest)] == 1
    assert figures[("aoe_nbd_guest_bytes_total", *labels, ("operation", "read"), *rest)] == 12288
    assert figures[("aoe_nbd_guest_operations_total", *labels, ("operation", "trim"), *rest)] == 4
    assert figures[("aoe_nbd_guest_round_trip_seconds_count", *labels, ("operation", "write"), *rest)] > 0


def test_who_may_not_ask_xenstore_sees_numbers(
    xenstored: Xenstored, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "none"))
    assert "operator (2),xen:5:51712,xen:3:51712" in said(capsys, "list")
    assert "xen:5:51712" in said(capsys, "status", "--guests")


def test_names_are_safe_for_a_terminal() -> None:
    assert guests.name_of({"holder": "x", "exists": True, "domain": "d\x1b[1m", "vdev": "xvda"}) == "d\\x1b[1m xvda"
