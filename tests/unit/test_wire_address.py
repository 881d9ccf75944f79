# SPDX-License-Identifier: BSD-3-Clause
"""AoE and MAC addresses as people type them, and the one sentence that each mistake gets."""

from __future__ import annotations

import pytest

from aoe_nbd.wire.address import Address, format_mac, parse_address, parse_mac, parse_shelf, parse_slot


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("e1.0", (1, 0)),
        ("1.0", (1, 0)),
        (" e7.254 ", (7, 254)),
        ("e65534.254", (65534, 254)),
        ("e0.0", (0, 0)),
        ("e007.03", (7, 3)),
    ],
)
def test_addresses(text: str, address: tuple[int, int]) -> None:
    assert parse_address(text) == address
    assert str(Address(*address)) == f"e{address[0]}.{address[1]}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' is not an AoE address: give e<shelf>.<slot>, such as e1.0"),
        ("e1", "'e1' is not an AoE address: give e<shelf>.<slot>, such as e1.0"),
        ("e1.0.0", "'e1.0.0' is not an AoE address: give e<shelf>.<slot>, such as e1.0"),
        ("E1.0", "'E1.0' is not an AoE address: give e<shelf>.<slot>, such as e1.0"),
        ("e-1.0", "'e-1.0' is not an AoE address: give e<shelf>.<slot>, such as e1.0"),
        ("e1.0\n1", "'e1.0\\n1' is not an AoE address: give e<shelf>.<slot>, such as e1.0"),
        ("e65535.0", "shelf=65535 is out of range: give 0 to 65534"),
        ("e1.255", "slot=255 is out of range: give 0 to 254"),
        ("e70000.300", "shelf=70000 is out of range: give 0 to 65534"),
        ("e1.٣", "slot=٣ is not a number: give 0 to 254"),
    ],
)
def test_addresses_that_are_none(text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        parse_address(text)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("text", ["", "x", "-1", "+1", "1.5", "0x10", "1e3", " ", "1 2", "²"])
def test_shelf_and_slot_that_are_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="is not a number: give 0 to 65534"):
        parse_shelf(text)
    with pytest.raises(ValueError, match="is not a number: give 0 to 254"):
        parse_slot(text)


def test_an_absurdly_long_number_is_out_of_range() -> None:
    with pytest.raises(ValueError, match="is out of range: give 0 to 65534"):
        parse_shelf("9" * 5000)


@pytest.mark.parametrize(
    "text",
    ["02:00:00:00:0a:01", "02-00-00-00-0A-01", "020000000a01", " 02:00:00:00:0A:01 ", "02000000 0a01".replace(" ", "")],
)
def test_macs(text: str) -> None:
    assert parse_mac(text) == bytes.fromhex("020000000a01")
    assert format_mac(parse_mac(text)) == "02:00:00:00:0a:01"


@pytest.mark.parametrize(
    "text",
    [
        *["", "02:00:00:00:0a", "02:00:00:00:0a:01:02", "02:00:00:00:0a:0", "2:0:0:0:a:1", "02:00:00:00:0g:01"],
        *["0200.0000.0a01", "02:00:00:00:0a:01,", "02 00 00 00 0a 01", "eth0", "02::00:00:0a:01", "0x020000000a01"],
        *["020:00:00:00:0a:1", "020000:0000:0a:0:1", "02:00:0000-0a:01-", ":::::020000000a01"],
    ],
)
def test_macs_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a MAC address: give six hex bytes"):
        parse_mac(text)


@pytest.mark.parametrize("text", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"])
def test_macs_that_no_card_has(text: str) -> None:
    with pytest.raises(ValueError, match="is no unicast address: give the MAC of the target's network card"):
        parse_mac(text)
