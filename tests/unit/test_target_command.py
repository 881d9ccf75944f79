# SPDX-License-Identifier: BSD-3-Clause
"""The command line of the target: one clear sentence for each bad option, and what the good ones mean."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from target_kit import ME, OTHER, make_lun

from aoe_nbd.target import PERSONALITIES, State, Target, TargetError
from aoe_nbd.target.command import add_arguments, build, main
from aoe_nbd.wire.address import Address


@pytest.fixture
def disk(tmp_path: Path) -> str:
    path = tmp_path / "disk"
    path.write_bytes(bytes(5 * 512 + 100))
    return str(path)


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence that `words` are refused with."""
    try:
        status = main(list(words))
    except SystemExit as error:
        status = int(error.code or 0)
    out, err = capsys.readouterr()
    assert (status, out) == (1, "")
    assert err.startswith("aoe-nbd target: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to export"),
        (["DISK"], "no interface"),
        (["--interface", "lo", "DISK"], "lo is the loopback"),
        (["--interface", "no-such-if", "DISK"], "no-such-if does not exist"),
        (["--interface", "lo", "/no/such/file"], "/no/such/file does not exist"),
        (["--interface", "lo", "EMPTY"], "capacity zero"),
        (["--interface", "lo", "/"], "neither a file nor a block device"),
        (["--interface", "lo", "/dev/null"], "neither a file nor a block device"),
        (["--interface", "lo", "--shelf", "65535", "DISK"], "shelf=65535 is out of range: give 0 to 65534"),
        (["--interface", "lo", "--slot", "255", "DISK"], "slot=255 is out of range: give 0 to 254"),
        (["--interface", "lo", "--slot", "-1", "DISK"], "slot=-1 is not a number"),
        (["--interface", "lo", "--shelf", "one", "DISK"], "shelf=one is not a number"),
        (["--interface", "lo", "--export", "e0.0=DISK", "DISK"], "e0.0 is exported twice"),
        (["--interface", "lo", "--export", "e1.2"], "--export e1.2 is not usable"),
        (["--interface", "lo", "--export", "e1.2="], "--export e1.2= is not usable"),
        (["--interface", "lo", "--export", "x=DISK"], "not an AoE address"),
        (["--interface", "lo", "--export", "e1.255=DISK"], "slot=255 is out of range"),
        (["--interface", "lo", "--buffers", "65536", "DISK"], "--buffers=65536 is not usable"),
        (["--interface", "lo", "--buffers", "x", "DISK"], "--buffers=x is not usable"),
        (["--interface", "lo", "--mask", "02:00", "DISK"], "mac=02:00 is not a MAC address"),
        (["--interface", "lo", "--config-string", "x" * 1025, "DISK"], "1025 bytes"),
        (["--interface", "lo", "--serial", "x" * 21, "DISK"], "1 to 20"),
        (["--interface", "lo", "--serial", "", "DISK"], "1 to 20"),
        (["--interface", "lo", "--serial", "x", "--export", "e1.1=DISK", "DISK"], "serve each on its own"),
        (["--interface", "lo", "--physical-block-size", "1000", "DISK"], "no power of two"),
        (["--interface", "lo", "--like", "coraid", "DISK"], "--like=coraid is no target that we know"),
        (["--interface", "lo", "--fault", "loss=2", "DISK"], "loss=2 is out of range"),
        (["--interface", "lo", "--state-dir", "DISK", "DISK"], "cannot be"),
        (["--interface", "lo", "--colour", "DISK"], "unrecognized arguments: --colour"),
        (["--interface"], "expected one argument"),
    ],
)
def test_bad_input(words: list[str], says: str, disk: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").write_bytes(bytes(511))
    words = [word.replace("DISK", disk).replace("EMPTY", str(tmp_path / "empty")) for word in words]
    assert says in refused(capsys, *words)


def test_a_file_that_may_not_be_written(
    disk: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "--read-only" in refused(capsys, "--interface", "lo", disk)


def test_exports(disk: str, tmp_path: Path) -> None:
    (tmp_path / "a,b").write_bytes(bytes(1024))
    target = build(
        parse(
            *("--shelf", "1", "--slot", "0", "--interface", "a", "--interface", "b", disk),
            *("--export", f"e1.1={disk},ro", "--export", f"65534.254={tmp_path / 'a,b'}"),
        )
    )
    assert [(str(lun.address), lun.backend.sectors, lun.backend.read_only) for lun in target.exports] == [
        ("e1.0", 5, False),
        ("e1.1", 5, True),
        ("e65534.254", 2, False),
    ]
    assert target.names == ["a", "b"]
    assert len({lun.serial for lun in target.exports}) == 3


def test_options_reach_the_exports(disk: str, tmp_path: Path) -> None:
    target = build(
        parse(
            *("--interface", "a", "--buffers", "7", "--config-string", "hé", "--mask", "02:00:00:00:00:aa"),
            *("--mask", "0200000000cc", "--mask", "02-00-00-00-00-aa", "--serial", "S1", "--sync", "--direct"),
            *("--physical-block-size", "512", "--state-dir", str(tmp_path / "state"), "--fault", "loss=0.5", disk),
        )
    )
    (lun,) = target.exports
    assert (lun.buffers, lun.serial, lun.backend.sync, lun.backend.physical_size) == (7, "S1", True, 512)
    assert lun.backend.direct
    assert (lun.state.config, lun.state.mask) == ("hé".encode(), [ME, OTHER])
    assert target.faults is not None
    assert target.faults.inbound.loss == 0.5
    saved = State.load(str(tmp_path / "state"), Address(0, 0))
    assert (saved.config, saved.mask) == ("hé".encode(), [ME, OTHER])
    again = build(parse("--interface", "a", "--state-dir", str(tmp_path / "state"), disk)).exports[0]
    assert (again.state.config, again.state.mask) == ("hé".encode(), [ME, OTHER])


def test_read_only_holds_for_every_export(disk: str) -> None:
    target = build(parse("--interface", "a", "--read-only", "--export", f"e1.1={disk}", disk))
    assert all(lun.backend.read_only for lun in target.exports)


@pytest.mark.parametrize("like", list(PERSONALITIES))
def test_like(like: str, disk: str) -> None:
    (lun,) = build(parse("--interface", "a", "--like", like, disk)).exports
    assert lun.like is PERSONALITIES[like]
    assert lun.buffers == PERSONALITIES[like].buffers


def test_one_address_twice_in_python(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"e7\.3 is exported twice"):
        Target([make_lun(tmp_path), make_lun(tmp_path)], ["a"])
