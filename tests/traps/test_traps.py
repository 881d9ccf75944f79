# SPDX-License-Identifier: BSD-3-Clause
"""The interop traps that real targets set an AoE initiator, each with its test, named and numbered as the notes number them.

Here the initiator (with the encoder that the engine uses) is joined in memory to the project's target, which imitates
vblade, ggaoed, qaoed and kvblade byte for byte, or to a scripted peer. `tests/net/test_traps_on_the_wire.py` has those
that need real packets, Debian's vblade, or the kernel.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from itertools import pairwise

import pytest

from aoe_nbd.core.constants import QUARANTINE
from aoe_nbd.core.exchange import Exchange
from aoe_nbd.core.path import PathState
from aoe_nbd.core.request import Kind, Request
from aoe_nbd.device import DeviceError, durability, find
from aoe_nbd.target import Line
from aoe_nbd.target.personality import JUNK
from aoe_nbd.wire.address import Address
from aoe_nbd.wire.codes import (
    ALL_SHELVES,
    ALL_SLOTS,
    ERROR,
    MIN_FRAME,
    RESPONSE,
    SECTOR,
    AoeError,
    Ata,
    AtaFlag,
    Command,
    ConfigCommand,
    MaskCommand,
    MaskDirectiveCommand,
    MaskError,
    ReserveCommand,
)
from aoe_nbd.wire.frames import (
    ATA_SIZE,
    Config,
    MaskList,
    Reserve,
    Taskfile,
    build_header,
    build_request,
    parse_ata,
    parse_header,
    taskfile,
)
from aoe_nbd.wire.identify import Identify
from inmemory import (
    E1_0,
    IDENTITY,
    LINK,
    LOCAL,
    REMOTE,
    REMOTE2,
    STRANGER,
    Lan,
    MemoryBackend,
    MemoryEngine,
    Scripted,
    lba_of,
    open_device,
    read_request,
    refusal,
    reply,
    virtual_time,
    write_request,
)

A, B = b"A" * SECTOR, b"B" * SECTOR
TARGETS = ("ours", "vblade", "ggaoed", "qaoed", "kvblade")
EXTENDED = (Ata.READ_EXT, Ata.WRITE_EXT, Ata.FLUSH_EXT, Ata.DATA_SET_MANAGEMENT, Ata.WRITE_DMA_FUA_EXT)
WRITES = (Ata.WRITE, Ata.WRITE_EXT, Ata.WRITE_DMA_FUA_EXT)
READS = (Ata.READ, Ata.READ_EXT)


def pattern(count: int, seed: int = 0) -> bytes:
    """Sectors that differ from each other and from those of other seeds."""
    return b"".join((seed << 32 | i + 1).to_bytes(8, "big") * (SECTOR // 8) for i in range(count))


def busy_session(like: str, mtu: int = 1500) -> Lan:
    """A bit of everything that this target offers, done; for looking at the frames."""
    lan = Lan(mtu)
    port = lan.target(like)
    lan.attach()
    data = pattern(53)
    lan.write(1000, data)
    assert lan.read(1000, 53) == data
    assert lan.read(1003, 1) == data[3 * SECTOR : 4 * SECTOR]
    assert port.disk.whole(1000, 53) == data
    identify = lan.initiator.identify
    assert identify is not None
    if identify.flush:
        assert not lan.flush().error
    if identify.trim:
        assert not lan.do(Request(Kind.TRIM, 1000, 8)).error
        assert lan.read(1000, 8) == bytes(8 * SECTOR)
    if identify.fua:
        assert not lan.do(write_request(5, A, fua=True)).error
    for arg in (Config(), MaskList(), Reserve()):
        lan.ask(arg, shelf=1, slot=0)
    return lan


@pytest.mark.parametrize("like", TARGETS)
def test_trap_01_short_replies_accepted_and_requests_padded(like: str) -> None:
    """veth and tap pad nothing: replies of 26, 28, 32 and 36 bytes are whole, and kvblade drops requests under 36."""
    lan = busy_session(like)
    lengths = {len(frame) for frame in lan.heard}
    bare = {"ours": set(), "vblade": {26, 28, 32}, "ggaoed": {26, 28, 32, 36}, "qaoed": {32, 36}, "kvblade": {32, 36}}
    assert {n for n in lengths if n < MIN_FRAME} == bare[like]
    assert min(len(frame) for frame in lan.sent) >= MIN_FRAME
    for frame in lan.sent:  # and the padding is zeros, not somebody's data
        if len(frame) == MIN_FRAME:
            used = {Command.ATA: 36, Command.CONFIG: 32, Command.MASK: 28, Command.RESERVE: 26}[Command(frame[19])]
            assert not any(frame[used:])
    if like not in ("qaoed", "kvblade"):  # the shortest replies of all are read to the letter
        mask = lan.ask(MaskList(), shelf=1, slot=0, want=1).answers[0].frame
        assert MaskList.parse(mask) == MaskList(count=0)
        assert Reserve.parse(lan.ask(Reserve(), shelf=1, slot=0, want=1).answers[0].frame) == Reserve()


def test_trap_02_announcement_of_version_0_with_tag_0() -> None:
    """vblade tells of its start once, unasked, with byte 14 = 0x08: it ends the wait for a target that had gone."""
    lan = Lan()
    port = lan.target("vblade", mtu=9000)
    initiator = lan.attach()
    frame = bytes(port.lun.announce(port.mac, port.mtu)[0])
    assert frame[14] == 0x08
    assert parse_header(frame).tag == 0

    port.unplugged = True
    request = lan.submit(write_request(0, A))
    lan.run(lambda: not initiator.up)
    lan.pause(2.0)
    asked = len(lan.requests(Ata.IDENTIFY))
    assert initiator.paths[0].next_probe > lan.now + 0.01  # it was not about to ask anyway
    port.unplugged = False
    before = lan.now
    lan.hear(LINK, frame)
    lan.work()
    assert initiator.counters["announced"] == 1
    assert initiator.paths[0].advertised == 17  # what the announcement says counts
    assert len(lan.requests(Ata.IDENTIFY)) == asked + 1
    lan.run(lambda: request.done)
    assert lan.now - before < 0.01
    assert not request.error


def test_trap_02_announcement_of_a_new_path_is_looked_at_before_it_is_used() -> None:
    lan = Lan()
    disk = MemoryBackend(1 << 16)
    lan.target("vblade", disk=disk)
    initiator = lan.attach(learn_paths=True)
    second = lan.target("vblade", disk=disk, mac=REMOTE2)
    second.announce(lan.now)
    lan.run(lambda: len(initiator.paths) == 2)
    assert not initiator.paths[1].up
    lan.run(lambda: initiator.paths[1].up)
    (to_it,) = [frame for frame in lan.sent if frame[:6] == REMOTE2]
    assert parse_ata(to_it).command_status == Ata.IDENTIFY


FLUSHES = {
    "ours": (Ata.FLUSH_EXT, 0x40),
    "vblade": (Ata.FLUSH, 0x00),
    "ggaoed": (Ata.FLUSH_EXT, 0xEA),
    "kvblade": (Ata.FLUSH, 0x40),
}


@pytest.mark.parametrize("like", FLUSHES)
def test_trap_03_flush_outcomes_that_are_success(like: str) -> None:
    """Status 0 with a random error byte, status equal to the opcode, and plain success: one command, one meaning."""
    opcode, status = FLUSHES[like]
    lan = Lan()
    lan.target(like)
    initiator = lan.attach()
    errors = set()
    for _ in range(30):
        flush = lan.flush()
        assert not flush.error, flush.reason
        answer = parse_ata(lan.heard[-1])
        assert answer.command_status == status
        errors.add(answer.error_feature)
    assert len(lan.requests(opcode)) == 30  # one frame each: none was taken for lost
    assert initiator.counters["lost"] == 0
    if like == "vblade":
        assert errors == {0x00, 0x04, 0x10}


def test_trap_03_flush_status_equal_to_opcode_is_success_for_flushes_only() -> None:
    """ggaoed's 0xe7 has ERR, DF and BSY set: the same bits are a failure in any other reply, and for another opcode."""
    lan = Lan()
    lan.peer(Scripted(lambda f: [reply(f, status=parse_ata(f).command_status, error=0x04)]))
    lan.attach()
    request, buffer = read_request(0, 1)
    assert lan.do(request).error == errno.EIO
    assert buffer == bytes(SECTOR)
    assert lan.do(write_request(0, A)).error == errno.EIO
    assert lan.flush().error == 0
    lan.ports[0].become(Scripted(lambda f: [reply(f, status=Ata.FLUSH, error=0x04)]))  # not what was sent: 0xea
    assert lan.flush().error == errno.EIO


