# SPDX-License-Identifier: BSD-3-Clause
"""Command 0 of our target: every opcode, address form and refusal, on bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from target_kit import (
    E28,
    EVERYONE,
    ME,
    OK,
    SECTORS,
    US,
    ask,
    ata,
    frame,
    head,
    make_lun,
    read28,
    read48,
    regs,
    sector,
    silent,
    write28,
    write48,
)

from aoe_nbd.target import Backend, Lun
from aoe_nbd.wire.identify import Identify

ABORT = (0x18, 0x04, 1, 0x41)
NEW = b"new!" * 128


@pytest.fixture
def lun(tmp_path: Path) -> Lun:
    return make_lun(tmp_path)


def disk(lun: Lun) -> bytes:
    return Path(lun.backend.path).read_bytes()


def test_read_28_is_exact_to_the_byte(lun: Lun) -> None:
    expected = head(0) + bytes.fromhex("00000240050000e000000000") + sector(5) + sector(6)
    assert ask(lun, read28(5, 2)) == expected


def test_read_48_is_exact_to_the_byte(lun: Lun) -> None:
    assert ask(lun, read48(5)) == head(0) + bytes.fromhex("400001400500000000000000") + sector(5)


def test_read_follows_the_mtu(lun: Lun) -> None:
    assert ask(lun, read48(3, 17), mtu=9000)[36:] == b"".join(sector(lba) for lba in range(3, 20))
    assert ask(lun, read48(3, 18), mtu=9000)[14:16] == b"\x1c\x02"
    assert ask(lun, read48(3, 3), mtu=1500)[14:16] == b"\x1c\x02"
    assert ask(lun, read48(3, 1), mtu=576)[36:] == sector(3)


@pytest.mark.parametrize("write", [write28, write48], ids=["28", "48"])
def test_write(lun: Lun, write: object) -> None:
    reply = ask(lun, write(9, NEW + NEW[::-1]))  # type: ignore[operator]
    assert (regs(reply), len(reply)) == ((0x18, 0, 2, OK), 60)
    assert reply[36:] == bytes(24)
    assert disk(lun) == b"".join(sector(i) for i in range(9)) + NEW + NEW[::-1] + b"".join(
        sector(i) for i in range(11, SECTORS)
    )


def test_a_write_ignores_bytes_past_its_count(lun: Lun) -> None:
    ask(lun, write28(9, NEW + b"x" * 300, n=1))
    assert disk(lun)[9 * 512 : 11 * 512] == NEW + sector(10)


def test_lba_past_2_to_the_32(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.touch()
    far = (1 << 32) + 5
    os.truncate(path, (far + 10) * 512)
    lun = make_lun(tmp_path)
    assert regs(ask(lun, write48(far, NEW)))[3] == OK
    assert ask(lun, read48(far))[36:] == NEW
    assert ask(lun, read48(5))[36:] == bytes(512)
    # 28 bits reach 2^28 - 1 and no further
    ask(lun, write48((1 << 28) - 1, NEW))
    assert ask(lun, read28((1 << 28) - 1))[36:] == NEW
    # 0xe0 left in lba3 of a 48-bit command is an address
    ask(lun, write48(0xE0000007, NEW[::-1]))
    assert ask(lun, read48(0xE0000007))[36:] == NEW[::-1]
    assert ask(lun, read28(7))[36:] == bytes(512)


@pytest.mark.parametrize(
    "request_",
    [
        ata(0x24, 5),  # 48-bit opcode without E
        ata(0x20, 5, flags=0x40),  # E with a 28-bit opcode
        ata(0x34, 5, data=NEW, flags=0x01),
        ata(0x30, 5, data=NEW, flags=0x41),
        ata(0x3D, 5, data=NEW, flags=0x01),
        ata(0x20, 5 | E28, flags=0x01),  # W on a read
        ata(0x30, 5 | E28, data=NEW),  # a write without W
        ata(0x99),
        ata(0xB0),
        ata(0x25, flags=0x40),
    ],
)
def test_aborted(lun: Lun, request_: bytes) -> None:
    before = disk(lun)
    reply = ask(lun, request_)
    assert regs(reply) == ABORT
    assert len(reply) == 60
    assert disk(lun) == before


def test_no_sectors_is_aborted(lun: Lun) -> None:
    assert regs(ask(lun, read28(5, 0))) == (0x18, 0x04, 0, 0x41)
    assert regs(ask(lun, write28(5, b""))) == (0x18, 0x04, 0, 0x41)


@pytest.mark.parametrize("n", [1, 2])
def test_out_of_range_does_nothing_at_all(lun: Lun, n: int) -> None:
    lba = SECTORS + 1 - n
    before = disk(lun)
    expected = head(0) + bytes([0, 0x10, n, 0x41]) + (lba | E28).to_bytes(6, "little") + bytes(26)
    assert ask(lun, read28(lba, n)) == expected
    assert regs(ask(lun, write28(lba, NEW * n))) == (0x18, 0x10, n, 0x41)
    assert regs(ask(lun, read48((1 << 48) - 1))) == (0x18, 0x10, 1, 0x41)
    assert disk(lun) == before


def test_a_write_of_less_data_than_its_count_is_refused(lun: Lun) -> None:
    before = disk(lun)
    request = write28(9, NEW + NEW[:-1], n=2)
    reply = ask(lun, request)
    assert reply == head(0, 0x1C, 2) + request[24:36] + bytes(24)
    assert disk(lun) == before


def test_read_only(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, read_only=True)
    before = disk(lun)
    assert regs(ask(lun, write28(9, NEW))) == ABORT
    assert regs(ask(lun, write48(9, NEW, opcode=0x3D))) == ABORT
    assert (
        regs(ask(lun, ata(0x06, n=1, data=(9 | 1 << 48).to_bytes(8, "little") + bytes(504), flags=0x41, feature=1)))
        == ABORT
    )
    assert disk(lun) == before
    assert regs(ask(lun, ata(0xE7, n=0)))[3] == OK
    found = Identify.parse(ask(lun, ata(0xEC))[36:])
    assert found.read_only
    assert not found.trim
    assert not found.fua


@pytest.mark.parametrize("opcode", [0xE7, 0xEA])
def test_flush_really_syncs(lun: Lun, opcode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    assert regs(ask(lun, ata(opcode, n=0, flags=0x40 * (opcode == 0xEA)))) == (0x18, 0, 0, OK)
    assert len(synced) == 1
    ask(lun, write28(9, NEW))
    assert len(synced) == 1


def test_fua_write_syncs_after_writing(lun: Lun, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append(os.pread(fd, 512, 9 * 512)))
    assert regs(ask(lun, write48(9, NEW, opcode=0x3D))) == (0x18, 0, 1, OK)
    assert seen == [NEW]


def test_failing_storage_is_told(lun: Lun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    for name in ("preadv", "pwrite", "fdatasync"):
        monkeypatch.setattr(os, name, fail)
    assert regs(ask(lun, read28(5))) == (0x18, 0x40, 1, 0x61)
    assert regs(ask(lun, write28(5, NEW))) == (0x18, 0x04, 1, 0x61)
    assert regs(ask(lun, ata(0xE7, n=0))) == (0x18, 0x04, 0, 0x61)
    assert lun.counters["ata-error-0x40"] == 1


def test_storage_that_shrank_gives_an_error_and_no_data(lun: Lun) -> None:
    os.truncate(lun.backend.path, 6 * 512)
    reply = ask(lun, read28(5, 2))
    assert (regs(reply), len(reply)) == ((0x18, 0x40, 2, 0x61), 60)


def test_short_counts_of_the_kernel_are_continued(lun: Lun, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_read, whole_write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: whole_read(fd, [buffers[0][:100]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: whole_write(fd, data[:100], at))
    assert ask(lun, read28(5, 2))[36:] == sector(5) + sector(6)
    ask(lun, write28(9, NEW))
    monkeypatch.undo()
    assert disk(lun)[9 * 512 : 10 * 512] == NEW


def test_check_power(lun: Lun) -> None:
    assert regs(ask(lun, ata(0xE5, n=0))) == (0x18, 0, 0xFF, OK)


def trim(*ranges: tuple[int, int], n: int = 1, feature: int = 1, **more: object) -> bytes:
    data = b"".join((lba | count << 48).to_bytes(8, "little") for lba, count in ranges)
    return ata(0x06, n=n, data=data.ljust(512, b"\0"), flags=0x41, feature=feature, **more)


def test_trim_reads_as_zeros_and_gives_space_back(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, sectors=4096)
    lun.backend.flush()
    used = os.stat(lun.backend.path).st_blocks
    assert regs(ask(lun, trim((8, 2048), (3000, 1)))) == (0x18, 0, 1, OK)
    content = disk(lun)
    assert content[: 8 * 512] == b"".join(sector(i) for i in range(8))
    assert content[8 * 512 : 2056 * 512] == bytes(2048 * 512)
    assert content[2056 * 512 : 2057 * 512] == sector(2056)
    assert content[3000 * 512 : 3002 * 512] == bytes(512) + sector(3001)
    assert len(content) == 4096 * 512
    assert os.stat(lun.backend.path).st_blocks <= used - 2000


def test_trim_to_the_very_end_on_the_smallest_link(lun: Lun) -> None:
    assert regs(ask(lun, trim((SECTORS - 2, 2)), mtu=576)) == (0x18, 0, 1, OK)
    assert disk(lun)[-3 * 512 :] == sector(SECTORS - 3) + bytes(1024)


def test_identify_on_a_link_too_small_for_it(lun: Lun) -> None:
    assert ask(lun, ata(0xEC), mtu=547)[14:16] == b"\x1c\x02"
    assert ask(lun, ata(0xEC), mtu=548)[27] == OK


def test_trim_where_holes_cannot_be_punched_any_more_writes_zeros(lun: Lun, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr("aoe_nbd.target.backend._fallocate", unsupported)
    assert regs(ask(lun, trim((8, 4))))[3] == OK
    assert disk(lun)[7 * 512 : 13 * 512] == sector(7) + bytes(4 * 512) + sector(12)


def test_trim_is_not_offered_where_it_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr("aoe_nbd.target.backend._fallocate", unsupported)
    lun = make_lun(tmp_path)
    assert not Identify.parse(ask(lun, ata(0xEC))[36:]).trim
    assert regs(ask(lun, trim((8, 4)))) == ABORT


def test_trim_refusals_do_nothing(lun: Lun) -> None:
    before = disk(lun)
    assert regs(ask(lun, trim((8, 4), (SECTORS - 1, 2)))) == (0x18, 0x10, 1, 0x41)
    assert regs(ask(lun, trim((8, 4), feature=0))) == ABORT
    assert regs(ask(lun, trim((8, 4), n=0))) == (0x18, 0x04, 0, 0x41)
    assert regs(ask(lun, trim((8, 4), n=2))) == (0x18, 0x04, 2, 0x41)
    assert ask(lun, trim((8, 4))[:-1])[14:16] == b"\x1c\x02"
    assert disk(lun) == before


# -- IDENTIFY --------------------------------------------------------------------------------------------------------


def identify(lun: Lun) -> Identify:
    return Identify.parse(ask(lun, ata(0xEC, n=1))[36:])


def test_identify_tells_the_truth(lun: Lun) -> None:
    found = identify(lun)
    assert found.model.startswith("aoe-nbd")
    assert found.sectors == SECTORS
    assert found.lba48
    assert found.flush
    assert found.flush_ext
    assert found.fua
    assert found.trim
    assert found.trim_blocks == 1
    assert found.trim_zeroes
    assert (found.logical_size, found.physical_size) == (512, 4096)
    assert found.wwn >> 60 == 3
    assert found.vendor_known
    assert found.true_flush
    assert not found.read_only
    assert not found.sync_writes


def test_identify_of_a_synchronous_export(tmp_path: Path) -> None:
    lun = make_lun(tmp_path, sync=True)
    assert identify(lun).sync_writes
    assert os.readlink(f"/proc/self/fd/{lun.backend._fd}") == lun.backend.path
    flags = int(Path(f"/proc/self/fdinfo/{lun.backend._fd}").read_text().split("flags:")[1].split()[0], 8)
    assert flags & os.O_DSYNC


def test_serial_is_stable_and_unique(tmp_path: Path) -> None:
    from aoe_nbd.wire.address import Address

    first, again = make_lun(tmp_path), make_lun(tmp_path)
    assert identify(first).serial == identify(again).serial
    assert len(identify(first).serial) == 20
    assert identify(first).wwn == identify(again).wwn
    other = Lun(Address(7, 4), first.backend)
    (tmp_path / "second").mkdir()
    others = [make_lun(tmp_path / "second"), make_lun(tmp_path, serial="MINE")]
    serials = {lun.serial for lun in [first, other, *others]}
    assert len(serials) == 4
    assert identify(others[1]).serial == "MINE"
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk")
    assert Lun(Address(7, 3), Backend(str(link))).serial == first.serial


def test_growth_is_seen_by_identify(lun: Lun) -> None:
    os.truncate(lun.backend.path, 2 * SECTORS * 512 + 100)
    assert identify(lun).sectors == 2 * SECTORS
    assert regs(ask(lun, read28(2 * SECTORS - 1)))[3] == OK
    assert regs(ask(lun, read28(2 * SECTORS)))[1] == 0x10


def test_growth_is_seen_by_refresh(lun: Lun) -> None:
    assert not lun.refresh()
    os.truncate(lun.backend.path, 2 * SECTORS * 512)
    assert lun.refresh()
    assert regs(ask(lun, read28(2 * SECTORS - 1)))[3] == OK


# -- who is asked, and in what shape ---------------------------------------------------------------------------------


def test_wildcards_are_answered_with_the_own_address(lun: Lun) -> None:
    for shelf, slot in [(0xFFFF, 0xFF), (7, 0xFF), (0xFFFF, 3)]:
        reply = ask(lun, read28(5, shelf=shelf, slot=slot, dst=EVERYONE))
        assert reply[:24] == head(0)


def test_ignored_and_counted(lun: Lun) -> None:
    silent(lun, read28(5, shelf=8), "other-address")
    silent(lun, read28(5, slot=0), "other-address")
    silent(lun, read28(5, shelf=8, slot=0xFF), "other-address")
    silent(lun, read28(5, dst=bytes.fromhex("020000000099")), "other-host")
    silent(lun, read28(5, dst=bytes.fromhex("030000000099")), "other-host")
    silent(lun, read28(5, verfl=0x18), "response")
    silent(lun, read28(5, src=b"\x03\0\0\0\0\1"), "source")
    silent(lun, read28(5, src=EVERYONE), "source")
    silent(lun, read28(5)[:35], "short")
    silent(lun, read28(5)[:12] + b"\x08\x00" + read28(5)[14:], "ethertype")
    for size in range(24):
        silent(lun, read28(5)[:size], "short")


@pytest.mark.parametrize("version", [0, 2, 15])
def test_other_versions_are_error_5(lun: Lun, version: int) -> None:
    request = read28(5, verfl=version << 4)
    assert ask(lun, request) == head(0, 0x1C, 5) + request[24:36] + bytes(24)


@pytest.mark.parametrize("command", [4, 9, 240, 255])
def test_unknown_commands_are_error_1(lun: Lun, command: int) -> None:
    assert ask(lun, frame(command, b"abcdef")) == head(command, 0x1C, 1) + bytes(36)


def test_a_header_alone_is_a_request(lun: Lun) -> None:
    assert ask(lun, frame(9, b"", pad=False)) == head(9, 0x1C, 1) + bytes(36)


def test_low_flag_bits_and_error_byte_of_a_request_are_not_repeated(lun: Lun) -> None:
    assert ask(lun, read28(5, verfl=0x17, error=0x77))[14:16] == b"\x18\x00"


def test_the_tag_is_opaque(lun: Lun) -> None:
    for tag in (0, 1, 0xFFFFFFFF, 0x01020304):
        assert ask(lun, read28(5, tag=tag))[20:24] == tag.to_bytes(4, "big")


def test_a_batch_is_carried_out_in_order(lun: Lun) -> None:
    requests = [write28(9, bytes([i]) * 512, tag=i) for i in range(1, 9)]
    replies = lun.handle_batch(requests, US, 1500)
    assert [reply[23] for reply in replies] == list(range(1, 9))
    assert disk(lun)[9 * 512 : 10 * 512] == b"\x08" * 512


def test_replies_hold_no_reference_to_the_request(lun: Lun) -> None:
    memory = bytearray(write28(9, NEW))
    replies = lun.handle(memoryview(memory), US, 1500)
    memory[:] = b"\xff" * len(memory)
    assert bytes(replies[0])[:6] == ME
    assert disk(lun)[9 * 512 : 10 * 512] == NEW
