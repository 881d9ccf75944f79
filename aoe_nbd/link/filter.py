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
    """The filter as an array of `struct sock_filter`; with `address`, for frames of that LUN only."""
    # Each test: what to load, how to compare it with what, and the outcome that lets the frame pass.
    tests = [
        (_LD, _PKTTYPE, _JEQ, _PACKET_OTHERHOST, False),
        (_LDB, _VLAN_PRESENT, _JEQ, 0, True),
        (_LDH, 12, _JEQ, ETHERTYPE, True),
        (_LDB, 14, _JSET, _RESPONSE, accept is Accept.RESPONSES),
    ]
    if address is not None:
        tests += [(_LDH, 16, _JEQ, address.shelf, True), (_LDB, 18, _JEQ, address.slot, True)]
    rules = []  # (code, value, skip if true, skip if false), skips counted in instructions; the last two are the verdicts
    for i, (load, at, compare, value, passes) in enumerate(tests):
        drop = 2 * (len(tests) - 1 - i) + 1
        rules += [(load, at, 0, 0), (compare, value, 0 if passes else drop, drop if passes else 0)]
    rules += [(_RET, 0xFFFFFFFF, 0, 0), (_RET, 0, 0, 0)]
    return b"".join(struct.pack("HBBI", code, yes, no, value) for code, value, yes, no in rules)


def attach(sock: socket.socket, accept: Accept, address: Address | None = None) -> None:
    """Filter `sock` from its next frame on."""
    code = ctypes.create_string_buffer(program(accept, address))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(code))
    )
