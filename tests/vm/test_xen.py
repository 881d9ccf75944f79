# SPDX-License-Identifier: BSD-3-Clause
"""Guests of two Xen hosts with their root on AoE: started, moved while they write, and none of it lost or overwritten.

The tests are steps of one story, in the order of the file: the hosts, and from the third step on the guest, stay.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import xen
from fixtures import FAILED, Rack, Storage, Target
from machine import ROOT, Machine, Segment
from steps import refused
from wire import Wire
from xen import Guest, check_root

FULL = "AOE_NBD_LAB_FULL" in os.environ  # scripts/lab xen: with what takes too long for each change
OUTAGE = 60 if FULL else 15  # s that the storage is away
TABLE = ROOT / "build" / "xen.md"
SCRIPT = "vdev=xvda,format=raw,access=rw,script=block-aoe,target="


@dataclass
class Row:
    """A line of the table of a run; times in seconds."""

    step: str
    took: float = 0.0
    downtime: float | None = None  # between the last change of one host and the first of the other, or of the guest's records
    records: int = 0
    writes: tuple[int, int] = (0, 0)  # by host
    refused: int = 0
    says: str = ""


class Lab:
    """The hosts, their storage, what is on the wire between them, and what came of it all."""

    def __init__(self, stack: ExitStack, package: Path, say: Callable[[str], None]) -> None:
        self.segment: Segment | None = Segment(machines=2)
        stack.callback(self.segment.close)
        began = time.monotonic()
        self.hosts: list[Machine] = []
        stack.callback(self._switch_off)
        self.hosts += xen.start_hosts(self.segment, package)
        say(f"two Xen hosts are ready after {time.monotonic() - began:.1f} s")
        self.wire = Wire(self.segment)
        stack.callback(self.wire.close)
        self.storage = Storage(self)
        stack.callback(self.storage.close)
        self.disk = self.storage.disk()
        xen.make_root(self.disk, 64)
        self.target: Target = self.storage.target(self.disk, "--state-dir", self.storage.folder)
        self.guest = Guest(self.hosts, "guest1", f"{SCRIPT}e1.0")
        self.rows: list[Row] = []
        self.broken = False

    def _switch_off(self) -> None:
        for host in self.hosts:
            host.close()

    @contextmanager
    def row(self, step: str, guest: Guest | None = None, slot: int = 0) -> Iterator[Row]:
        """A line of the table: its time, records and writes are those of what is done meanwhile."""
        guest = guest or self.guest
        row, began, since, before = Row(step), time.monotonic(), time.time(), len(guest.records)
        yield row
        row.took = row.took or time.monotonic() - began
        row.records = len(guest.records) - before
        changes = [self.wire.of(port, slot, since) for port in (0, 1)]
        row.writes = (sum(c.landed for c in changes[0]), sum(c.landed for c in changes[1]))
        row.refused = sum(not c.landed for each in changes for c in each)
        self.rows.append(row)

    def handed_over(self, source: int, since: float, slot: int = 0) -> float:
        """No write of the source's after the destination's first was carried out; returns the time between them, in s."""
        first = self.wire.of(1 - source, slot, since)[0].sent
        before = [c.sent for c in self.wire.of(source, slot) if c.sent < first]
        late = [c for c in self.wire.of(source, slot, first) if c.landed]
        assert not late, f"{len(late)} of the source's writes landed after the destination's first, the first of them {late[0]}"
        return first - before[-1]


@pytest.fixture(scope="module")
def story(rack: Rack, package: Path) -> Iterator[Lab]:
    rack.clear()
    with ExitStack() as stack:
        lab = Lab(stack, package, rack.say)
        yield lab
        TABLE.write_text(table(lab.rows))
        rack.say(f"what came of it\n{TABLE.read_text()}")


@pytest.fixture
def lab(request: pytest.FixtureRequest, story: Lab) -> Iterator[Lab]:
    """For one step of the story."""
    if story.broken:
        pytest.skip("a step before it has failed")
    yield story
    story.broken = request.node.stash.get(FAILED, False)


def table(rows: list[Row]) -> str:
    """As Markdown."""
    head = ["step", "time", "downtime", "records", *(f"writes by {name}" for name in xen.HOST_NAMES), "late, refused"]
    lines = [head, ["---"] + ["--:"] * (len(head) - 1)]
    for row in rows:
        downtime = "" if row.downtime is None else f"{row.downtime:.1f} s"
        step = row.step + (f": {row.says}" if row.says else "")
        lines.append([step, f"{row.took:.1f} s", downtime, *map(str, (row.records, *row.writes, row.refused))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def status(host: Machine, address: str = "e1.0") -> dict[str, Any]:
    """What `aoe-nbd status` says of that disk."""
    (bridge,) = json.loads(host.sh(f"aoe-nbd status --json {address}"))
    (lun,) = bridge["luns"]
    assert isinstance(lun, dict)
    return lun


def test_root_on_aoe(lab: Lab) -> None:
    """Flush, discard and growth reach the disk from within the guest, whose network sees nothing of its storage."""
    guest, host = lab.guest, lab.hosts[0]
    with lab.row("a guest starts, writes, discards, grows, ends") as row:
        row.says = f"up after {guest.create(0):.1f} s"
        assert "/dev/xvda / ext4" in guest.sh("cat /proc/mounts")
        assert "write back" in guest.sh("cat /sys/block/xvda/queue/write_cache")
        guest.sh("dd if=/dev/urandom of=/noise bs=64k count=128 conv=fsync 2>/dev/null")
        occupied = lab.disk.stat().st_blocks
        guest.sh("rm /noise; sync; fstrim /")
        assert lab.disk.stat().st_blocks < occupied - (4 << 11)
        os.truncate(lab.disk, 96 << 20)
        guest.sh("until [ $(cat /sys/block/xvda/size) = 196608 ]; do sleep 0.5; dd if=/dev/xvda of=/dev/null count=1 2>&1; done")
        guest.sh("resize2fs /dev/xvda 2>&1")
        assert int(guest.sh("df -m / | awk 'END { print $2 }'").split()[0]) > 80
        (seen,) = status(host)["guests"]
        done = seen["requests"]
        assert seen["domain"] == "guest1" and done["flush"]["operations"] and done["trim"]["operations"]
        stored = done["write"]["bytes"]
        network = sum(map(int, guest.sh("cat /sys/class/net/eth0/statistics/?x_bytes").split()[:2]))
        assert stored > 8 << 20 and network < 1 << 16, (stored, network)
        row.says += f", {stored >> 20} MiB written, {network} bytes at its network interface"
        guest.shut_down()
        guest.gone(0)
    check_root(lab.disk, guest)


@pytest.mark.skipif(not FULL, reason="a minute for another way to start a guest: sudo scripts/lab xen has it")
def test_pygrub(lab: Lab) -> None:
    """libxl attaches the disk to dom0 first, for pygrub to take the kernel from it."""
    guest = Guest(lab.hosts, "guest0", f"{SCRIPT}e1.0", xen.KERNEL_OF_GUEST)
    with lab.row("a guest with its kernel on its disk (pygrub) starts, ends", guest) as row:
        row.says = f"up after {guest.create(0):.1f} s"
        assert "by=pygrub" in guest.sh("cat /proc/cmdline")
        assert "block-aoe remove backend/vbd/0/" in guest.host.sh("cat /var/log/xen/xen-hotplug.log")
        guest.shut_down()
        guest.gone(0)


def test_vblade(lab: Lab) -> None:
    """It keeps records and reservations in memory alone, and does not need more for a move."""
    disk = lab.storage.disk("vblade")
    xen.make_root(disk, 64)
    lab.storage.vblade(disk, slot=1)
    guest = Guest(lab.hosts, "guest3", f"{SCRIPT}e1.1")
    guest.create(0)
    guest.write()
    moves(lab, "on vblade: it moves while it writes", guest, 1)
    guest.shut_down()
    guest.gone(1)
    check_root(disk, guest)


def test_one_guest_a_disk(lab: Lab) -> None:
    lab.guest.create(0)
    lab.guest.write()
    copy = f"{lab.guest.config}.copy"
    with lab.row("a second guest with its disk is refused, on this host and on the other"):
        jobs = [host.start(f"sed s/guest1/guest2/ {lab.guest.config} >{copy}; xl create {copy}") for host in lab.hosts]
        said = [job.wait() for job in jobs]
    for done, words in zip(said, ("e1.0 is in use by domain guest1", "aoe-nbd takeover e1.0"), strict=True):
        assert done.status not in (0, 124) and words in done.output, done.output
    lab.guest.goes_on()
    assert len(lab.wire.of(1, 0)) == 0


def test_a_migration_that_fails(lab: Lab) -> None:
    """The destination has the disk already when it finds that the network for the guest is missing: it gives the disk back."""
    guest, source = lab.guest, lab.guest.port
    there = lab.hosts[1 - source]
    with lab.row("its destination fails after it has attached the disk: it stays") as row:
        began = time.monotonic()
        there.sh("ip link del guests")
        move = guest.migrate()
        assert move.status != 0, move.output
        guest.goes_on()
        row.downtime = guest.pause(began)
        assert len(lab.wire.of(1 - source, 0, move.began)) == 0
    there.sh("ip link add guests type bridge; ip link set guests up")
    guest.gone(1 - source)


def test_it_moves_to_and_fro(lab: Lab) -> None:
    for _ in range(2):
        moves(lab, "it moves while it writes")


def moves(lab: Lab, step: str, guest: Guest | None = None, slot: int = 0) -> None:
    """It is moved while it writes, and goes on at the other host; nothing of it is left at the one that it left."""
    guest = guest or lab.guest
    source = guest.port
    with lab.row(step, guest, slot) as row:
        move = guest.migrate()
        assert move.status == 0, move.output
        guest.goes_on()
        guest.gone(source)
        row.took = move.seconds
        row.downtime = lab.handed_over(source, move.began, slot)
        row.says = f"{xen.HOST_NAMES[source]} to {xen.HOST_NAMES[guest.port]}"


def test_the_storage_is_away(lab: Lab) -> None:
    with lab.row(f"the target is dead for {OUTAGE} s") as row:
        began = time.monotonic()
        lab.target.kill()
        time.sleep(OUTAGE)
        lab.target.start_again()
        lab.guest.goes_on()
        row.downtime = lab.guest.pause(began - 1)


def test_the_storage_is_away_while_it_moves(lab: Lab) -> None:
    """Whether it can move then or not, it goes on without an error."""
    guest, source = lab.guest, lab.guest.port
    with lab.row(f"the target is dead for {OUTAGE} s while it moves") as row:
        began = time.monotonic()
        with ThreadPoolExecutor(1) as other:  # not the target: what a thread has started ends with it
            moving = other.submit(guest.migrate)
            time.sleep(4)
            lab.target.kill()
            time.sleep(OUTAGE)
            lab.target.start_again()
            move = moving.result()
        row.took = time.monotonic() - began
        guest.goes_on()
        row.downtime = guest.pause(began)
        if move.status == 0:
            lab.handed_over(source, move.began)
            guest.gone(source)
        else:
            guest.gone(1 - source)
        row.says = "moved" if move.status == 0 else "stayed"


def test_a_host_loses_its_power(lab: Lab, rack: Rack) -> None:
    guest = lab.guest
    dead, other = guest.port, 1 - guest.port
    with lab.row("its host loses its power: takeover, start on the other") as row:
        began = time.monotonic()
        guest.goes_on()
        guest.host.close()
        cut = time.time()
        refused(lab.hosts[other], f"xl create {guest.config}", xen.HOST_NAMES[dead], "takeover e1.0")
        lab.hosts[other].sh("aoe-nbd takeover e1.0")
        guest.create(other)
        guest.write()
        row.downtime = guest.pause(began)
        lab.handed_over(dead, cut)
    guest.shut_down()
    guest.gone(other)
    with lab.row("fsck, and all its records in order") as row:
        row.says = f"{check_root(lab.disk, guest)} records on the disk"
