# SPDX-License-Identifier: BSD-3-Clause
"""Ethernet interfaces of this network namespace, and what happens to them (rtnetlink, by pyroute2)."""

from __future__ import annotations

import errno
import os
import select
from dataclasses import dataclass
from typing import Any

_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
_ARPHRD_ETHER = 1
_RTMGRP_LINK = 1
_RTM_DELLINK = "RTM_DELLINK"


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
    def _of(cls, message: Any) -> Interface:
        flags = message["flags"]
        mac = message.get_attr("IFLA_ADDRESS") or "00:00:00:00:00:00"
        return cls(
            name=message.get_attr("IFLA_IFNAME") or "",
            index=message["index"],
            mac=bytes.fromhex(mac.replace(":", ""))[:6].ljust(6, b"\0"),
            mtu=message.get_attr("IFLA_MTU") or 0,
            up=bool(flags & _IFF_UP),
            running=bool(flags & _IFF_UP and flags & _IFF_RUNNING),
            loopback=bool(flags & _IFF_LOOPBACK),
            ethernet=message["ifi_type"] == _ARPHRD_ETHER,
        )


def interfaces() -> list[Interface]:
    """All interfaces of this namespace, by index."""
    from pyroute2 import IPRoute  # here, not above: importing it takes longer than most of what we do at start

    with IPRoute() as route:
        return sorted((Interface._of(m) for m in route.get_links()), key=lambda i: i.index)


def interface(name: str) -> Interface | None:
    """The interface of that name, or None."""
    return next((i for i in interfaces() if i.name == name), None)


class InterfaceWatch:
    """Changes of interfaces as they happen: poll `fileno()`, then `read()`.

    To be made in the process that reads it (after nbdkit's fork).
    """

    def __init__(self) -> None:
        from pyroute2 import IPRoute

        self._route = IPRoute()
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
                (Interface._of(m), m["event"] != _RTM_DELLINK)
                for m in messages
                if m["event"] in ("RTM_NEWLINK", _RTM_DELLINK)
            ]
        return changes

    def close(self) -> None:
        self._route.close()


def raw_sockets_hint() -> str:
    """What to do where the kernel refuses a raw socket."""
    return f"run as root, or give the process CAP_NET_RAW (uid is {os.geteuid()})"
