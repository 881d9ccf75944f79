# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's filter on our sockets (classic BPF): only AoE frames, for this host, of the wanted direction.

Dropping in the kernel keeps a busy segment's other frames from waking us, and keeps two faults out for good: a target
that answers responses (two of them ping-pong for ever), and acting on frames addressed to another host that a bridge
or promiscuous NIC happens to show us.
"""

from __future__ import annotations

import ctypes
import enum
import socket
import struct

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


def program(accept: Accept) -> bytes:
    """The filter as an array of `struct sock_filter`."""
    responses = accept is Accept.RESPONSES
    # Each rule: (code, value, skip if true, skip if false), skips counted in instructions; the last two are the verdicts.
    rules = [
        (_LD, _PKTTYPE, 0, 0),
        (_JEQ, _PACKET_OTHERHOST, 7, 0),
        (_LDB, _VLAN_PRESENT, 0, 0),
        (_JEQ, 0, 0, 5),
        (_LDH, 12, 0, 0),
        (_JEQ, ETHERTYPE, 0, 3),
        (_LDB, 14, 0, 0),
        (_JSET, _RESPONSE, 0 if responses else 1, 1 if responses else 0),
        (_RET, 0xFFFFFFFF, 0, 0),
        (_RET, 0, 0, 0),
    ]
    return b"".join(struct.pack("HBBI", code, yes, no, value) for code, value, yes, no in rules)


def attach(sock: socket.socket, accept: Accept) -> None:
    """Filter `sock` from its next frame on."""
    code = ctypes.create_string_buffer(program(accept))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(code))
    )
