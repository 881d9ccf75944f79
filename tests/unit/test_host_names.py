# SPDX-License-Identifier: BSD-3-Clause
"""/dev/etherd: its links follow the device and its partitions, and a name of somebody else's is never touched."""

from __future__ import annotations

import os
import re
import select
from pathlib import Path

import pytest

from aoe_nbd.host import names
from aoe_nbd.wire.address import Address

E10 = Address(1, 0)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes and kernel events")


class Machine:
    """A /dev and a /sys with nbd devices in them."""

    def __init__(self, folder: Path) -> None:
        self.dev, self.sys = folder / "dev", folder / "sys"
        self.dev.mkdir()

    def disk(self, index: int, *partitions: int) -> None:
        block = self.sys / "block" / f"nbd{index}"
        (block / "queue").mkdir(parents=True, exist_ok=True)
        (block / "uevent").touch()
        for number in partitions:
            part = block / f"nbd{index}p{number}"
            part.mkdir()
            (part / "partition").write_text(f"{number}\n")
            (part / "uevent").touch()

    def forget(self, index: int, number: int) -> None:
        part = self.sys / "block" / f"nbd{index}" / f"nbd{index}p{number}"
        for file in part.iterdir():
            file.unlink()
        part.rmdir()

    def make(self, address: Address, index: int) -> Path:
        return names.make(address, index, self.dev, self.sys)

    def refresh(self, address: Address, index: int) -> None:
        names.refresh(address, index, self.dev, self.sys)

    def prune(self, address: Address, index: int) -> None:
        names.prune(address, index, self.dev, self.sys)

    def remove(self, address: Address, index: int | None = None) -> None:
        names.remove(address, index, self.dev, self.sys)

    def links(self) -> dict[str, str]:
        return {entry.name: os.readlink(entry) for entry in (self.dev / "etherd").iterdir()}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_disk_with_partitions(machine: Machine) -> None:
    machine.disk(0, 1, 2, 15)
    machine.disk(1)
    assert machine.make(E10, 0) == machine.dev / "etherd" / "e1.0"
    machine.make(Address(1, 1), 1)
    both = machine.links()
    assert both == {
        "e1.0": "../nbd0",
        "e1.0p1": "../nbd0p1",
        "e1.0p2": "../nbd0p2",
        "e1.0p15": "../nbd0p15",
        "e1.1": "../nbd1",
    }
    machine.make(E10, 0)
    assert machine.links() == both
    machine.remove(E10)
    assert machine.links() == {"e1.1": "../nbd1"}
    machine.remove(Address(1, 1), 1)
    assert not (machine.dev / "etherd").exists()
    machine.remove(E10)


def test_partitions_come_and_go(machine: Machine) -> None:
    machine.disk(0, 1)
    machine.make(E10, 0)
    machine.disk(0, 2)
    machine.forget(0, 1)
    machine.refresh(E10, 0)
    assert machine.links() == {"e1.0": "../nbd0", "e1.0p1": "../nbd0p1", "e1.0p2": "../nbd0p2"}, "it may be back at once"
    machine.prune(E10, 0)
    assert machine.links() == {"e1.0": "../nbd0", "e1.0p2": "../nbd0p2"}
    machine.remove(E10)
    machine.prune(E10, 0)


def test_links_of_an_earlier_device_are_mended(machine: Machine) -> None:
    machine.disk(0, 1)
    machine.make(E10, 0)
    machine.disk(3)
    machine.make(E10, 3)
    assert machine.links() == {"e1.0": "../nbd3"}


def test_names_that_only_begin_alike_are_others(machine: Machine) -> None:
    machine.disk(0)
    machine.disk(1, 1)
    machine.make(Address(1, 0), 0)
    machine.make(Address(1, 1), 1)
    machine.make(Address(11, 0), 1)
    machine.remove(Address(1, 0))
    assert machine.links() == {"e1.1": "../nbd1", "e1.1p1": "../nbd1p1", "e11.0": "../nbd1", "e11.0p1": "../nbd1p1"}


def test_udev_is_told_when_the_device_has_come_and_gone(machine: Machine) -> None:
    machine.disk(0, 1)
    told = [machine.sys / "block/nbd0/uevent", machine.sys / "block/nbd0/nbd0p1/uevent"]
    machine.make(E10, 0)
    assert [file.read_text() for file in told] == ["change\n"] * 2
    told[0].write_text("")
    machine.refresh(E10, 0)
    assert told[0].read_text() == "", "an event for each event would never end"
    machine.remove(E10, 0)
    assert told[0].read_text() == "change\n"


@needs_root
def test_a_device_of_the_kernels_aoe_is_never_touched(machine: Machine) -> None:
    machine.disk(0, 1)
    node = machine.dev / "etherd" / "e1.0"
    node.parent.mkdir()
    os.mknod(node, 0o600 | 0o060000, os.makedev(152, 0))
    for attempt in (lambda: names.check(E10, machine.dev), lambda: machine.make(E10, 0)):
        with pytest.raises(names.NameTaken, match=r"e1\.0 is a device of the kernel's aoe module"):
            attempt()
    machine.remove(E10)
    assert [entry.name for entry in node.parent.iterdir()] == ["e1.0"]
    assert node.is_block_device()


def test_other_things_of_that_name_are_never_touched(machine: Machine) -> None:
    machine.disk(0)
    name = machine.dev / "etherd" / "e1.0"
    name.parent.mkdir()
    name.write_text("precious")
    with pytest.raises(names.NameTaken, match="is no link"):
        machine.make(E10, 0)
    machine.remove(E10)
    assert name.read_text() == "precious"
    name.unlink()
    name.symlink_to("../mapper/precious")
    with pytest.raises(names.NameTaken, match=r"a link to \.\./mapper/precious"):
        machine.make(E10, 0)
    machine.remove(E10)
    assert name.is_symlink()


@needs_root
def test_the_kernels_events_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another device than nbd, since any machine has /dev/null."""
    null = Path("/sys/devices/virtual/mem/null/uevent")

    def heard() -> bool:
        uevents.changed()
        null.write_text("change\n")
        assert select.select([uevents], [], [], 10)[0]
        return uevents.changed()

    uevents = names.Uevents(0)
    assert not heard()
    uevents.close()
    monkeypatch.setattr(names, "about", lambda index: re.compile(rb"change@/devices/virtual/mem/null\0"))
    uevents = names.Uevents(0)
    assert heard()
    assert not uevents.changed()
    uevents.close()


@pytest.mark.parametrize(
    ("message", "ours"),
    [
        (b"add@/devices/virtual/block/nbd1/nbd1p1\0ACTION=add\0", True),
        (b"change@/devices/virtual/block/nbd1\0ACTION=change\0", True),
        (b"change@/devices/virtual/block/nbd10\0ACTION=change\0", False),
        (b"add@/devices/virtual/block/nbd10/nbd10p1\0ACTION=add\0", False),
        (b"change@/devices/virtual/block/nbd1", False),
        (b"", False),
    ],
)
def test_which_events_are_about_the_device(message: bytes, ours: bool) -> None:
    assert bool(names.about(1).match(message)) is ours
