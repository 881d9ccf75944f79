# SPDX-License-Identifier: BSD-3-Clause
"""Attaching: what is found, what it can do, and one clear sentence for each way in which it cannot be used."""

from __future__ import annotations

import dataclasses
import errno
import logging

import pytest

from aoe_nbd.device import MAX_REQUEST, Device, DeviceError, durability, find
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import SECTOR, AoeError, Command
from aoe_nbd.wire.identify import Identify
from inmemory import (
    E1_0,
    IDENTITY,
    REMOTE,
    REMOTE2,
    STRANGER,
    Lan,
    MemoryBackend,
    MemoryEngine,
    Scripted,
    config_reply,
    open_device,
    refusal,
    virtual_time,
)


def with_identify(identify: Identify) -> Device:
    lan = Lan()
    lan.peer(Scripted(identify=identify))
    return open_device(lan)


def refused(lan: Lan, **options: object) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        open_device(lan, **options)  # type: ignore[arg-type]
    assert lan.initiators == []  # nothing is left behind
    assert "\n" not in str(caught.value.strerror)
    return caught.value


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("flush_ext", [False, True])
def test_flush_is_offered_as_identify_says(flush: bool, flush_ext: bool) -> None:
    device = with_identify(dataclasses.replace(IDENTITY, flush=flush, flush_ext=flush_ext))
    assert device.can_flush is (flush or flush_ext)


def test_capabilities_follow_identify() -> None:
    plain = with_identify(IDENTITY)
    assert (plain.can_write, plain.native_fua, plain.can_trim, plain.can_zero) == (True, False, False, False)
    rich = dataclasses.replace(
        IDENTITY, fua=True, trim=True, trim_zeroes=True, vendor_known=True, logical_size=512, physical_size=4096
    )
    device = with_identify(rich)
    assert (device.can_write, device.native_fua, device.can_trim, device.can_zero) == (True, True, True, True)
    assert not with_identify(dataclasses.replace(rich, vendor_known=False)).can_zero  # RZAT lies on some disks
    assert not with_identify(dataclasses.replace(rich, trim_zeroes=False)).can_zero
    assert not with_identify(dataclasses.replace(rich, lba48=False)).native_fua  # its opcode is a 48-bit one
    assert not with_identify(dataclasses.replace(rich, read_only=True)).can_write


@pytest.mark.parametrize(
    ("logical", "physical", "expected"),
    [
        (512, 512, (512, 4096)),
        (512, 4096, (512, 4096)),
        (4096, 4096, (4096, 4096)),
        (512, 16384, (512, 16384)),
        (65536, 1 << 25, (65536, 1 << 25)),
    ],
)
def test_block_sizes(logical: int, physical: int, expected: tuple[int, int]) -> None:
    device = with_identify(dataclasses.replace(IDENTITY, logical_size=logical, physical_size=physical))
    assert device.block_size == (*expected, MAX_REQUEST)


def test_size_is_in_bytes_and_follows_growth() -> None:
    lan = Lan()
    port = lan.target(sectors=1001)
    device = open_device(lan)
    assert device.size == 1001 * SECTOR
    port.disk.sectors = 2000
    lan.run(lambda: device.size == 2000 * SECTOR, most=30)
    device.write(memoryview(bytearray(512)), 1999 * SECTOR)


def test_a_whole_2_pib_disk_can_be_addressed() -> None:
    device = with_identify(dataclasses.replace(IDENTITY, sectors=(1 << 48) - 1))
    assert device.size == ((1 << 48) - 1) * SECTOR


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"sync_writes": True, "true_flush": True}, "every acknowledged write is on stable storage"),
        ({"true_flush": True}, "an acknowledged flush is on stable storage, a write before it may not be"),
        ({}, "the target acknowledges flushes; whether they reach stable storage is up to it"),
        ({"flush": False, "flush_ext": False}, "the target offers no flush: durability is up to its own settings"),
        (
            {"model": "Coraid EtherDrive vblade"},
            "flushes are acknowledged but not carried out: writes are durable only if vblade was started with -s or -d",
        ),
        (
            {"model": "ggaoed"},
            "flushes are acknowledged but not carried out: durability is up to ggaoed's own direct-io setting",
        ),
    ],
)
def test_durability_is_told_once_at_start(
    facts: dict[str, object], sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    identify = dataclasses.replace(IDENTITY, vendor_known=True, **facts)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "aoe_nbd"):
        with_identify(identify)
    assert [r.getMessage() for r in caplog.records].count(f"e1.0: {sentence}") == 1
    assert durability(identify) == sentence


def test_the_log_says_what_was_attached(caplog: pytest.LogCaptureFixture) -> None:
    lan = Lan()
    lan.target("vblade", sectors=2048)
    with caplog.at_level(logging.INFO, "aoe_nbd"):
        open_device(lan)
    assert any("e1.0: Coraid EtherDrive vblade V25, serial 1.0:" in r.getMessage() for r in caplog.records)
    assert any("2048 sectors, by eth0 to 02:00:00:00:02:01" in r.getMessage() for r in caplog.records)


