# SPDX-License-Identifier: BSD-3-Clause
"""The quirks of other targets, each as it was seen on the wire (reference section 2)."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
from target_kit import (
    EVERYONE,
    ME,
    OK,
    OTHER,
    SECTORS,
    US,
    ask,
    ata,
    config,
    frame,
    head,
    make_lun,
    mask,
    read28,
    read48,
    regs,
    reserve,
    sector,
    silent,
    write28,
    write48,
)

from aoe_nbd.target import PERSONALITIES
from aoe_nbd.target.personality import JUNK
from aoe_nbd.wire.identify import Identify

NEW = b"new!" * 128
NOT_ME = bytes.fromhex("020000000099")
ALL = list(PERSONALITIES)


def words(data: bytes) -> dict[int, int]:
    """The words of IDENTIFY data that are not zero, without strings and capacity."""
    values = struct.unpack("<256H", data)
    strings = {*range(10, 20), *range(23, 47), 60, 61, 100, 101, 102, 103}
    return {i: value for i, value in enumerate(values) if value and i not in strings}


@pytest.mark.parametrize("like", ALL)
def test_what_all_have_in_common(tmp_path: Path, like: str) -> None:
    lun = make_lun(tmp_path, like)
    lun.announce(US, 1500)
    assert ask(lun, read28(5, 2))[36:] == sector(5) + sector(6)
    assert ask(lun, read48(5))[36:] == sector(5)
    assert regs(ask(lun, write48(9, NEW)))[3] == OK
    assert ask(lun, read28(9))[36:] == NEW
    assert regs(ask(lun, ata(0x06, data=bytes(512), flags=0x41, feature=1)))[1:4:2] == (0x04, 0x41)
    assert ask(lun, ata(0x20, 5, dst=NOT_ME))[36:] == sector(5)  # nobody looks at the destination
    assert Identify.parse(ask(lun, ata(0xEC))[36:]).sectors == SECTORS
    assert ask(lun, config(3, b"abc"))[14] & 4 == 0
    assert ask(lun, config(0, shelf=0xFFFF, slot=0xFF, dst=EVERYONE))[32:] == b"abc"
    os.truncate(lun.backend.path, 4 * SECTORS * 512)
    assert not lun.refresh()
    assert Identify.parse(ask(lun, ata(0xEC))[36:]).sectors == SECTORS


# -- vblade ----------------------------------------------------------------------------------------------------------


def test_vblade_announces_with_version_0(tmp_path: Path) -> None:
    (frame_,) = make_lun(tmp_path, "vblade").announce(US, 1500)
    assert frame_[14:32].hex() == "080000070301000000000010401902100000"
    assert len(frame_) == 32


def test_vblade_header(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    assert ask(lun, read28(5, verfl=0x23, error=0x77))[14:16] == b"\x2b\x77"
    assert ask(lun, read28(5, 3, error=0x77))[14:16] == b"\x1c\x02"
    request = frame(9, b"abcdef" * 20)
    assert ask(lun, request) == head(9, 0x1C, 1) + request[24:]


def test_vblade_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lun = make_lun(tmp_path, "vblade")
    monkeypatch.delattr(os, "fdatasync")  # it is never called
    seen = {regs(ask(lun, ata(0xE7, n=0)))[1::2] for _ in range(100)}
    assert seen == {(0x00, 0), (0x04, 0), (0x10, 0)}
    assert regs(ask(lun, ata(0xEA, n=0, flags=0x40)))[1::2] == (0x04, 0x41)


def test_vblade_goes_by_the_opcode(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    assert ask(lun, ata(0x20, 5 | 0xF << 28, flags=0x40))[36:] == sector(5)
    assert regs(ask(lun, ata(0x24, (1 << 32) + 5)))[1::2] == (0x10, 0x41)


def test_vblade_lengths_follow_the_w_flag(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    assert ask(lun, read28(5, flags=1))[36:] == sector(5)[:24]
    assert len(ask(lun, read28(5, 0))) == 60
    assert regs(ask(lun, read28(SECTORS, 0)))[1::2] == (0, OK)
    assert regs(ask(lun, read28(SECTORS + 1, 0)))[1::2] == (0x10, 0x41)
    assert ask(lun, write28(9, NEW, flags=0))[36:] == NEW
    assert ask(lun, write28(9, NEW))[36:] == NEW[:24]
    assert len(ask(lun, read28(SECTORS))) == 36
    assert len(ask(lun, write28(SECTORS, NEW))) == 60
    assert len(ask(lun, ata(0xEC, flags=1))) == 60
    assert len(ask(lun, config(0))) == 32
    assert len(ask(lun, mask(0))) == 28
    assert len(ask(lun, reserve(0))) == 26


def test_vblade_pads_with_other_peoples_data(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    reply = ask(lun, read28(5, 3, pad=False))
    assert reply == head(0, 0x1C, 2) + bytes.fromhex("00000320050000e000000000") + (JUNK * 2)[:24]


def test_vblade_counts_what_remains(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    assert regs(ask(lun, read28(5, 2))) == (0x18, 0, 0, OK)
    assert regs(ask(lun, read28(SECTORS, 2))) == (0x18, 0x10, 2, 0x41)
    os.truncate(lun.backend.path, 6 * 512)
    reply = ask(lun, read28(5, 2))
    assert (regs(reply), reply[36:]) == ((0x18, 0x04, 1, 0x41), sector(5))


def test_vblade_looks_at_the_mtu_only_when_its_config_is_asked(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    lun.announce(US, 1500)
    assert ask(lun, read28(5, 17), mtu=9000)[14:16] == b"\x1c\x02"
    assert ask(lun, config(0), mtu=9000)[28] == 17
    assert len(ask(lun, read28(5, 17), mtu=9000)) == 36 + 17 * 512


def test_vblade_identify(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    data = ask(lun, ata(0xEC))[36:]
    found = Identify.parse(data)
    assert (found.serial, found.firmware, found.model) == (
        f"7.3:{socket.gethostname()}"[:20],
        "V25",
        "Coraid EtherDrive vblade",
    )
    assert words(data) == {
        47: 0x8000,
        49: 0x0200,
        50: 0x4000,
        83: 0x5400,
        84: 0x4000,
        86: 0x1400,
        87: 0x4000,
        93: 0x400B,
    }
    assert ask(lun, ata(0xEC, n=2))[14:16] == b"\x1c\x02"


def test_vblade_config_string_leaks(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    reply = ask(lun, config(4, b"ab", 20, pad=False))
    assert reply[32:] == b"ab" + JUNK[:18]
    silent(lun, config(4, b"ab", 200), "length")
    silent(lun, config(4, b"ab" * 1000, 1025), "length")


def test_vblade_breaks_masks_of_three(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade")
    a1, a2, a3 = (b"\2aaaa" + bytes([i]) for i in (1, 2, 3))
    for mac in (ME, a1, a2, a3):
        reply = ask(lun, mask(1, (1, mac)))
    assert reply[27] == 4
    assert reply[28:] == b"".join(b"\0\0" + mac for mac in (ME, a3, bytes(6), bytes(6)))
    assert ask(lun, mask(1, (2, a3)))[27] == 4
    lun.state.mask = [ME]
    assert ask(lun, mask(1, (2, ME)))[27] == 0


def test_vblade_read_only(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "vblade", read_only=True)
    assert regs(ask(lun, write28(9, NEW))) == (0x18, 0x04, 1, 0x41)
    assert regs(ask(lun, write28(9, b"")))[3] == OK


# -- ggaoed ----------------------------------------------------------------------------------------------------------


def test_ggaoed_flush_status_is_the_opcode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lun = make_lun(tmp_path, "ggaoed")
    monkeypatch.delattr(os, "fdatasync")
    assert regs(ask(lun, ata(0xE7, n=0)))[1::2] == (0, 0xE7)
    assert regs(ask(lun, ata(0xEA, n=0, flags=0x40)))[1::2] == (0, 0xEA)


def test_ggaoed_reorders_what_comes_together(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "ggaoed")
    old, new = b"A" * 512, b"B" * 512
    replies = lun.handle_batch([write28(31, old, tag=1), write28(30, new + new, tag=2)], US, 1500)
    assert ask(lun, read28(31))[36:] == old
    assert [reply[23] for reply in replies] == [2, 1]


def test_ggaoed_errors(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "ggaoed")
    assert regs(ask(lun, read28(5, 3))) == (0x18, 0x04, 3, 0x41)
    assert regs(ask(lun, read28(5, 0))) == (0x18, 0x04, 0, 0x41)
    assert regs(ask(lun, write28(5, NEW, n=2))) == (0x18, 0x04, 2, 0x41)
    assert regs(ask(lun, read28(5, 2))) == (0x18, 0, 2, OK)
    assert len(ask(lun, read28(SECTORS))) == 36
    assert ask(lun, read28(5, flags=1))[36:] == sector(5)
    ask(lun, config(3, b"abc"))
    assert ask(lun, config(3, b"zzz", pad=False)) == head(1, 0x1C, 4) + b"zzz"
    request = frame(9, bytes(range(40)))
    reply = ask(lun, request)
    assert (len(request), len(reply)) == (64, 88)
    assert reply == head(9, 0x1C, 1) + request
    silent(lun, frame(4, b""), "command")
    silent(lun, read28(5, verfl=0), "version")
    silent(lun, read28(5, verfl=0x20), "version")


def test_ggaoed_goes_by_the_e_flag(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "ggaoed")
    assert ask(lun, ata(0x24, (1 << 32) + 5))[36:] == sector(5)
    assert regs(ask(lun, ata(0x20, 5 | 0xE << 28, flags=0x40)))[1] == 0x10


def test_ggaoed_config_and_identify(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "ggaoed")
    assert ask(lun, config(0))[24:30].hex() == "001001000210"
    data = ask(lun, ata(0xEC))[36:]
    assert words(data) == {48: 1, 49: 0x0200, 55: 0x10, 56: 0xFF, 83: 0x7400, 86: 0x7400}
    assert (Identify.parse(data).model, Identify.parse(data).firmware) == ("ggaoed", "1.1")


def test_ggaoed_reservation(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "ggaoed")
    assert ask(lun, reserve(1, ME), 1500)[14] == 0x18
    assert ask(lun, reserve(1))[14:16] == b"\x1c\x06"  # the owner may not release it
    assert regs(ask(lun, read28(5)))[3] == OK
    assert ask(lun, reserve(2, OTHER))[14] == 0x18
    assert ask(lun, read28(5))[14:16] == b"\x1c\x06"
    assert regs(ask(lun, ata(0xE7, n=0)))[3] == 0xE7
    assert regs(ask(lun, ata(0xE5, n=0)))[3] == OK
    # unsorted by force, searched by halves
    assert ask(lun, reserve(2, OTHER, US, ME))[14] == 0x18
    assert ask(lun, read28(5))[14:16] == b"\x1c\x06"
    assert ask(lun, reserve(2))[14] == 0x18


# -- qaoed -----------------------------------------------------------------------------------------------------------


def test_qaoed_sets_e_with_error_0(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "qaoed")
    for request in (ata(0xE7, n=0), ata(0xEA, n=0, flags=0x40), ata(0xE5, n=0), read28(5, 0)):
        reply = ask(lun, request)
        assert reply[14:16] == b"\x1c\x00"
        assert regs(reply)[1::2] == (0x04, 0x41)


def test_qaoed_checks_no_bounds(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "qaoed")
    reply = ask(lun, read28(SECTORS - 1, 2))
    assert regs(reply) == (0x18, 0, 2, OK)
    assert reply[36:] == sector(SECTORS - 1) + (JUNK * 30)[:512]
    reply = ask(lun, read28(SECTORS))
    assert (reply[14:16], len(reply)) == (b"\x1c\x00", 548)
    assert reply[36:] == (JUNK * 30)[:512]
    assert len(ask(lun, read28(5, 3))) == 36 + 3 * 512
    assert regs(ask(lun, write28(3000, NEW)))[3] == OK
    assert os.path.getsize(lun.backend.path) == 3001 * 512
    assert regs(ask(lun, write28(9, NEW, n=2)))[3] == OK
    assert ask(lun, read28(9, 2))[36:] == NEW + (JUNK * 30)[:512]
    assert regs(ask(lun, read48((1 << 48) - 1)))[3] == 0x41
    assert regs(ask(lun, write48((1 << 48) - 1, NEW)))[3] & 1


def test_qaoed_addressing_and_silence(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "qaoed")
    silent(lun, config(0, slot=0xFF), "other-address")
    silent(lun, config(0, shelf=0xFFFF), "other-address")
    for command in (2, 3, 4, 9):
        silent(lun, frame(command, b""), "command")
    assert ask(lun, read28(5, verfl=0x18))[14] == 0x18  # it answers responses
    assert ask(lun, read28(5, verfl=0x20))[14] == 0x38


def test_qaoed_config(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "qaoed")
    reply = ask(lun, config(3, b"abc"))
    assert (reply[14], reply[30:]) == (0x18, b"\0\0")
    assert ask(lun, config(3, b"abc"))[14:16] == b"\x1c\x04"
    silent(lun, config(1, b"abc"), "no-match")
    assert ask(lun, config(2, b"ab"))[32:] == b"abc"
    assert ask(lun, config(5))[14:16] == b"\x1c\x01"
    ask(lun, config(4, b"ab", 300, pad=False))
    assert ask(lun, config(0))[32:] == b"ab" + (JUNK * 30)[:298]
    assert ask(lun, config(0))[24:28].hex() == "0014400a"


def test_qaoed_identify_strings_are_raw(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "qaoed")
    data = ask(lun, ata(0xEC))[36:]
    assert data[20:40] == lun.backend.path.encode()[:19] + b"\0"
    assert data[54:94] == b"123456789".ljust(40, b"\0")
    assert words(data) == {49: 0x0200, 83: 0x0400, 86: 0x0400}


# -- kvblade ---------------------------------------------------------------------------------------------------------


def test_kvblade_silence(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "kvblade")
    silent(lun, config(0, pad=False), "short")
    silent(lun, read28(5, 0), "no-sectors")
    for command in (2, 3, 9):
        silent(lun, frame(command, b""), "command")


def test_kvblade_ata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lun = make_lun(tmp_path, "kvblade")
    monkeypatch.delattr(os, "fdatasync")
    assert regs(ask(lun, ata(0xE7, n=0)))[1::2] == (0, 0x40)
    assert regs(ask(lun, ata(0xEA, n=0, flags=0x40)))[1::2] == (0x04, 0x41)
    assert regs(ask(lun, ata(0xE5, n=0)))[1::2] == (0x04, 0x41)
    assert regs(ask(lun, read28(SECTORS)))[1::2] == (0x10, 0x01)
    assert regs(ask(lun, read28(5, 2))) == (0x18, 0, 0, OK)
    assert regs(ask(lun, read28(5, 17), mtu=9000))[1::2] == (0x04, 0x41)
    assert len(ask(lun, read28(5, 16), mtu=9000)) == 36 + 16 * 512


def test_kvblade_config(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "kvblade")
    assert ask(lun, config(0), mtu=9000)[24:30].hex() == "040040021010"
    assert ask(lun, config(3, b"abc"))[29] == 0x10
    assert ask(lun, config(3, b"xyz")) == head(1, 0x1C, 4)
    assert ask(lun, config(5)) == head(1, 0x1C, 2)
    assert ask(lun, config(4, b"a", 8, pad=False) + bytes(4))[32:40] == b"a\0\0\0\0" + JUNK[:3]


def test_kvblade_keeps_no_order(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, "kvblade")
    orders = {
        bytes(r[23] for r in lun.handle_batch([write28(9, NEW, tag=i) for i in range(1, 5)], US, 1500))
        for _ in range(50)
    }
    assert len(orders) > 10
    assert {bytes(sorted(order)) for order in orders} == {b"\1\2\3\4"}


def test_mtu_of_1500_carries_2_sectors_for_all(tmp_path: Path) -> None:
    for like, jumbo in [("vblade", 17), ("ggaoed", 17), ("qaoed", 17), ("kvblade", 16)]:
        lun = make_lun(tmp_path, like)
        assert ask(lun, config(0))[28] == 2
        assert ask(lun, config(0), mtu=9000)[28] == jumbo
