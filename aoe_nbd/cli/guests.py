# SPDX-License-Identifier: BSD-3-Clause
"""The storage of each guest, as `status`, `list` and `metrics` show it: which domain has which disk, and what it does there.

A domain's own network interfaces show nothing of this, for the frames are its host's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.histogram import percentile
from ..host import state, xen
from ..wire.address import parse_address
from . import show

_PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
_CLASSES = ("read", "write", "flush")  # a trim counts as a flush there
_OPERATIONS = ("read", "write", "flush", "trim")


def of_lun(lun: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The guests that have an attached disk: see `xen.guests`. Round trips are the disk's, since its bridge was started."""
    found = xen.guests(list(state.Folder(parse_address(lun["address"])).holders()))
    times = _round_trips(lun) if found else {}
    return [{**guest, "round_trips": times} for guest in found]


def _round_trips(lun: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of all paths together, by class of commands."""
    found = {}
    for name in _CLASSES:
        classes = [path["classes"][name] for path in lun["paths"] if name in path["classes"]]
        histogram = [sum(counts) for counts in zip(*(each["histogram"] for each in classes), strict=True)]
        if not histogram:
            continue
        found[name] = {
            "answers": sum(histogram),
            "total_s": sum(each["total_s"] for each in classes),
            "percentiles_s": {label: percentile(histogram, share) for label, share in _PERCENTILES.items()},
            "histogram": histogram,
        }
    return found


def name_of(guest: Mapping[str, Any]) -> str:
    """`d1 xvda`; its numbers where the names are not known, as of a domain that there is no more."""
    if guest["exists"] is False:
        return f"{guest['holder']} (domain is gone)"
    if guest["domain"] is None or guest["vdev"] is None:
        return str(guest["holder"])
    return f"{show.text(guest['domain'])} {guest['vdev']}"


def table(guests: Mapping[str, list[dict[str, Any]]]) -> None:
    """Print those of each LUN, by its address."""
    head = ("GUEST", "DISK", "MODE", "READS", "READ", "WRITES", "WRITTEN", "FLUSHES", "TRIMS", "READ P99", "WRITE P99")
    rows = []
    for address, found in guests.items():
        for guest in found:
            cells = [name_of(guest), address, {"r": "ro", "w": "rw"}.get(guest["access"] or "", "")]
            for name in _OPERATIONS:
                done = (guest["requests"] or {}).get(name, {})
                cells.append(str(done["operations"]) if done else "")
                if name in ("read", "write"):
                    cells.append(show.size(done["bytes"]) if done else "")
            for name in ("read", "write"):
                times = guest["round_trips"].get(name)
                cells.append(f"< {show.milliseconds(times['percentiles_s']['p99'])}" if times else "")
            rows.append(cells)
    show.table(head, rows)