def test_nobody_answers() -> None:
    lan = Lan()
    lan.target(address=Address(9, 9))
    problem = refused(lan, timeout=2.0)
    assert problem.errno == errno.ENODEV
    assert problem.strerror == (
        "no answer from e1.0 within 2 s on eth0: `aoe-nbd discover` shows the exports that answer there; "
        "check shelf and slot, the interface, the cable or VLAN, and that the target runs"
    )


def test_a_mac_that_does_not_serve_the_address() -> None:
    lan = Lan()
    lan.target()
    problem = refused(lan, macs=[STRANGER], timeout=1.0)
    assert problem.errno == errno.ENODEV
    assert problem.strerror == "mac=02:00:00:00:02:ff does not serve e1.0: 02:00:00:00:02:01 does"
    problem = refused(lan, macs=[REMOTE, STRANGER], timeout=1.0)
    assert problem.strerror == "mac=02:00:00:00:02:ff does not serve e1.0: `aoe-nbd discover` shows the MACs that do"


def test_given_macs_are_the_paths_and_no_others() -> None:
    lan = Lan()
    disk = MemoryBackend(4096)
    for mac in (REMOTE, REMOTE2, STRANGER):
        lan.target(disk=disk, mac=mac, serial="one")
    device = open_device(lan, macs=[REMOTE, REMOTE2])
    assert [path.remote for path in device.initiator.paths] == [REMOTE, REMOTE2]
    lan.ports[2].announce(lan.now)
    lan.pause(1)
    assert len(device.initiator.paths) == 2


def test_two_macs_with_one_disk_but_only_one_wanted() -> None:
    """Two different disks at one address: mac= says which, and then there is no quarrel."""
    lan = Lan()
    lan.target(serial="mine", mac=REMOTE)
    lan.target(serial="other", mac=REMOTE2)
    assert refused(lan).errno == errno.ENOTUNIQ
    lan = Lan()
    lan.target(serial="mine", mac=REMOTE)
    lan.target(serial="other", mac=REMOTE2)
    assert open_device(lan, macs=[REMOTE2]).identify.serial == "other"


def test_capacity_zero() -> None:
    lan = Lan()
    lan.peer(Scripted(identify=dataclasses.replace(IDENTITY, sectors=0)))
    problem = refused(lan, timeout=1.0)
    assert problem.errno == errno.ENODEV
    assert "has a capacity of zero" in str(problem.strerror)


def test_an_mtu_too_small_for_a_sector() -> None:
    lan = Lan(mtu=547)
    lan.target(mtu=1500)
    problem = refused(lan)
    assert problem.errno == errno.EINVAL
    assert problem.strerror == "interface eth0 has an MTU of 547, too small for one sector: AoE needs 548"


def test_an_mtu_for_one_sector() -> None:
    lan = Lan(mtu=548)
    lan.target()
    device = open_device(lan)
    data = bytearray(range(256)) * 20
    device.write(memoryview(data), 0)
    again = bytearray(len(data))
    device.read(memoryview(again), 0)
    assert again == data


def test_query_config_is_answered_but_identify_is_not() -> None:
    lan = Lan()
    lan.peer(lambda f: [config_reply(f)] if f[19] == Command.CONFIG else [])
    problem = refused(lan, timeout=1.0)
    assert problem.errno == errno.ENODEV
    assert problem.strerror == "e1.0 answers Query Config but not IDENTIFY"


def test_identify_is_refused() -> None:
    lan = Lan()
    lan.peer(
        lambda f: [config_reply(f)] if f[19] == Command.CONFIG else [refusal(f, AoeError.TARGET_RESERVED)],
    )
    problem = refused(lan, timeout=1.0)
    assert "IDENTIFY: target refuses: target is reserved" in str(problem.strerror)


def test_query_config_is_refused() -> None:
    lan = Lan()
    lan.peer(lambda f: [refusal(f, 1)])
    assert "no answer from e1.0" in str(refused(lan, timeout=1.0).strerror)


@pytest.mark.parametrize("buffers", [0, 1])
def test_a_buffer_count_of_0_or_1_works(buffers: int) -> None:
    lan = Lan()
    lan.target("vblade", buffers=buffers)
    device = open_device(lan)
    data = bytearray(b"q" * 100_000)
    device.write(memoryview(data), 3)
    again = bytearray(len(data))
    device.read(memoryview(again), 3)
    assert again == data


def test_find_lists_each_lun_link_and_mac_once() -> None:
    lan = Lan()
    disk = MemoryBackend(4096)
    for address, mac in ((E1_0, REMOTE), (E1_0, REMOTE2), (Address(7, 3), REMOTE)):
        lan.target(disk=disk, address=address, mac=mac)
    lan.target(disk=disk, mac=REMOTE, link="eth1")
    with virtual_time(lan):
        found = find(MemoryEngine(lan), None, 2.0, grace=None)  # type: ignore[arg-type]
    assert sorted((str(a.address), a.link, a.mac) for a in found) == [
        ("e1.0", "eth0", REMOTE),
        ("e1.0", "eth0", REMOTE2),
        ("e1.0", "eth1", REMOTE),
        ("e7.3", "eth0", REMOTE),
    ]


def test_a_device_that_is_not_open_has_no_size() -> None:
    lan = Lan()
    with virtual_time(lan):
        device = Device(MemoryEngine(lan), E1_0)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="not open"):
        _ = device.size