def test_trap_03_flush_aborted_is_an_error_at_once() -> None:
    """qaoed has no flush: 0x41/04 with the E flag and Error 0. Others would send the same without E."""
    lan = Lan()
    lan.target("qaoed")
    initiator = lan.attach()
    began = lan.now
    assert lan.flush().error == errno.EIO
    assert parse_header(lan.heard[-1]).failed
    assert lan.now - began < 0.01
    assert len(lan.requests(Ata.FLUSH, Ata.FLUSH_EXT)) == 1
    lan.ports[0].become(Scripted(lambda f: [reply(f, status=0x41, error=0x04)]))
    assert lan.flush().error == errno.EIO
    assert initiator.counters["ata_error_41_04"] == 1


def test_trap_03_a_target_without_flush_is_not_asked_to_flush() -> None:
    lan = Lan()
    lan.target("qaoed")
    device = open_device(lan)
    assert not device.can_flush
    device.flush()
    device.write(memoryview(bytearray(A)), 0, fua=True)
    assert not lan.requests(Ata.FLUSH, Ata.FLUSH_EXT)


@pytest.mark.parametrize(("like", "opcode"), [("ours", 0xEA), ("vblade", 0xE7), ("ggaoed", 0xEA), ("kvblade", 0xE7)])
def test_trap_04_flush_ext_only_where_identify_offers_it(like: str, opcode: int) -> None:
    """vblade offers bit 12 of word 83 and not bit 13, and aborts 0xea."""
    lan = Lan()
    lan.target(like)
    lan.attach()
    assert not lan.flush().error
    (frame,) = lan.requests(Ata.FLUSH, Ata.FLUSH_EXT)
    assert frame[27] == opcode
    assert bool(frame[24] & AtaFlag.EXTENDED) == (opcode == Ata.FLUSH_EXT)


