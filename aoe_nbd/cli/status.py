# SPDX-License-Identifier: BSD-3-Clause
"""Show how running bridges do: one line each, or all of one disk: identity, durability, paths, latency, losses, events.

--guests has one line for each disk of a Xen domain instead: what the domain itself has read and written, and how fast the
target answers.

Exit status 0 if every bridge answers and reaches its target, 3 if a target does not answer, 1 if a bridge does not.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..host.control import ControlError
from ..wire.codes import aoe_error_text
from . import guests, show
from .bridges import add_arguments as add_bridge
from .bridges import chosen

_UNREACHED, _NO_BRIDGE = 3, 1
_EVENTS = 10
_DONE = {"read": "read", "write": "written", "flush": "flushed", "trim": "trimmed"}

# What a counter counts, by its name.
_MEANINGS = (
    (r"sent", "frames sent for clients"),
    (r"resent", "of these: further copies of what seemed lost"),
    (r"lost", "copies that counted as lost"),
    (r"lost_overtaken", "of these: because later ones were answered"),
    (r"timeouts", "times that nothing was answered for a whole timeout"),
    (r"probes", "copies sent to see whether the last ones got lost"),
    (r"probes_needless", "of these: those had not got lost"),
    (r"late", "answers to copies that had counted as lost"),
    (r"spurious", "answers to what was answered already"),
    (r"ghosts", "copies of finished writes that might still have landed, and were waited for"),
    (r"held_overlap", "requests that waited for others of the same sectors"),
    (r"held_quarantine", "requests that waited for an older bridge's writes to land or vanish"),
    (r"held_quiesced", "requests that waited while quiesced"),
    (r"held_target_away", "requests that came while no path was up"),
    (r"dead", "times that the target did not answer for long"),
    (r"announced", "announcements of the target"),
    (r"split_smaller", "frames that were too large for the target, and were split"),
    (r"size_stepped_down", "times that large frames got lost, and were made smaller"),
    (r"path_(\w+)", r"times that a path became \1"),
    (r"failed_(\w+)", r"requests that failed with \1"),
    (r"send_failed_(\w+)", r"frames that the interface did not take: \1"),
    (r"dropped_ring_full", "frames that came faster than they were taken"),
    (r"dropped_(\w+)", r"frames not taken, for their \1"),
    (r"link_error_(\w+)", r"errors of an interface: \1"),
    (r"link_changes", "changes of an interface"),
    (r"faults", "internal errors: please report them"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    add_bridge(parser, several=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--guests", action="store_true", help="show the disks of Xen domains")


def run(args: argparse.Namespace) -> int:
    """Ask, print, and return the exit status."""
    found: list[tuple[str, dict[str, Any] | ControlError]] = []
    for bridge in chosen(args):
        try:
            found.append((bridge.name, bridge.ask("status")))
        except ControlError as error:
            found.append((bridge.name, error))
    answers = [answer for _, answer in found if not isinstance(answer, ControlError)]
    errors = [answer for _, answer in found if isinstance(answer, ControlError)]
    luns = [lun for answer in answers for lun in answer["luns"]]
    for lun in luns:
        lun["guests"] = guests.of_lun(lun)
    if args.json:
        show.dump([answer if isinstance(answer, dict) else _silent(name, answer) for name, answer in found])
    elif args.guests:
        guests.table({lun["address"]: lun["guests"] for lun in luns})
    elif args.address or args.control:
        for answer in answers:
            for lun in answer["luns"]:
                _whole(answer, lun)
            if not answer["luns"]:
                print(f"bridge {answer['version']}, process {answer['pid']}: serves no disk yet")
    else:
        _list(found)
    if not args.json:
        for problem in errors:
            show.warn("status", problem.strerror or str(problem))
    if errors:
        return _NO_BRIDGE
    return 0 if all(lun["state"] == "up" for lun in luns) else _UNREACHED


def _silent(name: str, error: ControlError) -> dict[str, Any]:
    return {"address": name, "error": error.strerror}


def duration(seconds: float) -> str:
    """In two units at most: `3 h 12 min`."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    for unit, size, lesser, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    raise AssertionError(seconds)


