# SPDX-License-Identifier: BSD-3-Clause
"""Ethernet interfaces of this network namespace, and what happens to them.

What there is, the kernel tells by ioctl; what changes, by rtnetlink (pyroute2). Importing pyroute2 takes as long as all
else at start together, and nobody waits for it here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from dataclasses import dataclass
from typing import Any

from .. import netlink

_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
_ARPHRD_ETHER = 1
_RTMGRP_LINK = 1
_IFNAMSIZ = 16
_IFREQ = struct.Struct(f"{_IFNAMSIZ}s24x")  # struct ifreq: the name, and what is asked for
_QUESTIONS = (
    (0x8913, struct.Struct("H")),  # SIOCGIFFLAGS
    (0x8921, struct.Struct("i")),  # SIOCGIFMTU
    (0x8927, struct.Struct("H6s")),  # SIOCGIFHWADDR: a struct sockaddr
)
_RTM_DELLINK = "RTM_DELLINK"


class LinkError(OSError):
    """An interface that cannot be used; the message is one sentence that says which, why, and what to do."""


@dataclass(frozen=True)
class Interface:
    """One interface as rtnetlink describes it. `running` is up with carrier; `mtu` in bytes."""

    name: str
    index: int
    mac: bytes
    mtu: int
    up: bool
    running: bool
    loopback: bool
    ethernet: bool

    @classmethod
    def of(cls, name: str, index: int, mac: bytes, mtu: int, flags: int, kind: int) -> Interface:
        """From the kernel's words: `flags` are IFF_*, `kind` is an ARPHRD_*."""
        return cls(
            name=name,
            index=index,
            mac=mac,
            mtu=mtu,
            up=bool(flags & _IFF_UP),
            running=bool(flags & _IFF_UP and flags & _IFF_RUNNING),
            loopback=bool(flags & _IFF_LOOPBACK),
            ethernet=kind == _ARPHRD_ETHER,
        )

    @classmethod
    def of_message(cls, message: Any) -> Interface:
        """From an rtnetlink message."""
        name = message.get_attr("IFLA_IFNAME") or ""
        mac = bytes.fromhex((message.get_attr("IFLA_ADDRESS") or "").replace(":", ""))[:6].ljust(6, b"\0")
        mtu = message.get_attr("IFLA_MTU") or 0
        return cls.of(name, message["index"], mac, mtu, message["flags"], message["ifi_type"])


def interfaces() -> list[Interface]:
    """All interfaces of this namespace, by index."""
    found: list[Interface] = []
    # Any family will do. The systemd unit allows this one, and not the usual AF_INET
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        for index, name in sorted(socket.if_nameindex()):
            try:
                flags, mtu, (kind, mac) = (
                    layout.unpack_from(fcntl.ioctl(asker, number, _IFREQ.pack(os.fsencode(name))), _IFNAMSIZ)
                    for number, layout in _QUESTIONS
                )
            except OSError as error:
                if error.errno == errno.ENODEV:  # gone meanwhile
                    continue
                raise
            found.append(Interface.of(name, index, mac, mtu[0], flags[0], kind))
    return found


def interface(name: str) -> Interface | None:
    """The interface of that name, or None."""
    return next((i for i in interfaces() if i.name == name), None)


class InterfaceWatch:
    """Changes of interfaces as they happen: poll `fileno()`, then `read()`.

    To be made in the process that reads it (after nbdkit's fork), and where the import of a part of pyroute2 hurts nobody.
    """

    def __init__(self) -> None:
        with netlink.parts():
            # Here for the sake of those who only ask; and no more of it than a socket, for an attach waits for this import.
            from pyroute2.netlink.rtnl.iprsocket import IPRSocket

        self._route = IPRSocket()
        self._route.bind(groups=_RTMGRP_LINK)
        self._poll = select.poll()
        self._poll.register(self._route.fileno(), select.POLLIN)

    def fileno(self) -> int:
        return int(self._route.fileno())

    def read(self) -> list[tuple[Interface, bool]] | None:
        """(interface, still exists) for each message that waits; None if some were lost, so ask `interfaces()`."""
        changes: list[tuple[Interface, bool]] = []
        while self._poll.poll(0):
            try:
                messages = self._route.get()
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return None
                raise
            changes += [
                (Interface.of_message(m), m["event"] != _RTM_DELLINK)
                for m in messages
                if m["event"] in ("RTM_NEWLINK", _RTM_DELLINK)
            ]
        return changes

    def close(self) -> None:
        self._route.close()


def raw_sockets_hint() -> str:
    """What to do where the kernel refuses a raw socket."""
    return f"run as root, or give the process CAP_NET_RAW (uid is {os.geteuid()})"
