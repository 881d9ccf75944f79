# SPDX-License-Identifier: BSD-3-Clause
"""AoE addresses (`e<shelf>.<slot>`) and MAC addresses as people write them."""

from __future__ import annotations

import re
from typing import NamedTuple

from .codes import MAX_SHELF, MAX_SLOT


class Address(NamedTuple):
    """Shelf (major) and slot (minor) of one LUN."""

    shelf: int
    slot: int

    def __str__(self) -> str:
        return f"e{self.shelf}.{self.slot}"


def _number(text: str, what: str, limit: int) -> int:
    if not re.fullmatch(r"[0-9]+", text.strip()):
        raise ValueError(f"{what}={text} is not a number: give 0 to {limit}")
    if len(text.strip().lstrip("0")) > len(str(limit)) or (value := int(text)) > limit:
        raise ValueError(f"{what}={text} is out of range: give 0 to {limit}")
    return value


def parse_shelf(text: str) -> int:
    """A shelf, 0 to 65534 (65535 addresses all shelves). Raises ValueError."""
    return _number(text, "shelf", MAX_SHELF)


def parse_slot(text: str) -> int:
    """A slot, 0 to 254 (255 addresses all slots). Raises ValueError."""
    return _number(text, "slot", MAX_SLOT)


def parse_address(text: str) -> Address:
    """`e1.0` or `1.0` as an Address. Raises ValueError."""
    match = re.fullmatch(r"e?(\d+)\.(\d+)", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not an AoE address: give e<shelf>.<slot>, such as e1.0")
    return Address(parse_shelf(match[1]), parse_slot(match[2]))


def parse_mac(text: str) -> bytes:
    """A unicast MAC address, six hex bytes joined by colons, hyphens or nothing. Raises ValueError."""
    match = re.fullmatch(r"[0-9A-Fa-f]{2}([:-]?)(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}", text.strip())
    if not match:
        raise ValueError(f"mac={text} is not a MAC address: give six hex bytes, such as 02:00:00:00:00:01")
    mac = bytes.fromhex(match[0].replace(":", "").replace("-", ""))
    if mac[0] & 1 or not any(mac):
        raise ValueError(f"mac={text} is no unicast address: give the MAC of the target's network card")
    return mac


def format_mac(mac: bytes) -> str:
    """`02:00:00:00:00:01`."""
    return mac.hex(":")