def state_of(lun: Mapping[str, Any]) -> str:
    """How a LUN does, in a few words."""
    words = [lun["state"]]
    if lun["quiesced"]:
        words.append("quiet" if lun["quiet"] else "quiesced")
    if fenced(lun):
        words.append(lun["fence"]["state"])
    if lun["state"] != "up":
        words.append(f"for {duration(lun['silent_s'])}")
    return " ".join(words)


def fenced(lun: Mapping[str, Any]) -> bool:
    """Whether another host has taken it over."""
    return bool((lun.get("fence") or {}).get("taken_over"))


def _owner(fence: Mapping[str, Any]) -> str:
    """Who owns a LUN that is guarded, in a sentence."""
    if fence["above"]:
        return f"{fence['above']}; here ({fence['host']}) it is {fence['state']}"
    guard = "recorded and reserved" if fence["reserves"] else "recorded"
    tag = "" if fence["tag"] == "-" else f", tag {fence['tag']}"
    if fence["state"] in ("held", "moving"):
        return f"this host, {fence['host']} (epoch {fence['epoch']}, {fence['state']}{tag}), {guard}"
    why = f": {fence['why']}" if fence["why"] else ""
    return f"{fence['state']}{why}"


def meaning(counter: str) -> str:
    """What a counter counts."""
    if match := re.fullmatch(r"aoe_error_(\d+)", counter):
        return f"refusals of the target: {aoe_error_text(int(match[1]))}"
    if match := re.fullmatch(r"ata_error_(\w\w)_(\w\w)", counter):
        return f"errors of the disk: status {match[1]}h, error {match[2]}h"
    for pattern, text in _MEANINGS:
        if match := re.fullmatch(pattern, counter):
            return match.expand(text)
    return ""


# -- all bridges -------------------------------------------------------------------------------------------------------


def _list(found: list[tuple[str, dict[str, Any] | ControlError]]) -> None:
    head = ("ADDRESS", "STATE", "SIZE", "MODE", "PATHS", "WAITING", "READ", "WRITTEN", "FAILED", "CLIENTS", "UPTIME")
    rows = []
    for name, answer in found:
        if isinstance(answer, ControlError):
            rows.append([name, "no bridge", *[""] * 9])
            continue
        for lun in answer["luns"]:
            up = sum(path["state"] == "up" for path in lun["paths"])
            failed = sum(count for counter, count in lun["counters"].items() if counter.startswith("failed_"))
            rows.append(
                [
                    lun["address"],
                    state_of(lun),
                    show.size(lun["size_bytes"]),
                    "ro" if lun["read_only"] else "rw",
                    f"{up}/{len(lun['paths'])}",
                    str(lun["waiting"]),
                    show.size(lun["served"]["read"]["bytes"]),
                    show.size(lun["served"]["write"]["bytes"]),
                    str(failed),
                    str(answer["clients"]),
                    duration(answer["uptime_s"]),
                ]
            )
    show.table(head, rows)


# -- one LUN -----------------------------------------------------------------------------------------------------------


def _whole(bridge: Mapping[str, Any], lun: Mapping[str, Any]) -> None:
    mode = "read-only" if lun["read_only"] else "read-write"
    print(f"{lun['address']}: {state_of(lun)}, {show.size(lun['size_bytes'])} ({lun['size_bytes']} bytes), {mode}")
    rows = list(_facts(bridge, lun))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
    if lun["guests"]:
        print()
        guests.table({lun["address"]: lun["guests"]})
    _paths(lun)
    _latency(lun)
    _counters({**lun["counters"], **bridge["counters"]})
    _events(lun)