@pytest.mark.parametrize(
    ("like", "sentence"),
    [
        ("ours", "an acknowledged flush is on stable storage, a write before it may not be"),
        (
            "vblade",
            "flushes are acknowledged but not carried out: writes are durable only if vblade was started with -s or -d",
        ),
        ("ggaoed", "flushes are acknowledged but not carried out: durability is up to ggaoed's own direct-io setting"),
        ("qaoed", "the target offers no flush: durability is up to its own settings"),
        ("kvblade", "the target acknowledges flushes; whether they reach stable storage is up to it"),
    ],
)
def test_trap_05_flush_success_is_not_reported_as_durable(
    like: str, sentence: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No target but ours turns a flush into fsync: what an acknowledgement means is logged once at start."""
    lan = Lan()
    port = lan.target(like)
    with caplog.at_level(logging.INFO, "aoe_nbd"):
        device = open_device(lan)
    assert [record.getMessage() for record in caplog.records].count(f"{E1_0}: {sentence}") == 1
    assert durability(device.identify) == sentence
    device.flush()
    assert ("flush", 0, 0) in port.disk.log or "stable storage, a write" not in sentence


# (first LBA, sectors): each side of every edge that an address can fall off
EDGES = [(0, 3), ((1 << 28) - 3, 3), ((1 << 28) - 1, 2), (1 << 28, 3), ((1 << 32) - 1, 2), ((1 << 32) + 5, 3)]


@pytest.mark.parametrize("like", TARGETS)
@pytest.mark.parametrize("mtu", [1500, 9000])
def test_trap_06_address_width_opcode_and_lba3_agree(like: str, mtu: int) -> None:
    """Targets differ in whether opcode or E decides the width; 0xe0 in lba3 of a 48-bit address is another address."""
    lan = Lan(mtu)
    port = lan.target(like, sectors=(1 << 32) + 4096)
    lan.attach()
    for seed, (lba, count) in enumerate(EDGES, 1):
        lan.write(lba, pattern(count, seed))
    for seed, (lba, count) in enumerate(EDGES[:], 1):
        later = {sector for other, n in EDGES[seed:] for sector in range(other, other + n)}
        for i, sector in enumerate(range(lba, lba + count)):
            if sector not in later:
                expected = pattern(count, seed)[i * SECTOR : (i + 1) * SECTOR]
                assert port.disk.sector(sector) == expected, hex(sector)
                assert lan.read(sector, 1) == expected, hex(sector)
    assert len(port.disk.content) == len({s for lba, n in EDGES for s in range(lba, lba + n)})  # and nowhere else
    for frame in lan.requests():
        ata = parse_ata(frame)
        assert bool(ata.flags & AtaFlag.EXTENDED) == (ata.command_status in EXTENDED)
        if ata.command_status in (*READS, *WRITES):
            assert ata.command_status in EXTENDED  # the disk has 48-bit addresses
            assert ata.lba48 + ata.count <= (1 << 32) + 8
            assert ata.reserved == 0


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_trap_06_a_disk_of_28_bits_gets_28_bit_commands(count: int) -> None:
    lan = Lan(9000)
    identify = Identify("s", "f", "m", sectors=(1 << 28) - 1, lba48=False, flush_ext=False)

    def script(frame: bytes) -> Iterable[bytes]:
        ata = parse_ata(frame)
        yield reply(frame, pattern(ata.count) if ata.command_status == Ata.READ else b"")

    peer = Scripted(script, identify=identify, sectors=17)
    lan.peer(peer)
    lan.attach()
    last = (1 << 28) - 1 - count
    for lba in (0, 0x0ABCDEF, last):
        lan.read(lba, count)
        lan.write(lba, pattern(count))
    lan.flush()
    assert {f[27] for f in peer.seen} == {Ata.READ, Ata.WRITE, Ata.FLUSH}
    for frame in peer.seen:
        assert not frame[24] & AtaFlag.EXTENDED
        if frame[27] != Ata.FLUSH:
            assert frame[31] & 0xF0 == 0xE0
            assert frame[32:34] == b"\0\0"
    assert {lba_of(f) for f in peer.seen} >= {0, 0x0ABCDEF, last}


@pytest.mark.parametrize("like", TARGETS)
def test_trap_07_w_flag_exactly_on_writes(like: str) -> None:
    """A READ with W gets no data from vblade, a WRITE without it gets its data back."""
    lan = busy_session(like)
    for frame in lan.requests():
        carries = frame[27] in WRITES or frame[27] == Ata.DATA_SET_MANAGEMENT
        assert bool(frame[24] & AtaFlag.WRITE) == carries, hex(frame[27])
        assert not frame[24] & ~(AtaFlag.WRITE | AtaFlag.EXTENDED)  # A, D and the reserved bits stay clear
    if like == "vblade":  # the trap is real: W on a READ
        ours = taskfile(Ata.READ_EXT, 0, 1)
        wrong = Taskfile(ours.flags | AtaFlag.WRITE, *ours[1:])
        (answer,) = lan.ask(wrong, shelf=1, slot=0, remote=REMOTE, want=1).answers
        assert len(answer.frame) == MIN_FRAME


@pytest.mark.parametrize("mtu", [576, 1500, 4200, 9000, 65535])
@pytest.mark.parametrize("scnt", [0, 1, 2, 5, 8, 17, 128, 255])
def test_trap_08_sector_count_never_0_nor_above_what_fits(scnt: int, mtu: int) -> None:
    """0 advertised means 2; what the target takes and what our own MTU carries are two limits, and both hold."""
    lan = Lan(mtu)
    content = pattern(300)

    def script(frame: bytes) -> Iterable[bytes]:
        ata = parse_ata(frame)
        at = ata.lba48 * SECTOR
        yield reply(frame, content[at : at + ata.count * SECTOR] if ata.command_status == Ata.READ_EXT else b"")

    peer = Scripted(script, sectors=scnt)
    lan.peer(peer)
    lan.attach()
    most = min(scnt or 2, (mtu - 36) // 512, 255)
    for lba, count in ((0, 300), (3, 1), (5, most), (6, most + 1), (0, 255), (1, 256), (2, 257)):
        assert lan.read(lba, count) == content[lba * SECTOR : (lba + count) * SECTOR]
    lan.write(0, content)
    counts = [f[26] for f in peer.seen]
    assert 0 not in counts
    assert max(counts) <= most
    assert max(counts) == (most // 8 * 8 if most > 8 else most)
    assert all(len(frame) <= mtu + 14 for frame in lan.sent)
    assert all(len(f) == ATA_SIZE + f[26] * SECTOR for f in peer.seen if f[27] in WRITES)


def test_trap_09_e_flag_is_a_failure_whatever_the_code() -> None:
    """qaoed sends E with Error 0; E is an answer: at once and final, not a silence to be retried for minutes."""
    codes = {0: errno.EIO, 1: errno.EIO, 2: errno.EINVAL, 3: errno.EIO, 4: errno.EIO, 6: errno.EPERM, 99: errno.EIO}
    for code, expected in codes.items():
        lan = Lan()
        answers = lambda f, code=code: [reply(f, A, flags=RESPONSE | ERROR, aoe_error=code)]  # noqa: E731
        peer = Scripted(answers)
        lan.peer(peer)
        lan.attach()
        began = lan.now
        request, buffer = read_request(0, 1)
        assert lan.do(request).error == expected
        assert buffer == bytes(SECTOR)  # the "data" of a refusal is none
        assert lan.now - began < 0.001
        assert len(peer.seen) == 1
        assert "AoE error" in request.reason or "target" in request.reason


def test_trap_09_error_byte_without_e_flag_is_not_an_error() -> None:
    """vblade echoes whatever Error byte and low flags a request had."""
    lan = Lan()
    lan.peer(Scripted(lambda f: [reply(f, A, flags=RESPONSE | 0x3, aoe_error=0x77)]))
    lan.attach()
    assert lan.read(0, 1) == A


def test_trap_09_ata_error_is_told_by_the_status_and_not_by_the_error_register() -> None:
    lan = Lan()
    lan.peer(Scripted(lambda f: [reply(f, A, status=0x40, error=0xFF)]))
    lan.attach()
    assert lan.read(0, 1) == A
    lan.ports[0].become(Scripted(lambda f: [reply(f, A, status=0x00, error=0x10)]))  # DRDY clear: fine
    assert lan.read(0, 1) == A
    outcomes = {(0x41, 0x10): errno.EIO, (0x01, 0x10): errno.EIO, (0x61, 0x44): errno.EIO, (0x60, 0): errno.EIO}
    for (status, register), expected in outcomes.items():
        lan.ports[0].become(Scripted(lambda f, s=status, r=register: [reply(f, A, status=s, error=r)]))  # type: ignore[misc]
        request, buffer = read_request(0, 1)
        assert lan.do(request).error == expected
        assert buffer == bytes(SECTOR)


@pytest.mark.parametrize("tail", [b"", b"\x40", b"\0\0\0\x40" + A, b"\xff" * 600, JUNK * 60])
@pytest.mark.parametrize("kind", [Kind.READ, Kind.WRITE, Kind.FLUSH])
def test_trap_10_error_replies_with_junk_or_nothing_after_the_header(kind: Kind, tail: bytes) -> None:
    """ggaoed shifts the client's own data to offset 24, kvblade ends there: nothing past the header is looked at."""
    lan = Lan()
    peer = Scripted(lambda f: [refusal(f, AoeError.TARGET_RESERVED) + tail])
    lan.peer(peer)
    lan.attach()
    buffer = bytearray(SECTOR)
    done = lan.do(Request(kind, 0, 1, memoryview(buffer) if kind <= Kind.WRITE else None))
    assert done.error == errno.EPERM
    assert done.reason == "target refuses: target is reserved"
    assert buffer == bytes(SECTOR)
    assert len(peer.seen) == 1


@pytest.mark.parametrize("like", ["ggaoed", "kvblade", "vblade", "ours"])
def test_trap_10_refused_set_is_told_as_refused(like: str) -> None:
    """ggaoed's refusal of `set zzz` has "zzz" where the argument belongs; kvblade's is a bare header."""
    lan = Lan()
    port = lan.target(like)
    port.lun.state.config = b"there already"
    (answer,) = lan.ask(Config(ConfigCommand.SET, b"zzz"), shelf=1, slot=0, want=1).answers
    assert answer.header.failed
    assert answer.header.error == AoeError.CONFIG_STRING_PRESENT
    if like == "ggaoed":
        assert answer.frame[24:27] == b"zzz"
    if like == "kvblade":
        assert len(answer.frame) == 24


@pytest.mark.parametrize(("like", "count"), [("vblade", 0), ("kvblade", 0), ("ggaoed", 2), ("qaoed", 2), ("ours", 2)])
def test_trap_11_reply_sector_count_0_or_as_asked(like: str, count: int) -> None:
    lan = Lan()
    port = lan.target(like)
    port.disk.write(pattern(4), 0)
    lan.attach()
    assert lan.read(0, 4) == pattern(4)
    assert {f[26] for f in lan.heard if f[27] == 0x40 and len(f) >= ATA_SIZE + 2 * SECTOR} == {count}


def test_trap_11_partial_reply_is_a_failure() -> None:
    """vblade, its file cut short underneath: the sectors there were, the remaining count, and ERR."""

    class Cut(MemoryBackend):
        def read_into(self, buffer: memoryview, offset: int) -> None:
            if offset // SECTOR >= 1000:
                raise OSError(errno.EIO, "cut")
            super().read_into(buffer, offset)

    lan = Lan(9000)
    port = lan.target("vblade", disk=Cut(4096))
    initiator = lan.attach()
    port.disk.write(pattern(16), 992 * SECTOR)
    request, buffer = read_request(996, 8)
    assert lan.do(request).error == errno.EIO
    answer = lan.heard[-1]
    assert (len(answer), answer[26], answer[27]) == (ATA_SIZE + 4 * SECTOR, 4, 0x41)
    assert buffer == bytes(8 * SECTOR)
    assert initiator.counters["ata_error_41_04"] == 1
    assert lan.read(992, 8) == pattern(8)


def test_trap_11_success_with_less_data_than_asked_is_not_believed() -> None:
    lan = Lan()
    short = [True]

    def script(frame: bytes) -> Iterable[bytes]:
        answer = reply(frame, A * frame[26])
        yield answer[:-1] if short[0] else answer

    lan.peer(Scripted(script))
    initiator = lan.attach()
    request, buffer = read_request(0, 2)
    lan.submit(request)
    lan.run(lambda: initiator.counters["dropped_runt"] > 0)
    assert not request.done
    assert buffer == bytes(2 * SECTOR)
    short[0] = False
    lan.run(lambda: request.done)
    assert buffer == A * 2


def test_trap_12_replies_that_do_not_match_are_dropped_by_reason() -> None:
    """The right tag is not enough: shelf, slot, command, source and direction must be right as well."""
    lan = Lan()
    held: list[bytes] = []
    lan.peer(Scripted(lambda f: held.append(f) or ()))  # type: ignore[func-returns-value]
    initiator = lan.attach()
    request, buffer = read_request(0, 1)
    lan.submit(request)
    lan.run(lambda: bool(held))
    (frame,) = held
    wrong = {
        "address": [reply(frame, B, shelf=2), reply(frame, B, slot=1), reply(frame, B, shelf=ALL_SHELVES)],
        "source": [reply(frame, B, src=STRANGER)],
        "command": [reply(frame, B, command=Command.CONFIG), reply(frame, B, command=Command.RESERVE)],
        "tag": [
            reply(frame, B, tag=parse_header(frame).tag ^ 1),
            reply(frame, B, tag=0),
            reply(frame, B, tag=0xFFFFFFFF),
        ],
        "request": [reply(frame, B, flags=0)],
        "ethertype": [reply(frame, B)[:12] + b"\x08\x00" + reply(frame, B)[14:]],
        "short": [reply(frame, B)[:n] for n in (0, 13, 23, 24, 35)],
        "runt": [reply(frame, B)[: ATA_SIZE + SECTOR - 1], reply(frame)],
    }
    for reason, frames in wrong.items():
        for bad in frames:
            initiator.receive(LINK, bad, lan.now)
        assert initiator.counters[f"dropped_{reason}"] == len(frames)
    initiator.receive("eth9", reply(frame, B), lan.now)  # the right bytes by an interface where the target is not
    assert initiator.counters["dropped_source"] == 2
    assert not request.done
    assert buffer == bytes(SECTOR)
    initiator.receive(LINK, reply(frame, A), lan.now)
    assert request.done
    assert buffer == A


def test_trap_12_duplicate_reply_to_a_completed_tag_finds_nothing() -> None:
    lan = Lan()
    port = lan.target()
    port.disk.write(A, 0)
    initiator = lan.attach()
    request, buffer = read_request(0, 1)
    lan.do(request)
    assert buffer == A
    first = lan.heard[-1]
    buffer[:] = B  # the caller's memory is used for something else now
    for _ in range(3):
        initiator.receive(LINK, first[:ATA_SIZE] + b"X" * SECTOR, lan.now)
    assert buffer == B
    assert initiator.counters["dropped_tag"] == 3


def test_trap_12_reply_to_an_older_transmission_completes_the_request() -> None:
    """And the reply to the newer one is then the spurious one, whose data goes nowhere."""
    lan = Lan()
    held: list[bytes] = []
    lan.peer(Scripted(lambda f: held.append(f) or ()))  # type: ignore[func-returns-value]
    initiator = lan.attach()
    request, buffer = read_request(0, 1)
    lan.submit(request)
    lan.run(lambda: len(held) == 2)
    old, new = held
    assert parse_header(old).tag != parse_header(new).tag
    lan.hear(LINK, reply(old, A))
    assert request.done
    assert buffer == A
    assert initiator.counters["late"] + initiator.counters["probes_needless"] == 1
    lan.hear(LINK, reply(new, B))
    assert buffer == A
    assert initiator.counters["spurious"] == 1


@pytest.mark.parametrize("like", ["ggaoed", "kvblade", "ours"])
def test_trap_13_overlapping_writes_end_with_the_later_one(like: str) -> None:
    """ggaoed carries requests out in order of offset: A at 301, then B at 300 and 301 would leave the old A at 301."""
    lan = Lan()
    port = lan.target(like)
    initiator = lan.attach()
    for i in range(100):
        old, new = pattern(1, 2 * i + 1), pattern(2, 2 * i + 2)
        requests = [lan.submit(write_request(301, old)), lan.submit(write_request(300, new))]
        lan.finish(*requests)
        assert port.disk.whole(300, 2) == new, i
    assert initiator.counters["held_overlap"] == 100


def test_trap_13_a_read_passes_no_write_and_no_write_a_read() -> None:
    lan = Lan()
    port = lan.target("ggaoed")
    lan.attach()
    port.disk.write(A * 2, 300 * SECTOR)
    before, old = read_request(301, 1)
    after, new = read_request(300, 2)
    requests = [lan.submit(r) for r in (before, write_request(300, B * 2), after)]
    lan.finish(*requests)
    assert old == A
    assert new == B * 2


def held_back(line: Line, seconds: float, first: int = 1) -> None:
    """The next `first` WRITE frames on this line arrive that much later than the others."""
    left = [first]

    def drop(frame: bytes) -> bool:
        if left[0] and frame[19] == Command.ATA and frame[27] in WRITES:
            left[0] -= 1
            line.drop = None
            line.delay += seconds
            line.push(frame, clock())
            line.delay -= seconds
            line.drop = drop
            return True
        return False

    clock = line.clock  # type: ignore[attr-defined]
    line.drop = drop


def with_clock(lan: Lan, line: Line) -> Line:
    line.clock = lambda: lan.now  # type: ignore[attr-defined]
    return line


@pytest.mark.parametrize("delay", [0.3, 0.7, 0.95])
def test_trap_14_ghost_write_does_not_land_on_newer_data(delay: float) -> None:
    """A copy of the first write is held in the network until long after its twin was answered and B was submitted."""
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    held_back(with_clock(lan, port.to), delay)
    lan.write(100, A * 2)
    assert len(lan.requests(*WRITES)) == 2  # sent again
    assert initiator.ghosts == 1
    assert lan.read(100, 2) == A * 2  # a read may pass: ghost and disk hold the same
    newer = lan.submit(write_request(101, B))
    beside = lan.submit(write_request(102, B))  # not under the ghost: not held up by it
    lan.run(lambda: beside.done)
    assert not newer.done
    assert port.disk.log.count(("write", 100, 2)) == 1
    lan.run(lambda: newer.done)
    assert port.disk.log[-2:] == [("write", 100, 2), ("write", 101, 1)]  # the ghost first
    assert port.disk.whole(100, 3) == A + B + B
    assert initiator.ghosts == 0


def test_trap_14_a_ghost_that_never_shows_up_is_waited_out() -> None:
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    lose = [True]
    port.to.drop = lambda f: f[27] in WRITES and lose.pop() if lose else False
    began = lan.now
    lan.write(100, A)
    assert initiator.ghosts == 1
    newer = lan.submit(write_request(100, B))
    lan.run(lambda: newer.done)
    assert began + QUARANTINE <= lan.now < began + QUARANTINE + 0.1
    assert port.disk.sector(100) == B


def test_trap_14_a_new_process_waits_for_the_ghosts_of_the_last_one() -> None:
    """It cannot know what its predecessor left on the wire: its first write waits, its reads do not."""
    lan = Lan()
    lan.target()
    began = lan.now
    lan.attach(wait=False)
    lan.run(lambda: lan.initiator.up)
    write = lan.submit(write_request(0, A))
    assert lan.read(5, 1) == bytes(SECTOR)
    assert lan.now < began + QUARANTINE
    assert not write.done
    lan.run(lambda: write.done)
    assert lan.now >= began + QUARANTINE


class ShortQueue:
    """A target that takes `service` seconds a request, and has room for `most` of them, whoever sends them.

    Any more vanish without a word.
    """

    def __init__(self, most: int, service: float = 100e-6) -> None:
        self.most, self.service = most, service
        self.depth, self.deepest, self.lost = 0, 0, 0
        self.free_at = 0.0

    def line(self) -> Line:
        """One cable that leads to it."""
        queue = self

        class Cable(Line):
            def _put(self, frame: bytes, due: float, via: int) -> None:
                if queue.depth >= queue.most:
                    queue.lost += 1
                    return
                queue.depth += 1
                queue.deepest = max(queue.deepest, queue.depth)
                queue.free_at = max(queue.free_at, due) + queue.service
                super()._put(frame, queue.free_at, via)

            def pop(self, now: float, via: int = 0) -> list[bytes]:
                frames = super().pop(now, via)
                queue.depth -= len(frames)
                return frames

        return Cable(delay=50e-6)


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("buffers", [0, 1, 2, 3, 16])
def test_trap_15_never_more_outstanding_than_the_buffer_count(buffers: int, mtu: int) -> None:
    """More than that is lost without a word. A count of 0 or 1 is served one by one, not refused."""
    lan = Lan(mtu)
    port = lan.target("vblade", buffers=buffers)
    queue = ShortQueue(max(1, buffers))
    port.to = queue.line()
    initiator = lan.attach()
    data = pattern(700)
    requests = [lan.submit(write_request(i * 100, data[i * 100 * SECTOR : (i + 1) * 100 * SECTOR])) for i in range(7)]
    lan.finish(*requests, most=200)
    assert lan.read(0, 700) == data
    assert queue.lost == 0
    assert queue.deepest == max(1, buffers)  # what it offers is used
    assert initiator.counters["lost"] == 0


def test_trap_15_two_initiators_share_the_buffers_of_one_target() -> None:
    """The count is for all clients together, and none knows of the others: losses are survived, and shares are fair."""
    lan = Lan()
    disk = MemoryBackend(1 << 16)
    queue = ShortQueue(16)
    for link in ("eth0", "eth1"):
        port = lan.target("vblade", disk=disk, link=link)
        port.to = queue.line()
    first = lan.attach(links=["eth0"])
    second = lan.attach(links=["eth1"])
    data = {first: pattern(2000, 1), second: pattern(2000, 2)}
    requests = []
    for initiator, content in data.items():
        request = write_request(0 if initiator is first else 10000, content)
        initiator.submit(request, lan.now)
        requests.append(request)
    lan.work()
    lan.run(lambda: any(r.done for r in requests))
    slower = next((r for r in requests if not r.done), None)
    if slower is not None:
        assert slower.left < 1500  # it was not starved
    lan.finish(*requests)
    assert not any(r.error for r in requests)
    assert disk.whole(0, 2000) == data[first]
    assert disk.whole(10000, 2000) == data[second]
    assert queue.lost > 0  # the trap was there
    assert queue.deepest <= 16


@pytest.mark.parametrize("like", TARGETS)
def test_trap_16_mtu_raised_and_lowered_while_requests_run(like: str) -> None:
    lan = Lan(1500)
    port = lan.target(like)
    initiator = lan.attach()
    link = lan.links[LINK]

    def set_mtu(mtu: int) -> None:
        port.mtu = link.mtu = mtu
        initiator.link_changed(LINK, link.mac, mtu, True, lan.now)

    lan.write(0, pattern(40))
    assert max(f[26] for f in lan.requests(*WRITES)) == 2
    set_mtu(9000)
    lan.pause(6)  # vblade looks at its MTU only when it is asked for its configuration; then larger frames are tried
    lan.write(0, pattern(40, 2))
    assert max(f[26] for f in lan.requests(*WRITES)) == 16
    read, buffer = read_request(0, 400)
    write = write_request(1000, pattern(400, 3))
    lan.submit(read)
    lan.submit(write)
    set_mtu(1500)
    lan.sent.clear()
    lan.run(lambda: read.done and write.done)
    assert (read.error, write.error) == (0, 0), (read.reason, write.reason)
    assert buffer[: 40 * SECTOR] == pattern(40, 2)
    assert port.disk.whole(1000, 400) == pattern(400, 3)
    assert max(len(f) for f in lan.sent) <= 1514


def test_trap_16_error_2_for_a_size_that_used_to_work_is_asked_about_and_split() -> None:
    """Our MTU did not change, the target's did: it refuses what it took before."""
    lan = Lan(9000)
    port = lan.target()
    initiator = lan.attach()
    lan.write(0, pattern(64))
    assert initiator.paths[0].sizes.limit == [16, 16]
    port.mtu = 1500
    lan.sent.clear()
    assert lan.read(0, 64) == pattern(64)
    assert initiator.counters["aoe_error_2"] > 0
    assert Command.CONFIG in {f[19] for f in lan.sent}
    assert initiator.paths[0].sizes.most == 2
    lan.sent.clear()
    assert lan.read(0, 64) == pattern(64)
    assert {f[26] for f in lan.requests()} == {2}  # learned


def test_trap_16_link_flap_pauses_and_goes_on() -> None:
    """ENETDOWN on send, no carrier, back again: requests wait, and none fails."""
    lan = Lan()
    port = lan.target()
    initiator = lan.attach()
    data = pattern(200)
    request = lan.submit(write_request(0, data))
    lan.refuse = lambda run: 0
    lan.pause(0.005)
    assert initiator.counters["send_failed_ENOBUFS"] > 0
    initiator.link_changed(LINK, LOCAL, 1500, False, lan.now)
    lan.refuse = None
    port.unplugged = True
    sent = len(lan.sent)
    lan.pause(20)
    assert len(lan.sent) == sent  # nothing is sent into an interface that has no carrier
    assert not request.done
    assert initiator.dead
    port.unplugged = False
    initiator.link_changed(LINK, LOCAL, 1500, True, lan.now)
    lan.run(lambda: request.done, most=2)
    assert not request.error
    assert port.disk.whole(0, 200) == data


@pytest.mark.parametrize("like", ["vblade", "ours"])
def test_trap_16_target_restart_in_place(like: str) -> None:
    lan = Lan()
    port = lan.target(like)
    initiator = lan.attach()
    lun = port.lun
    port.unplugged = True
    request = lan.submit(write_request(0, pattern(100)))
    lan.pause(8)
    assert initiator.dead
    lun.state.config, lun.state.reserved = b"", []
    port.unplugged = False
    port.announce(lan.now)
    lan.run(lambda: request.done, most=2)
    assert not request.error
    assert port.disk.whole(0, 100) == pattern(100)
    assert [e.what for e in lan.events if e.what in ("dead", "alive")] == ["dead", "alive"]


@pytest.mark.parametrize("sectors", [1 << 15, (1 << 16) - 1])
def test_trap_16_target_that_comes_back_smaller_is_not_written_to(sectors: int) -> None:
    lan = Lan()
    port = lan.target("vblade")
    initiator = lan.attach()
    whole = port.disk.sectors
    port.disk.sectors = sectors
    port.announce(lan.now)
    lan.run(lambda: not initiator.up)
    request = lan.submit(write_request(0, A))
    lan.pause(3)
    assert not request.done
    assert ("write", 0, 1) not in port.disk.log
    assert any(e.what == "path-stranger" and "shrunk" in e.text for e in lan.events)
    port.disk.sectors = whole
    lan.run(lambda: request.done, most=5)
    assert not request.error


def test_trap_16_target_that_comes_back_larger_has_grown() -> None:
    lan = Lan()
    port = lan.target("vblade")
    initiator = lan.attach()
    port.disk.sectors = 1 << 17
    port.announce(lan.now)
    lan.run(lambda: any(e.what == "grown" for e in lan.events))
    assert initiator.identify is not None
    assert initiator.identify.sectors == 1 << 17
    lan.write((1 << 17) - 1, A)


@pytest.mark.parametrize("like", TARGETS)
@pytest.mark.parametrize("ccmd", [ConfigCommand.TEST, ConfigCommand.TEST_PREFIX])
def test_trap_17_mismatch_of_test_and_prefix_is_silence(like: str, ccmd: ConfigCommand) -> None:
    """Silence means "no match" here: it is asked a few times and then taken for the answer."""
    lan = Lan()
    port = lan.target(like)
    port.lun.state.config = b"vm disk 7"
    exchange = lan.ask(Config(ccmd, b"another"), shelf=1, slot=0, timeout=2.0, want=1)
    assert exchange.answers == []
    assert exchange.copies == 5  # 0, 0.1, 0.3, 0.7, 1.5 s
    if like != "qaoed" or ccmd is ConfigCommand.TEST_PREFIX:  # whose exact test never matches
        text = b"vm disk 7" if ccmd is ConfigCommand.TEST else b"vm"
        (answer,) = lan.ask(Config(ccmd, text), shelf=1, slot=0, want=1).answers
        assert not answer.header.failed


@pytest.mark.parametrize("like", ["qaoed", "ggaoed", "vblade", "ours"])
def test_trap_17_set_is_not_sent_twice(like: str) -> None:
    """The reply is lost. A second `set` would meet the first one's work: error 4 from qaoed and by the letter."""
    lan = Lan()
    port = lan.target(like)
    lose = [True]
    port.back.drop = lambda f: lose.pop() if lose else False
    exchange = lan.ask(Config(ConfigCommand.SET, b"new"), shelf=1, slot=0, timeout=2.0, want=1, once=True)
    assert exchange.answers == []
    assert exchange.copies == 1
    assert port.lun.state.config == b"new"  # it worked all the same: reading back tells
    (answer,) = lan.ask(Config(), shelf=1, slot=0, want=1).answers
    assert Config.parse(answer.frame).string == b"new"
    lose.append(True)
    repeated = lan.ask(Config(ConfigCommand.SET, b"new"), shelf=1, slot=0, timeout=2.0, want=1)  # the trap is real
    assert repeated.copies == 2
    assert repeated.answers[0].header.failed == (like == "qaoed")


def test_trap_18_mask_error_comes_without_the_e_flag() -> None:
    lan = Lan()
    port = lan.target("vblade")
    edit = MaskList(MaskCommand.EDIT, ((MaskDirectiveCommand.ADD, LOCAL), (9, REMOTE2)))
    (answer,) = lan.ask(edit, shelf=1, slot=0, want=1).answers
    assert not answer.header.failed
    told = MaskList.parse(answer.frame)
    assert (told.merror, told.count, told.directives) == (MaskError.BAD_DIRECTIVE, 1, ())
    assert port.lun.state.mask == [LOCAL]  # the directive before it stays applied


@pytest.mark.parametrize("like", ["vblade", "ggaoed", "ours"])
def test_trap_18_one_who_is_locked_out_hears_nothing_more(like: str) -> None:
    """I/O then waits as it does for a dead target, and goes on when the mask lets us in again."""
    lan = Lan()
    port = lan.target(like)
    initiator = lan.attach()
    edit = MaskList(MaskCommand.EDIT, ((MaskDirectiveCommand.ADD, REMOTE2),))
    assert lan.ask(edit, shelf=1, slot=0, want=1).answers
    assert lan.ask(MaskList(), shelf=1, slot=0, want=1).answers == []
    request, buffer = read_request(0, 1)
    lan.submit(request)
    lan.pause(10)
    assert initiator.dead
    assert not request.done
    port.lun.state.mask = [LOCAL]
    lan.run(lambda: request.done, most=2)
    assert not request.error
    assert buffer == bytes(SECTOR)


def test_trap_18_vblade_corrupts_a_list_of_three() -> None:
    """Only reading the list back shows it: the reply to the edit claims no error."""
    lan = Lan()
    lan.target("vblade")
    members = [LOCAL, REMOTE, REMOTE2, STRANGER]
    edit = MaskList(MaskCommand.EDIT, tuple((MaskDirectiveCommand.ADD, mac) for mac in members))
    (answer,) = lan.ask(edit, shelf=1, slot=0, want=1).answers
    assert MaskList.parse(answer.frame).merror == 0
    (answer,) = lan.ask(MaskList(), shelf=1, slot=0, want=1).answers
    assert [mac for _, mac in MaskList.parse(answer.frame).directives] != members


def test_trap_19_reservation_by_another_host_is_final() -> None:
    """Error 6 is an answer: no retries, EPERM at once; and the LUN goes on when it is released."""
    for like in ("vblade", "ggaoed", "ours"):
        lan = Lan()
        port = lan.target(like)
        lan.attach()
        port.lun.state.reserved = [STRANGER]
        lan.sent.clear()
        write = lan.do(write_request(0, A))
        read, _ = read_request(0, 1)
        lan.do(read)
        assert (write.error, read.error) == (errno.EPERM, errno.EPERM)
        assert write.reason == "target refuses: target is reserved"
        assert len(lan.requests(*WRITES)) == 1
        assert ("write", 0, 1) not in port.disk.log
        assert lan.flush().error == (0 if like == "ggaoed" else errno.EPERM)  # which does not block it
        port.lun.state.reserved = []
        lan.write(0, A)


@pytest.mark.parametrize("like", ["vblade", "ggaoed", "ours"])
def test_trap_19_release_read_back_and_forced(like: str) -> None:
    """ggaoed refuses its owner's own release with error 6, and only a forced one works."""
    lan = Lan()
    lan.target(like)

    def reservation(rcmd: int, *macs: bytes) -> tuple[bool, tuple[bytes, ...]]:
        (answer,) = lan.ask(Reserve(rcmd, macs), shelf=1, slot=0, want=1).answers
        (now,) = lan.ask(Reserve(), shelf=1, slot=0, want=1).answers
        return answer.header.failed, Reserve.parse(now.frame).macs

    assert reservation(ReserveCommand.SET, LOCAL) == (False, (LOCAL,))
    refused = like == "ggaoed"
    assert reservation(ReserveCommand.SET) == (refused, (LOCAL,) if refused else ())
    assert reservation(ReserveCommand.FORCE_SET) == (False, ())


def test_trap_20_two_disks_for_one_address_are_told_at_attach() -> None:
    lan = Lan()
    lan.target("vblade", sectors=1 << 16)
    lan.target("vblade", sectors=1 << 17, mac=REMOTE2)
    with pytest.raises(DeviceError) as caught:
        open_device(lan)
    assert caught.value.errno == errno.ENOTUNIQ
    assert "two different disks answer for e1.0" in str(caught.value.strerror)
    assert REMOTE.hex(":") in str(caught.value.strerror)
    assert REMOTE2.hex(":") in str(caught.value.strerror)
    assert not lan.requests(*WRITES)


@pytest.mark.parametrize("as_path", [True, False])
def test_trap_20_a_stranger_that_comes_later_gets_nothing_and_is_reported(as_path: bool) -> None:
    lan = Lan()
    disk = MemoryBackend(1 << 16)
    lan.target(disk=disk, serial="ours")
    if as_path:
        lan.target(disk=disk, serial="ours", mac=STRANGER)
    initiator = lan.attach(learn_paths=True)
    lan.run(lambda: all(p.up for p in initiator.paths))
    if as_path:
        lan.ports.pop()
    stranger = lan.target(serial="another", mac=STRANGER)
    stranger.announce(lan.now)
    lan.run(lambda: len(initiator.paths) == 2 and initiator.paths[1].state is PathState.STRANGER)
    assert any(e.what == "path-stranger" and "another disk answers" in e.text for e in lan.events)
    lan.write(0, pattern(500))
    assert lan.read(0, 500) == pattern(500)
    lan.pause(100)
    assert [what for what in stranger.disk.log if what[0] != "read"] == []
    assert {f[27] for f in lan.sent if f[:6] == STRANGER and f[19] == Command.ATA} == {Ata.IDENTIFY}


@pytest.mark.parametrize("state", [PathState.UP, PathState.OUT])
@pytest.mark.parametrize("batched", [False, True])
def test_trap_20_a_stranger_in_its_place_answers_for_nothing(state: PathState, batched: bool) -> None:
    """The target is started anew with another file: it may know tags of ours that were under way, and is believed none."""
    lan = Lan()
    held: list[bytes] = []
    peer = Scripted(lambda f: held.append(f) or ())  # type: ignore[func-returns-value]
    port = lan.peer(peer)
    initiator = lan.attach()
    write = lan.submit(write_request(0, pattern(8)))
    read, buffer = read_request(100, 8)
    lan.submit(read)
    lan.run(lambda: len(held) >= 8)
    if state is PathState.OUT:
        port.unplugged = True
        lan.run(lambda: not initiator.up)
        port.unplugged = False
    stranger = Identify("another", "1", "scripted peer", IDENTITY.sectors)
    port.become(Scripted(identify=stranger))
    lan.hear(
        LINK, build_header(b"\xff" * 6, REMOTE, 1, 0, Command.CONFIG, 0, RESPONSE) + Config(sector_count=2).build()
    )
    replies = [reply(f, B * f[26] if f[27] in READS else b"") for f in held]
    if batched:
        lan.hear_batch(LINK, replies)
    else:
        for frame in replies:
            lan.hear(LINK, frame)
    lan.work()
    assert not initiator.up
    lan.pause(2)
    assert initiator.paths[0].state is PathState.STRANGER
    assert not write.done
    assert not read.done
    assert buffer == bytes(8 * SECTOR)
    peer.script = lambda f: [reply(f, A * f[26] if f[27] in READS else b"")]
    port.become(peer)  # and the right one again
    lan.run(lambda: write.done and read.done)
    assert buffer == A * 8


def test_trap_20_one_disk_by_two_macs_is_used_by_both() -> None:
    lan = Lan()
    disk = MemoryBackend(1 << 16)
    for mac in (REMOTE, REMOTE2):
        lan.target(disk=disk, mac=mac, serial="one")
    device = open_device(lan)
    assert len([p for p in device.initiator.paths if p.up]) == 2
    device.write(memoryview(bytearray(pattern(2000))), 0)
    assert disk.whole(0, 2000) == pattern(2000)
    assert {f[:6] for f in lan.requests(*WRITES)} == {REMOTE, REMOTE2}


def test_trap_20_half_wildcards_are_not_asked() -> None:
    """qaoed keeps silent to 7.255 and 65535.3: discovery asks for all, or for one exactly."""
    lan = Lan()
    lan.target("qaoed")
    engine = MemoryEngine(lan)
    with virtual_time(lan):
        for address in (None, E1_0):
            assert [a.address for a in find(engine, address, 2.0)] == [E1_0]  # type: ignore[arg-type]
    asked = {Address(h.major, h.minor) for h in map(parse_header, lan.sent)}
    assert asked == {Address(ALL_SHELVES, ALL_SLOTS), E1_0}
    assert lan.ask(Config(), shelf=1, slot=ALL_SLOTS).answers == []  # the trap is real
    for arg in (taskfile(Ata.IDENTIFY), MaskList(), Reserve()):
        for shelf, slot in ((ALL_SHELVES, ALL_SLOTS), (1, ALL_SLOTS), (ALL_SHELVES, 0)):
            with pytest.raises(ValueError, match="only Query Config"):
                Exchange([(LINK, LOCAL)], arg, seed=1, now=0, timeout=1, shelf=shelf, slot=slot)


def test_trap_21_identify_strings_swapped_or_raw() -> None:
    """Byte-swapped and padded with spaces everywhere; raw and with NULs in qaoed, where swapping shows 214365879."""
    found = {}
    for like in ("vblade", "ggaoed", "qaoed", "kvblade"):
        lan = Lan()
        lan.target(like)
        found[like] = lan.attach().identify
        assert found[like].sectors == 1 << 16  # type: ignore[union-attr]
    assert {like: i.model for like, i in found.items() if i} == {
        "vblade": "Coraid EtherDrive vblade",
        "ggaoed": "ggaoed",
        "qaoed": "123456789",
        "kvblade": "kvblade",
    }
    assert found["qaoed"] is not None
    assert found["qaoed"].serial == "/memory"
    assert found["ggaoed"] is not None
    assert found["ggaoed"].serial == "e1.0"


@pytest.mark.parametrize(
    ("lba48", "word_60", "word_100", "sectors"),
    [
        ({83: 1 << 10}, 0x0FFFFFFF, 1 << 33, 1 << 33),
        ({86: 1 << 10}, 0x0FFFFFFF, 1 << 33, 1 << 33),
        ({}, 0x0FFFFFFF, 1 << 33, 0x0FFFFFFF),
        ({}, 12345, 1 << 33, 12345),
        ({83: 0xFBFF, 86: 0xFBFF}, 777, 1 << 33, 777),
        ({83: 1 << 10}, 12345, 99, 99),
    ],
)
def test_trap_21_capacity_by_the_lba48_bit(lba48: dict[int, int], word_60: int, word_100: int, sectors: int) -> None:
    data = bytearray(IDENTITY.build())
    for word in (83, 86):
        data[word * 2 : word * 2 + 2] = lba48.get(word, 0).to_bytes(2, "little")
    data[120:124] = word_60.to_bytes(4, "little")
    data[200:208] = word_100.to_bytes(8, "little")
    assert Identify.parse(bytes(data)).sectors == sectors


def test_trap_22_trailing_bytes_are_never_copied() -> None:
    """Past 512 * n lies another client's data."""
    lan = Lan(9000)
    lan.peer(Scripted(lambda f: [reply(f, A * f[26] + JUNK * 50)], sectors=16))
    lan.attach()
    memory = bytearray(b"-" * (20 * SECTOR))
    request = Request(Kind.READ, 7, 9, memoryview(memory)[SECTOR : 10 * SECTOR])
    assert not lan.do(request).error
    assert memory == b"-" * SECTOR + A * 9 + b"-" * (10 * SECTOR)


def test_trap_22_padding_is_never_taken_for_a_string() -> None:
    """vblade fills its replies up with what the buffer held before; a length says where ours ends."""
    lan = Lan()
    lan.target("vblade").lun.state.config = b"mine"
    (answer,) = lan.ask(Config(), shelf=1, slot=0, want=1).answers
    assert Config.parse(answer.frame + JUNK).string == b"mine"
    assert Reserve.parse(build_header(LOCAL, REMOTE, 1, 0, 3, 1) + b"\0\1" + LOCAL + JUNK).macs == (LOCAL,)
    assert MaskList.parse(build_header(LOCAL, REMOTE, 1, 0, 2, 1) + bytes(4) + JUNK).directives == ()


def test_trap_22_identify_data_ends_after_512_bytes() -> None:
    lan = Lan()
    lan.peer(Scripted(identify=IDENTITY.build() + JUNK * 10))
    initiator = lan.attach()
    assert initiator.identify == IDENTITY


@pytest.mark.parametrize("seed", range(20))
def test_trap_23_tags_have_bit_31_and_are_never_0_or_ffffffff(seed: int) -> None:
    """Around the whole circle of numbers, and just before its end: so the kernel's own aoe driver takes none for its."""
    exchange = Exchange([(LINK, LOCAL)], Config(), seed=seed, now=0, timeout=100)
    tags = [parse_header(frame).tag for t in range(100) for _, frame in exchange.due(float(t))]
    lan = Lan()
    lan.target()
    initiator = lan.attach()
    initiator.copies.next = (1 << 31) * seed - 3 if seed else 1
    lan.write(0, pattern(2000))
    ours = [parse_header(frame).tag for frame in lan.sent]
    assert all(tag >> 31 for tag in tags + ours)
    assert not {0, 0xFFFFFFFF} & {*tags, *ours}
    assert len(set(ours)) == len(ours)
    assert len(set(tags)) == len(tags)


def test_trap_23_tags_start_somewhere_unpredictable() -> None:
    starts = set()
    for seed in range(200):
        lan = Lan()
        lan.target()
        with virtual_time(lan):
            engine = MemoryEngine(lan)
            engine.seed = lambda seed=seed: seed  # type: ignore[method-assign, misc]
            exchanges = find(engine, E1_0, 0.5)  # type: ignore[arg-type]
        starts.add(exchanges[0].header.tag)
    assert len(starts) == 200


def test_trap_24_own_frames_and_other_hosts_requests_change_nothing() -> None:
    """A socket on `lo`, or on a bridge, shows us our own requests; they are no replies, whatever they look like."""
    lan = Lan()
    lan.target()
    initiator = lan.attach()
    read, buffer = read_request(0, 8)
    write = write_request(100, pattern(8))
    lan.submit(read)
    lan.submit(write)
    for frame in list(lan.sent):
        lan.hear(LINK, frame)
        turned = frame[6:12] + frame[:6] + frame[12:]  # even if it seems to come from the target
        lan.hear(LINK, turned)
    lan.work()
    assert initiator.counters["dropped_request"] == 2 * len([f for f in lan.sent if f[16:19] == b"\0\1\0"])
    assert not read.done
    assert not write.done
    lan.run(lambda: read.done and write.done)
    assert buffer == bytes(8 * SECTOR)


def test_trap_25_commands_2_and_3_are_asserted_on_bytes() -> None:
    """Wireshark prints them as unknown, so a capture proves nothing: here is every byte."""
    head = bytes.fromhex("020000000201 020000000101 88a2 10 00 0001 00".replace(" ", ""))
    tag = bytes.fromhex("80000007")
    args = (LOCAL, REMOTE2)
    edit = MaskList(MaskCommand.EDIT, ((MaskDirectiveCommand.ADD, args[0]), (MaskDirectiveCommand.DELETE, args[1])))
    cases = [
        (MaskList(), "02", "00 00 00 00"),
        (edit, "02", f"00 01 00 02 00 01 {LOCAL.hex()} 00 02 {REMOTE2.hex()}"),
        (Reserve(), "03", "00 00"),
        (Reserve(ReserveCommand.SET, args), "03", f"01 02 {LOCAL.hex()} {REMOTE2.hex()}"),
        (Reserve(ReserveCommand.FORCE_SET), "03", "02 00"),
    ]
    for arg, command, expected in cases:
        frame = build_request(REMOTE, LOCAL, 1, 0, 0x80000007, arg)  # type: ignore[arg-type]
        body = head + bytes.fromhex(command) + tag + bytes.fromhex(expected.replace(" ", ""))
        assert frame == body.ljust(60, b"\0")


def test_trap_26_kvblade_and_its_silences() -> None:
    """Nothing that it would drop is ever sent, and what it cannot do ends by time and not by hanging."""
    lan = Lan()
    port = lan.target("kvblade")
    lan.attach()
    for lba, count in ((0, 1), (1, 2), (2, 63)):
        lan.write(lba, pattern(count))
        assert lan.read(lba, count) == pattern(count)
    assert not lan.flush().error
    assert not any(port.lun.counters[reason] for reason in ("short", "no-sectors", "short-data", "command"))
    assert all(len(f) >= 36 for f in lan.sent)
    for arg in (MaskList(), Reserve()):
        exchange = lan.ask(arg, shelf=1, slot=0, want=1, timeout=1.0)
        assert exchange.answers == []
        assert exchange.copies == 4
    # The nibble of its replies is always 0: a set is told by its tag, not by its sub-command.
    (answer,) = lan.ask(Config(ConfigCommand.SET, b"name"), shelf=1, slot=0, want=1).answers
    assert Config.parse(answer.frame).ccmd == 0
    assert Config.parse(answer.frame).string == b"name"


@pytest.mark.parametrize("like", TARGETS)
def test_trap_27_no_frame_of_ours_has_the_response_bit(like: str) -> None:
    """qaoed and torus serve responses as requests: one such frame of ours could set two hosts to answering for ever."""
    lan = busy_session(like)
    assert len(lan.sent) > 50
    assert not any(frame[14] & 0x0F for frame in lan.sent)  # R, E and the reserved bits
    assert not any(frame[15] for frame in lan.sent)
    assert {frame[14] >> 4 for frame in lan.sent} == {1}


def test_trap_27_what_comes_in_never_makes_us_answer() -> None:
    """Requests, replies, nonsense: a frame may end a wait, but none is answered."""
    lan = Lan()
    lan.target("qaoed")
    initiator = lan.attach()
    lan.read(0, 30)
    frames = lan.sent + lan.heard
    for frame in frames:
        turned = frame[6:12] + frame[:6] + frame[12:]
        for each in (frame, turned, turned[:14] + bytes([turned[14] ^ RESPONSE]) + turned[15:]):
            initiator.receive(LINK, each, lan.now)
            assert initiator.transmit(lan.now) == []


@pytest.mark.parametrize("like", TARGETS)
def test_trap_28_past_the_end_is_refused_here_and_never_asked(like: str) -> None:
    """qaoed answers a read past the end with stale memory and status OK, and grows its file for a write."""
    lan = Lan()
    port = lan.target(like, sectors=100)
    device = open_device(lan)
    size = 100 * SECTOR
    lan.sent.clear()
    cases = [
        (size, 512),
        (size - 512, 1024),
        (size - 1, 2),
        (size + 512, 1),
        (1 << 62, 4096),
        (-512, 512),
        (0, size + 1),
    ]
    for offset, length in cases:
        with pytest.raises(DeviceError) as caught:
            device.read(memoryview(bytearray(length)), offset)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(DeviceError) as caught:
            device.write(memoryview(bytearray(length)), offset)
        assert caught.value.errno == errno.ENOSPC
        assert "past the end" in str(caught.value.strerror)
    assert lan.sent == []
    assert port.disk.sectors == 100
    device.write(memoryview(bytearray(pattern(100))), 0)
    buffer = bytearray(size)
    device.read(memoryview(buffer), 0)
    assert buffer == pattern(100)
    for before, after in pairwise(sorted((lba_of(f), f[26]) for f in lan.requests(*READS, *WRITES))):
        assert before[0] + before[1] <= 100
        assert after[0] + after[1] <= 100
