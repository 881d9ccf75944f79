# SPDX-License-Identifier: BSD-3-Clause
"""A running bridge as plain values, for JSON: what each LUN is, how it is reached, what it does, what has gone wrong.

Made in the bridge at the expense of its guests, so it copies numbers and works nothing out that the reader can. Names end in
their unit where they have one: `_s` seconds, `_bytes`. Times since the start of the bridge, unless `at`, of the epoch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import COMPILED, __version__
from ..core.fence import Phase
from ..core.flight import Flight
from ..core.initiator import Initiator
from ..core.path import Path, PathState
from ..core.request import Kind
from ..device import Device, durability
from ..wire.address import format_mac
from ..wire.codes import SECTOR

if TYPE_CHECKING:
    from ..bridge import Bridge

PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
HISTORY = 32  # events of a LUN that status shows
_SHOWN = {"read": Kind.READ, "write": Kind.WRITE, "flush": Kind.FLUSH, "trim": Kind.TRIM}


def of_bridge(bridge: Bridge, clients: int, devices: Sequence[Device]) -> dict[str, Any]:
    """All of it."""
    engine = bridge.engine
    assert engine is not None
    threads = len(os.listdir("/proc/self/task"))
    with engine.locked():
        for link in engine.links.values():
            engine.counters["dropped_ring_full"] += link.dropped()
        now = time.monotonic()
        found: dict[str, Any] = {
            "version": __version__,
            "compiled": COMPILED,
            "pid": os.getpid(),
            "uptime_s": now - bridge.started,
            "clients": clients,
            "threads": threads,
            "memory_protected": bridge.memory_protected,
            "interfaces": [
                {"name": link.name, "mac": format_mac(link.mac), "mtu": link.mtu, "up": link.up}
                for link in engine.links.values()
            ],
            "counters": dict(engine.counters),
            "luns": [of_device(device, now) for device in devices],
        }
    for lun in found["luns"]:
        lun["history"] = bridge.feed.last(HISTORY, address=lun["address"])
    return found


def of_device(device: Device, now: float) -> dict[str, Any]:
    """One LUN, at monotonic time `now`. To be called while the engine is held off."""
    identify, initiator = device.identify, device.initiator
    least, best, most = device.block_size
    return {
        "address": str(device.address),
        "state": "dead" if initiator.dead else "up" if initiator.up else "away",
        "quiesced": initiator.quiesced,
        "quiet": initiator.quiet(now),
        "fence": of_fence(initiator, now),
        "identity": {
            "model": identify.model,
            "serial": identify.serial,
            "firmware": identify.firmware,
            "wwn": f"{identify.wwn:016x}" if identify.wwn else "",
        },
        "size_bytes": device.size,
        "block_bytes": {"least": least, "best": best, "most": most},
        "read_only": not device.can_write,
        "offers": {
            "flush": device.can_flush,
            "fua": device.native_fua,
            "trim": device.can_trim,
            "zero": device.can_zero,
        },
        "durability": durability(identify),
        "on_dead": str(initiator.on_dead),
        "silent_s": max(0.0, now - initiator.heard) if initiator.dead or not initiator.up else 0.0,
        "waiting": initiator.waiting,
        "withheld": initiator.withheld,
        "outstanding": initiator.outstanding(),
        "ghosts": initiator.ghosts,
        "quarantine_s": max(0.0, initiator.writes_from - now),
        "served": {
            name: {"operations": initiator.served[kind], "bytes": initiator.sectors[kind] * SECTOR}
            for name, kind in _SHOWN.items()
        },
        "paths": [of_path(path, now) for path in initiator.paths],
        "counters": dict(initiator.counters),
    }


def of_fence(initiator: Initiator, now: float) -> dict[str, Any]:
    """Who owns the LUN at monotonic time `now`, as far as it is guarded. `record` is ours, `above` the one that overrides it."""
    fence = initiator.fence
    if fence is None:
        return {"mode": "off", "state": "off", "taken_over": False}
    record, above = fence.record, fence.above
    return {
        "mode": str(fence.mode),
        "state": str(record.state if record is not None and fence.phase is Phase.HOLDING else fence.phase),
        "taken_over": fence.phase in (Phase.YIELDED, Phase.LOST),
        "reserves": fence.enforcing,
        "open": fence.closes_at > now,
        "host": fence.host,
        "tag": fence.tag,
        "epoch": 0 if record is None else record.epoch,
        "owner": fence.host if above is None else above.owner,
        "above": "" if above is None else str(above),
        "why": fence.why,
    }


def of_path(path: Path, now: float) -> dict[str, Any]:
    """One way to a LUN. `sectors` are those of a frame: what gets through each way, and what is allowed."""
    read, write = path.sizes.limit[Kind.READ], path.sizes.limit[Kind.WRITE]
    return {
        "interface": path.link,
        "local": format_mac(path.local),
        "mac": format_mac(path.remote),
        "state": path.state.value,
        "mtu": path.mtu,
        "sectors": {"read": read, "write": write, "most": path.sizes.most},
        "buffers": path.buffers,
        "window": round(path.window.size, 2),
        "outstanding": path.outstanding,
        "heard_s": max(0.0, now - path.heard),
        "suspect": path.state is not PathState.UP or bool(path.strikes),
        "classes": {
            flight.kind.name.lower(): of_flight(flight) for flight in path.flights.values() if any(flight.histogram)
        },
    }


def of_flight(flight: Flight) -> dict[str, Any]:
    """One class of commands by one path. `histogram[n]` counts the round trips below 2^n µs that are no less than half of it."""
    answers = sum(flight.histogram)
    unanswered = max(0, flight.given_up - flight.given_up_answered)  # by now; some may still come
    return {
        "answers": answers,
        "given_up": flight.given_up,
        "given_up_answered": flight.given_up_answered,
        "unanswered": unanswered,
        "loss": unanswered / (answers + unanswered),
        "srtt_s": flight.rtt.srtt,
        "rttvar_s": flight.rtt.rttvar,
        "least_s": flight.rtt.least,
        "rto_s": flight.rtt.rto,
        "outstanding": flight.count,
        "percentiles_s": {name: flight.percentile(share) for name, share in PERCENTILES.items()},
        "histogram": list(flight.histogram),
        "total_s": flight.total,
    }
