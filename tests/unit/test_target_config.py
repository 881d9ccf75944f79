# SPDX-License-Identifier: BSD-3-Clause
"""Commands 1 to 3 of our target: config string, MAC mask list, reservation; and that they are kept."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from target_kit import (
    EVERYONE,
    ME,
    OK,
    OTHER,
    US,
    ask,
    ata,
    config,
    frame,
    head,
    make_lun,
    mask,
    read28,
    regs,
    reserve,
    silent,
    write28,
)

from aoe_nbd.target import Lun, State, StateError
from aoe_nbd.wire.address import Address


@pytest.fixture
def lun(tmp_path: Path) -> Lun:
    return make_lun(tmp_path)


def config_reply(ccmd: int, string: bytes = b"", sectors: int = 2, verfl: int = 0x18, error: int = 0) -> bytes:
    argument = struct.pack(">HHBBH", 64, 1, sectors, 0x10 | ccmd, len(string)) + string
    return (head(1, verfl, error) + argument).ljust(60, b"\0")


def test_config_read_is_exact_to_the_byte(lun: Lun) -> None:
    assert ask(lun, config(0)) == config_reply(0)
    assert ask(lun, config(0), mtu=9000) == config_reply(0, sectors=17)
    assert ask(lun, config(0), mtu=1060) == config_reply(0, sectors=2)
    assert ask(lun, config(0), mtu=1059) == config_reply(0, sectors=1)


def test_sector_count_is_never_the_0_that_means_2(lun: Lun) -> None:
    assert ask(lun, config(0), mtu=100)[28] == 1


def test_buffer_count(tmp_path: Path) -> None:
    assert ask(make_lun(tmp_path, buffers=300), config(0))[24:26] == b"\x01\x2c"
    assert ask(make_lun(tmp_path, buffers=0), config(0))[24:26] == b"\0\0"


def test_set_and_force_set(lun: Lun) -> None:
    assert ask(lun, config(3, b"abc")) == config_reply(3, b"abc")
    assert ask(lun, config(3, b"abc")) == config_reply(3, b"abc")
    assert ask(lun, config(3, b"xyz")) == config_reply(3, b"abc", verfl=0x1C, error=4)
    assert ask(lun, config(3, b"")) == config_reply(3, b"abc", verfl=0x1C, error=4)
    assert ask(lun, config(4, b"xyz!")) == config_reply(4, b"xyz!")
    assert ask(lun, config(0)) == config_reply(0, b"xyz!")
    assert ask(lun, config(4, b"")) == config_reply(4)


def test_tests_are_answered_by_a_match_and_by_silence(lun: Lun) -> None:
    ask(lun, config(3, b"abc"))
    assert ask(lun, config(1, b"abc")) == config_reply(1, b"abc")
    assert ask(lun, config(2, b"ab")) == config_reply(2, b"abc")
    assert ask(lun, config(2, b"")) == config_reply(2, b"abc")
    for request in (config(1, b"ab"), config(1, b"abcd"), config(1, b""), config(2, b"b"), config(2, b"abcd")):
        silent(lun, request, "no-match")


@pytest.mark.parametrize("ccmd", range(5, 16))
def test_other_ccmds_are_error_2(lun: Lun, ccmd: int) -> None:
    assert ask(lun, config(ccmd, b"abc")) == config_reply(ccmd, verfl=0x1C, error=2)


@pytest.mark.parametrize("ccmd", range(5))
def test_a_string_that_is_not_all_there_is_error_2(lun: Lun, ccmd: int) -> None:
    lun.state.config = b"kept"
    expected = config_reply(ccmd, b"kept", verfl=0x1C, error=2)
    assert ask(lun, config(ccmd, b"ab", 3, pad=False)) == expected
    assert ask(lun, config(ccmd, b"ab", 29)) == expected  # 28 bytes are there
    assert ask(lun, config(ccmd, bytes(1100), 1025)) == expected
    assert ask(lun, config(ccmd, bytes(1100), 0xFFFF)) == expected
    assert lun.state.config == b"kept"


def test_a_string_of_1024_bytes(lun: Lun) -> None:
    longest = bytes(range(256)) * 4
    reply = ask(lun, config(4, longest))
    assert reply == config_reply(4, longest)
    assert len(reply) == 1056
    # what does not go through the link is refused, not cut
    assert ask(lun, config(0), mtu=1000) == head(1, 0x1C, 2) + bytes(36)
    assert ask(lun, config(3), mtu=1000) == head(1, 0x1C, 4) + bytes(36)


def test_reading_with_a_string_along_is_reading(lun: Lun) -> None:
    ask(lun, config(3, b"abc"))
    assert ask(lun, config(0, b"\xed" * 1024)) == config_reply(0, b"abc")


def test_version_nibble_of_the_config_argument_may_be_anything(lun: Lun) -> None:
    assert ask(lun, config(0x10)) == config_reply(0)


def test_bare_requests_are_served(lun: Lun) -> None:
    assert ask(lun, config(0, pad=False)) == config_reply(0)
    assert ask(lun, mask(0, pad=False)) == mask_reply(0)
    assert ask(lun, reserve(0, pad=False)) == reserve_reply(0)
    assert regs(ask(lun, ata(0xE7, n=0, pad=False)))[3] == OK


def test_frames_too_short_for_their_argument_are_counted(lun: Lun) -> None:
    for command, size in [(1, 8), (2, 4), (3, 2), (0, 12)]:
        silent(lun, frame(command, bytes(size - 1), pad=False), "short")


# -- MAC mask --------------------------------------------------------------------------------------------------------


def mask_reply(mcmd: int, *macs: bytes, merror: int = 0, count: int | None = None, **more: int) -> bytes:
    body = bytes([0, mcmd, merror, len(macs) if count is None else count]) + b"".join(b"\0\0" + mac for mac in macs)
    return (head(2, **more) + body).ljust(60, b"\0")


def test_mask_add_delete_read(lun: Lun) -> None:
    assert ask(lun, mask(0)) == mask_reply(0)
    assert ask(lun, mask(1, (1, ME), (1, OTHER), (1, US))) == mask_reply(1, ME, OTHER, US)
    assert ask(lun, mask(1, (1, OTHER))) == mask_reply(1, ME, OTHER, US)
    assert ask(lun, mask(1, (0, b"\2none!"), (2, OTHER), (2, b"\2gone!"))) == mask_reply(1, ME, US)
    assert ask(lun, mask(0)) == mask_reply(0, ME, US)
    assert ask(lun, mask(1, (2, US), (2, ME))) == mask_reply(1)
    assert ask(lun, mask(0, src=OTHER))[:6] == OTHER


def test_merror_of_a_request_means_nothing(lun: Lun) -> None:
    request = mask(1, (1, ME), (1, OTHER))
    assert ask(lun, request[:26] + b"\3" + request[27:]) == mask_reply(1, ME, OTHER)


def test_who_is_not_listed_is_ignored_for_all_commands(lun: Lun) -> None:
    ask(lun, mask(1, (1, ME)))
    for request in (
        read28(5, src=OTHER),
        config(0, src=OTHER),
        mask(0, src=OTHER),
        reserve(0, src=OTHER),
        frame(9, b"", src=OTHER),
        read28(5, src=OTHER, verfl=0x20),
    ):
        silent(lun, request, "masked")
    assert regs(ask(lun, read28(5)))[3] == OK


def test_a_bad_directive_is_named_and_the_earlier_ones_stay(lun: Lun) -> None:
    assert ask(lun, mask(1, (1, ME), (1, OTHER), (3, US), (1, US))) == mask_reply(1, merror=2, count=2)
    assert ask(lun, mask(0)) == mask_reply(0, ME, OTHER)


def test_the_list_is_full_at_255(lun: Lun) -> None:
    macs = [struct.pack(">HI", 0x0200, i) for i in range(300)]
    lun.state.mask = [ME, *macs[:253]]
    assert ask(lun, mask(1, (1, macs[253])), mtu=9000)[26:28] == b"\0\xff"
    assert ask(lun, mask(1, (1, ME), (1, macs[254])), mtu=9000) == mask_reply(1, merror=3, count=1)
    assert len(lun.state.mask) == 255
    # a list longer than a reply on this link could show is full too, and one that got so is refused, not cut
    lun.state.mask = [ME, *macs[:184]]
    assert len(ask(lun, mask(0))) == 28 + 185 * 8
    assert ask(lun, mask(1, (1, macs[184]))) == mask_reply(1, merror=3, count=0)
    lun.state.mask.pop()
    assert ask(lun, mask(1, (1, macs[184])))[26:28] == b"\0\xb9"
    lun.state.mask.append(macs[185])
    assert ask(lun, mask(0))[14:16] == b"\x1c\x02"


def test_bad_mask_requests_are_error_2(lun: Lun) -> None:
    assert ask(lun, mask(2)) == mask_reply(2, verfl=0x1C, error=2)
    assert ask(lun, mask(1, (1, ME), count=2, pad=False)) == mask_reply(1, verfl=0x1C, error=2)
    assert ask(lun, mask(1, count=255)) == mask_reply(1, verfl=0x1C, error=2)
    assert lun.state.mask == []


# -- reserve ---------------------------------------------------------------------------------------------------------


def reserve_reply(rcmd: int, *macs: bytes, **more: int) -> bytes:
    return (head(3, **more) + bytes([rcmd, len(macs)]) + b"".join(macs)).ljust(60, b"\0")


def test_reserve_and_release(lun: Lun) -> None:
    assert ask(lun, reserve(0)) == reserve_reply(0)
    assert ask(lun, reserve(1, ME, US)) == reserve_reply(1, ME, US)
    assert ask(lun, reserve(0)) == reserve_reply(0, ME, US)
    assert ask(lun, reserve(1)) == reserve_reply(1)
    assert ask(lun, reserve(1, OTHER)) == reserve_reply(1, OTHER)
    assert ask(lun, reserve(1, ME)) == reserve_reply(1, OTHER, verfl=0x1C, error=6)
    assert ask(lun, reserve(1)) == reserve_reply(1, OTHER, verfl=0x1C, error=6)
    assert ask(lun, reserve(2, ME)) == reserve_reply(2, ME)
    assert ask(lun, reserve(2)) == reserve_reply(2)


def test_while_reserved_by_others_only_identify_passes(lun: Lun) -> None:
    lun.state.reserved = [OTHER]
    before = Path(lun.backend.path).read_bytes()
    requests = [read28(5), write28(5, b"x" * 512), ata(0xE7), ata(0xEA, flags=0x40), ata(0xE5), ata(0x99), ata(0x06)]
    for request in requests:
        reply = ask(lun, request)
        assert reply == head(0, 0x1C, 6) + request[24:36] + bytes(24)
    assert Path(lun.backend.path).read_bytes() == before
    assert regs(ask(lun, ata(0xEC)))[3] == OK
    assert ask(lun, config(4, b"open"))[14] == 0x18
    assert ask(lun, mask(0))[14] == 0x18
    lun.state.reserved = [OTHER, ME]
    assert regs(ask(lun, read28(5)))[3] == OK


def test_bad_reserve_requests_are_error_2(lun: Lun) -> None:
    assert ask(lun, reserve(3)) == reserve_reply(3, verfl=0x1C, error=2)
    assert ask(lun, reserve(1, ME, count=2, pad=False)) == reserve_reply(1, verfl=0x1C, error=2)
    assert ask(lun, reserve(2, count=255)) == reserve_reply(2, verfl=0x1C, error=2)
    assert lun.state.reserved == []


# -- announcement ----------------------------------------------------------------------------------------------------


def test_announcement(lun: Lun) -> None:
    lun.state.config = b"hello"
    expected = (head(1, to=EVERYONE, tag=0) + bytes.fromhex("0040000102100005") + b"hello").ljust(60, b"\0")
    assert lun.announce(US, 1500) == [expected]
    lun.state.mask = [ME, OTHER]
    assert [bytes(frame[:6]) for frame in lun.announce(US, 9000)] == [ME, OTHER]
    assert lun.announce(US, 9000)[0][28] == 17


# -- state -----------------------------------------------------------------------------------------------------------

ADDRESS = Address(7, 3)


def test_state_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "deep"
    lun = make_lun(tmp_path, state=State.load(str(folder), ADDRESS))
    ask(lun, config(4, b"\x00\xffbinary"))
    ask(lun, mask(1, (1, ME), (1, OTHER)))
    ask(lun, reserve(1, ME))
    again = State.load(str(folder), ADDRESS)
    assert (again.config, again.mask, again.reserved) == (b"\x00\xffbinary", [ME, OTHER], [ME])
    assert [p.name for p in folder.iterdir()] == ["e7.3.json"]
    assert State.load(str(folder), Address(7, 4)) == State(path=folder / "e7.4.json")


def test_state_is_on_the_disk_before_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lun = make_lun(tmp_path, state=State.load(str(tmp_path / "state"), ADDRESS))
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    ask(lun, config(4, b"abc"))
    assert [Path(p).name for p in synced] == ["e7.3.new", "state"]
    ask(lun, config(4, b"abc"))
    assert len(synced) == 2


def test_state_that_cannot_be_kept_is_refused_and_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lun = make_lun(tmp_path, state=State.load(str(tmp_path / "state"), ADDRESS))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for request in (config(4, b"abc"), mask(1, (1, ME)), reserve(1, ME)):
        assert ask(lun, request)[14:16] == b"\x1c\x03"
    assert (lun.state.config, lun.state.mask, lun.state.reserved) == (b"", [], [])


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"config": "zz", "mask": [], "reserved": []}',
        '{"config": "", "mask": ["02"], "reserved": []}',
    ],
)
def test_damaged_state_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "e7.3.json").write_text(content)
    with pytest.raises(StateError, match=r"e7\.3\.json is damaged"):
        State.load(str(tmp_path), ADDRESS)