def _facts(bridge: Mapping[str, Any], lun: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    identity = lun["identity"]
    wwn = f", WWN {identity['wwn']}" if identity["wwn"] else ""
    yield "disk", show.text(f"{identity['model']} {identity['firmware']}, serial {identity['serial']}{wwn}")
    yield "durability", lun["durability"]
    yield "offers", ", ".join(name for name, offered in lun["offers"].items() if offered) or "reading and writing only"
    fence = lun.get("fence") or {"mode": "off"}
    yield "policy", f"on-dead={lun['on_dead']}, fence={fence['mode']}"
    if fence["mode"] != "off":
        yield "owner", _owner(fence)
    clients = f"{bridge['clients']} NBD client{'s' * (bridge['clients'] != 1)}"
    locked = ", memory protected" if bridge["memory_protected"] else ""
    up = duration(bridge["uptime_s"])
    slow = "" if bridge.get("compiled", True) else ", not compiled"
    yield "bridge", f"version {bridge['version']}{slow}, process {bridge['pid']}, up {up}, {clients}{locked}"
    held = f", held for {duration(lun['silent_s'])}" if lun["waiting"] and lun["state"] != "up" else ""
    yield (
        "requests",
        f"{lun['waiting']} not done{held}; {lun['outstanding']} frames on the wire, {lun['ghosts']} ghosts",
    )
    if lun["quarantine_s"]:
        yield "quarantine", f"writes wait for those of an older bridge, {lun['quarantine_s']:.1f} s more"
    for name, served in lun["served"].items():
        size = f", {show.size(served['bytes'])}" if served["bytes"] else ""
        yield _DONE[name], f"{served['operations']} times{size}"


def _paths(lun: Mapping[str, Any]) -> None:
    head = (
        "INTERFACE",
        "TARGET",
        "STATE",
        "MTU",
        "SECTORS",
        "BUFFERS",
        "WINDOW",
        "OUT",
        "RTT",
        "LEAST",
        "LOSS",
        "HEARD",
    )
    rows = []
    for path in lun["paths"]:
        sectors = path["sectors"]
        through = f"{sectors['read']}/{sectors['write']}"
        best = next((path["classes"][name] for name in ("read", "write", "control") if name in path["classes"]), None)
        answers = sum(each["answers"] for each in path["classes"].values())
        unanswered = sum(each["unanswered"] for name, each in path["classes"].items() if name != "probe")
        rows.append(
            [
                path["interface"],
                path["mac"],
                path["state"],
                str(path["mtu"]),
                through if through != f"{sectors['most']}/{sectors['most']}" else str(sectors["most"]),
                str(path["buffers"]),
                f"{path['window']:g}",
                str(path["outstanding"]),
                show.milliseconds(best["srtt_s"]) if best else "",
                show.milliseconds(best["least_s"]) if best else "",
                f"{unanswered / (answers + unanswered):.2%}" if answers else "",
                f"{duration(path['heard_s'])} ago",
            ]
        )
    print()
    show.table(head, rows)


def _latency(lun: Mapping[str, Any]) -> None:
    rows = []
    for path in lun["paths"]:
        for name, each in path["classes"].items():
            percentiles = [f"< {show.milliseconds(value)}" for value in each["percentiles_s"].values()]
            rows.append(
                [path["interface"], path["mac"], name, str(each["answers"]), f"{each['loss']:.2%}", *percentiles]
            )
    if rows:
        print()
        show.table(("INTERFACE", "TARGET", "COMMANDS", "ANSWERS", "LOSS", "P50", "P99", "P99.9"), rows)


def _counters(counters: Mapping[str, int]) -> None:
    rows = [[str(count), name, meaning(name)] for name, count in sorted(counters.items()) if count]
    if rows:
        print()
        show.table(("COUNT", "COUNTER", "MEANING"), rows, fold=("MEANING",))


def _events(lun: Mapping[str, Any]) -> None:
    rows = [
        [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"])), show.text(event["text"])]
        for event in lun["history"][-_EVENTS:]
    ]
    if rows:
        print()
        show.table(("WHEN", "EVENT"), rows, fold=("EVENT",))
