# SPDX-License-Identifier: BSD-3-Clause
"""Print the figures of running bridges in the text format of Prometheus, for its node exporter's textfile collector.

A bridge that does not answer is told by aoe_nbd_bridge_up being 0. With --output the file is replaced as a whole, as that
collector wants it. Exit status 0 even if a bridge does not answer: that is a figure too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..host.control import ControlError
from ..wire.codes import SECTOR
from . import guests
from .bridges import add_arguments as add_bridge
from .bridges import chosen
from .failure import Failure

_LUN, _PATH = ("address",), ("address", "interface", "mac")
_GUEST = ("address", "domain", "uuid", "vdev")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    add_bridge(parser, several=True)
    parser.add_argument("--output", metavar="FILE", help="write them to this file instead, such as …/aoe-nbd.prom")


def run(args: argparse.Namespace) -> int:
    """Ask and print."""
    answers: list[tuple[str, dict[str, Any] | None]] = []
    for bridge in chosen(args):
        try:
            answers.append((bridge.name, bridge.ask("status")))
        except ControlError:
            answers.append((bridge.name, None))
    for _, answer in answers:
        for lun in answer["luns"] if answer else []:
            lun["guests"] = guests.of_lun(lun)
    text = exposition(answers)
    if args.output:
        _replace(args.output, text)
    else:
        print(text, end="")
    return 0


def exposition(answers: Sequence[tuple[str, Mapping[str, Any] | None]]) -> str:
    """The text for the status of each bridge, None for one that did not answer."""
    try:
        from prometheus_client.exposition import generate_latest
    except ImportError:
        raise Failure(
            "prometheus_client is not installed: on Debian, `apt-get install python3-prometheus-client`"
        ) from None
    return generate_latest(_Figures(answers)).decode()  # type: ignore[arg-type]  # it calls collect(), and nothing else


def _replace(path: str, text: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    fd, fresh = tempfile.mkstemp(dir=folder, prefix=".aoe-nbd-")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


class _Figures:
    """A registry, as far as prometheus_client's exposition needs one."""

    def __init__(self, answers: Sequence[tuple[str, Mapping[str, Any] | None]]) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Any]:
        families = _Families()
        for name, answer in self._answers:
            families.gauge("bridge_up", "Whether the bridge answers", ("bridge",), (name,), answer is not None)
            if answer is not None:
                _of_bridge(families, name, answer)
                for lun in answer["luns"]:
                    _of_lun(families, answer, lun)
                    for guest in lun.get("guests", []):
                        _of_guest(families, lun["address"], guest)
                    for path in lun["paths"]:
                        _of_path(families, lun["address"], path)
        yield from families.all()


