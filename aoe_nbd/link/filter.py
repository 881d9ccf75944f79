# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's filter on our sockets (classic BPF): only AoE frames, for this host, of the wanted direction.

Dropping in the kernel keeps a busy segment's other frames from waking us, and keeps two faults out for good: a target
that answers responses (two of them ping-pong for ever), and acting on frames addressed to another host that a bridge
or promiscuous NIC happens to show us. A socket that is for one LUN only gets no frames of the others: a host runs a
process a LUN, all on the same interface, and each answer would wake every one of them.
"""

from __future__ import annotations

import ctypes
import enum
import socket
import struct

from ..wire.address import Address
from ..wire.codes import ALL_SHELVES, ALL_SLOTS

ETHERTYPE = 0x88A2

_LDB, _LDH, _LD, _JEQ, _JSET, _RET = 0x30, 0x28, 0x20, 0x15, 0x45, 0x06
_PKTTYPE, _VLAN_PRESENT = 0xFFFFF004, 0xFFFFF030  # SKF_AD_OFF + SKF_AD_PKTTYPE, + SKF_AD_VLAN_TAG_PRESENT
_PACKET_OTHERHOST = 3
_SO_ATTACH_FILTER = 26
_RESPONSE = 0x08  # of byte 14


class Accept(enum.Enum):
    """Which frames a socket wants: an initiator RESPONSES, a target REQUESTS."""

    RESPONSES = "responses"
    REQUESTS = "requests"


def program(accept: Accept, address: Address | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`; with `address`, for frames of that LUN only (or, of requests, to all)."""
    responses = accept is Accept.RESPONSES
    # Each test: what to load, how to compare it with which alternatives, and the outcome that lets the frame pass.
    tests: list[tuple[int, int, int, tuple[int, ...], bool]] = [
        (_LD, _PKTTYPE, _JEQ, (_PACKET_OTHERHOST,), False),
        (_LDB, _VLAN_PRESENT, _JEQ, (0,), True),
        (_LDH, 12, _JEQ, (ETHERTYPE,), True),
        (_LDB, 14, _JSET, (_RESPONSE,), responses),
    ]
    if address is not None:
        shelf, slot = address
        tests += [
            (_LDH, 16, _JEQ, (shelf,) if responses else (ALL_SHELVES, shelf), True),
            (_LDB, 18, _JEQ, (slot,) if responses else (ALL_SLOTS, slot), True),
        ]
    rules = []  # (code, value, skip if true, skip if false), skips counted in instructions; the last two are the verdicts
    drop = sum(1 + len(values) for _, _, _, values, _ in tests) + 1
    for load, at, compare, values, passes in tests:
        rules.append((load, at, 0, 0))
        rules += [(compare, value, len(values) - i, 0) for i, value in enumerate(values[:-1], 1)]
        drop -= 1 + len(values)
        rules.append((compare, values[-1], 0 if passes else drop, drop if passes else 0))
    rules += [(_RET, 0xFFFFFFFF, 0, 0), (_RET, 0, 0, 0)]
    return b"".join(struct.pack("HBBI", code, yes, no, value) for code, value, yes, no in rules)


def attach(sock: socket.socket, accept: Accept, address: Address | None = None) -> None:
    """Filter `sock` from its next frame on."""
    code = ctypes.create_string_buffer(program(accept, address))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(code))
    )
