# SPDX-License-Identifier: BSD-3-Clause
"""A running bridge in memory, as the control socket sees one: real devices on a `Lan`, no threads and no packets."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from aoe_nbd.device import Device
from aoe_nbd.host.clients import Clients
from aoe_nbd.host.control import Feed
from aoe_nbd.host.verbs import Verbs
from inmemory import Lan, open_device


def bridge_of(lan: Lan, *devices: Device) -> Any:
    """What `aoe_nbd.bridge.Bridge` is to the verbs, with these devices."""
    links = {
        name: SimpleNamespace(name=name, mac=link.mac, mtu=link.mtu, up=True, dropped=lambda: 0)
        for name, link in lan.links.items()
    }
    engine = SimpleNamespace(links=links, counters=Counter(), locked=devices[0].engine.locked if devices else None)
    return SimpleNamespace(engine=engine, devices=list(devices), feed=Feed(), started=0.0, memory_protected=False)


def verbs(lan: Lan, *devices: Device) -> Verbs:
    """The verbs of such a bridge."""
    return Verbs(bridge_of(lan, *devices), Clients())


def attached(**options: Any) -> tuple[Lan, Device]:
    """A device on a target of ours, past the quarantine of its start."""
    lan = Lan(9000)
    lan.target()
    device = open_device(lan, **options)
    lan.pause(device.initiator.quarantine)
    return lan, device