class _Families:
    """Metric families by name, in the order of their first figures."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def all(self) -> Iterator[Any]:
        yield from self._made.values()

    def _family(self, kind: str, name: str, text: str, labels: Sequence[str]) -> Any:
        if name not in self._made:
            from prometheus_client import core

            make = getattr(core, f"{kind}MetricFamily")
            self._made[name] = make(f"aoe_nbd_{name}", text, labels=list(labels))
        return self._made[name]

    def gauge(self, name: str, text: str, labels: Sequence[str], values: Sequence[str], figure: float) -> None:
        self._family("Gauge", name, text, labels).add_metric(list(values), float(figure))

    def counter(self, name: str, text: str, labels: Sequence[str], values: Sequence[str], figure: float) -> None:
        self._family("Counter", name, text, labels).add_metric(list(values), float(figure))

    def histogram(
        self, name: str, text: str, labels: Sequence[str], values: Sequence[str], counts: Sequence[int], total: float
    ) -> None:
        """`counts[n]` is how many were below 2^n µs and no less than half of it; `total` their sum in seconds."""
        buckets, below = [], 0
        for bits, count in enumerate(counts[:-1]):
            below += count
            buckets.append((f"{(1 << bits) / 1e6:g}", float(below)))
        buckets.append(("+Inf", float(below + counts[-1])))
        self._family("Histogram", name, text, labels).add_metric(list(values), buckets, total)


def _of_bridge(families: _Families, name: str, bridge: Mapping[str, Any]) -> None:
    which = ("bridge",), (name,)
    families.gauge("bridge_uptime_seconds", "Since the bridge was started", *which, bridge["uptime_s"])
    families.gauge("bridge_clients", "NBD connections", *which, bridge["clients"])
    families.gauge("bridge_memory_protected", "Whether it never waits for memory", *which, bridge["memory_protected"])
    for reason, count in sorted(bridge["counters"].items()):
        families.counter("link_events", "What happened at its interfaces", ("bridge", "reason"), (name, reason), count)


def _of_lun(families: _Families, bridge: Mapping[str, Any], lun: Mapping[str, Any]) -> None:
    address = lun["address"]
    this = (_LUN, (address,))
    identity = lun["identity"]
    families.gauge(
        "info",
        "What the disk says of itself, and what serves it",
        ("address", "model", "serial", "firmware", "version"),
        (address, identity["model"], identity["serial"], identity["firmware"], bridge["version"]),
        1,
    )
    families.gauge("up", "Whether some path to the target is up", *this, lun["state"] == "up")
    families.gauge(
        "dead", "Whether the target has been silent for so long that it counts as dead", *this, lun["state"] == "dead"
    )
    families.gauge("silent_seconds", "Since the target, which is away, was last heard", *this, lun["silent_s"])
    families.gauge("quiesced", "Whether new requests are parked", *this, lun["quiesced"])
    fence = lun.get("fence") or {"mode": "off", "state": "off"}
    families.gauge(
        "fence_info",
        "How it is guarded against other hosts, and who owns it",
        ("address", "mode", "state", "owner", "tag"),
        (address, fence["mode"], fence["state"], fence.get("owner", ""), fence.get("tag", "")),
        1,
    )
    families.gauge("fence_epoch", "Number of our record of its owner", *this, fence.get("epoch", 0))
    families.gauge("fenced", "Whether another host has taken it over", *this, bool(fence.get("taken_over")))
    families.gauge("read_only", "Whether it cannot be written", *this, lun["read_only"])
    families.gauge("size_bytes", "Capacity", *this, lun["size_bytes"])
    families.gauge("requests_waiting", "Clients' requests that are not done", *this, lun["waiting"])
    families.gauge("frames_outstanding", "Frames that are not answered yet", *this, lun["outstanding"])
    families.gauge("ghosts", "Copies of finished writes that may still land", *this, lun["ghosts"])
    for operation, served in lun["served"].items():
        labels = (("address", "operation"), (address, operation))
        families.counter("operations", "Clients' requests carried out", *labels, served["operations"])
        if operation != "flush":
            families.counter("bytes", "Of clients' requests carried out", *labels, served["bytes"])
    for reason, count in sorted(lun["counters"].items()):
        families.counter("events", "What happened, by reason", ("address", "reason"), (address, reason), count)


def _of_guest(families: _Families, address: str, guest: Mapping[str, Any]) -> None:
    """What is a guest's own. Its labels stay the same when the domain moves to another host."""
    values = (address, guest["domain"] or "", guest["uuid"] or "", guest["vdev"] or "")
    families.gauge("guest_info", "Which domain has the disk", (*_GUEST, "domid"), (*values, str(guest["domid"])), 1)
    labels = (*_GUEST, "operation")
    for operation, done in (guest["requests"] or {}).items():
        these = (labels, (*values, operation))
        families.counter("guest_operations", "The domain's requests carried out", *these, done["operations"])
        if "bytes" in done:
            families.counter("guest_bytes", "Of the domain's requests carried out", *these, done["bytes"])
    for operation, times in guest["round_trips"].items():
        these = (labels, (*values, operation))
        what = "From a command to the target's answer, on the domain's disk"
        families.histogram("guest_round_trip_seconds", what, *these, times["histogram"], times["total_s"])


def _of_path(families: _Families, address: str, path: Mapping[str, Any]) -> None:
    values = (address, path["interface"], path["mac"])
    this = (_PATH, values)
    families.gauge("path_up", "Whether the path carries requests", *this, path["state"] == "up")
    families.gauge("path_window_frames", "Frames that may be outstanding", *this, path["window"])
    families.gauge("path_outstanding_frames", "Frames that are not answered yet", *this, path["outstanding"])
    families.gauge("path_heard_seconds", "Since something last came by it", *this, path["heard_s"])
    for way in ("read", "write"):
        size = path["sectors"][way] * SECTOR
        families.gauge("path_frame_bytes", "Data of a frame", (*_PATH, "way"), (*values, way), size)
    for name, each in path["classes"].items():
        labels = ((*_PATH, "class"), (*values, name))
        families.histogram(
            "round_trip_seconds", "From a command to its answer", *labels, each["histogram"], each["total_s"]
        )
        families.counter("frames_given_up", "Frames that counted as lost", *labels, each["given_up"])
        families.counter("frames_given_up_answered", "Of these, answered after all", *labels, each["given_up_answered"])
