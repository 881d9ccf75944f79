# SPDX-License-Identifier: BSD-3-Clause
"""What people type: what each word means, and one sentence for each that means nothing."""

from __future__ import annotations

import pytest

from aoe_nbd.cli import config, mask, reserve, words
from aoe_nbd.cli.failure import Failure
from aoe_nbd.cli.ping import Probe
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import ConfigCommand, MaskDirectiveCommand, ReserveCommand

A, B, C = (bytes([2, 0, 0, 0, 0, i]) for i in (1, 2, 3))
ADD, DELETE = MaskDirectiveCommand.ADD, MaskDirectiveCommand.DELETE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("e1.0", (1, 0)),
        ("7.12", (7, 12)),
        ("all", (65535, 255)),
        ("e65535.255", (65535, 255)),
        ("e7.255", (7, 255)),
        ("65535.3", (65535, 3)),
    ],
)
def test_addresses(text: str, expected: tuple[int, int]) -> None:
    assert words.addresses(text) == Address(*expected)


@pytest.mark.parametrize("text", ["", "e1", "1.0.0", "e70000.1", "e1.256", "eth0", "e-1.0", "e1.0x", "every"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(Failure):
        words.addresses(text)
    with pytest.raises(Failure):
        words.address(text)


@pytest.mark.parametrize("text", ["all", "e65535.255", "e1.255", "e65535.1"])
def test_a_wildcard_is_not_one_disk(text: str) -> None:
    assert words.is_wild(words.addresses(text))
    with pytest.raises(Failure):
        words.address(text)


def test_the_sentence_has_value_and_way_out() -> None:
    with pytest.raises(Failure, match=r"shelf=70000 .* give 0 to 65534"):
        words.address("e70000.0")
    with pytest.raises(Failure, match=r"slot=255 .* give 0 to 254"):
        words.address("e1.255")
    with pytest.raises(Failure, match=r"mac=02:00 is not a MAC address: give six hex bytes"):
        words.mac("02:00")
    with pytest.raises(Failure, match="mac=ff:ff:ff:ff:ff:ff is no unicast address"):
        words.mac("ff:ff:ff:ff:ff:ff")
    with pytest.raises(Failure, match="--interval 0 is not usable: give a number from 1 to 2"):
        words.number("--interval", "0", 1, 2)
    with pytest.raises(Failure, match=r"-c 1\.5 is not usable: give a whole number from 1 to 9"):
        words.whole("-c", "1.5", 1, 9)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e3", "1,5", "", "."])
def test_no_numbers(text: str) -> None:
    with pytest.raises(Failure):
        words.number("-t", text, 0, 10)


def test_mac_lists_have_every_one_once() -> None:
    assert words.macs(["02:00:00:00:00:01,02-00-00-00-00-02", "020000000001"]) == [A, B]


# -- config --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["e1.0"], (ConfigCommand.READ, (1, 0), b"")),
        (["read", "all"], (ConfigCommand.READ, (65535, 255), b"")),
        (["test", "all", ""], (ConfigCommand.TEST, (65535, 255), b"")),
        (["prefix", "e1.255", "ab"], (ConfigCommand.TEST_PREFIX, (1, 255), b"ab")),
        (["set", "e1.0", "grün"], (ConfigCommand.SET, (1, 0), "grün".encode())),
        (["fset", "e1.0", "x" * 1024], (ConfigCommand.FORCE_SET, (1, 0), b"x" * 1024)),
    ],
)
def test_config_words(typed: list[str], expected: object) -> None:
    assert config.request(typed) == expected


@pytest.mark.parametrize(
    "typed",
    [
        ["read"],
        ["e1.0", "x"],
        ["test", "e1.0"],
        ["set", "e1.0", "two", "words"],
        ["set", "all", "x"],
        ["fset", "e1.255", "x"],
        ["set", "e1.0", "x" * 1025],
        ["write", "e1.0", "x"],
    ],
)
def test_config_nonsense(typed: list[str]) -> None:
    with pytest.raises(Failure):
        config.request(typed)


# -- mask ----------------------------------------------------------------------------------------------------------------


def test_mask_edits_pass_argparse() -> None:
    typed = mask.prepare(["e1.0", "+02:00:00:00:00:01", "-02:00:00:00:00:02", "-f2:00:00:00:00:02", "-i", "-t", "1"])
    assert typed[0] == "e1.0" and typed[-3:] == ["-i", "-t", "1"]
    assert [mask.directive(word) for word in typed[1:4]] == [(ADD, A), (DELETE, B), (DELETE, b"\xf2" + B[1:])]
    for word in ("02:00:00:00:00:01", "+", "+xx", "*"):
        with pytest.raises(Failure):
            mask.directive(word)


@pytest.mark.parametrize(
    ("before", "edits", "after"),
    [
        ([], [(ADD, A)], [A]),
        ([A], [(ADD, A)], [A]),
        ([A, B], [(DELETE, A)], [B]),
        ([A], [(DELETE, B)], [A]),
        ([A], [(DELETE, A), (ADD, A), (ADD, C)], [A, C]),
        ([A], [(ADD, B), (DELETE, B)], [A]),
    ],
)
def test_mask_result(before: list[bytes], edits: mask.Directives, after: list[bytes]) -> None:
    assert mask.edited(before, edits) == after


# -- reserve -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], None),
        (["--set", "02:00:00:00:00:01,02:00:00:00:00:02"], (ReserveCommand.SET, (A, B))),
        (["--release"], (ReserveCommand.SET, ())),
        (["--force", "02:00:00:00:00:03"], (ReserveCommand.FORCE_SET, (C,))),
        (["--force-release"], (ReserveCommand.FORCE_SET, ())),
    ],
)
def test_reserve_options(typed: list[str], expected: tuple[int, tuple[bytes, ...]] | None) -> None:
    from aoe_nbd.cli import Parser

    parser = Parser("x", "")
    reserve.add_arguments(parser)
    found = reserve.request(parser.parse_args(["e1.0", *typed]))
    assert (None if found is None else (found.rcmd, found.macs)) == expected


# -- ping ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "read"), [("-1", None), ("x", None), ("70000", None), (None, "0"), (None, "256"), ("1", "1")]
)
def test_ping_sizes(size: str | None, read: str | None) -> None:
    with pytest.raises(Failure):
        Probe.of(size, read)
