# SPDX-License-Identifier: BSD-3-Clause
"""How real targets differ from the letter, as data: one field a quirk, one `Personality` a target.

The defaults are our own target, which has none of them. `lun` asks these fields where the targets part ways. Observed
on the wire for vblade 25, ggaoed 1.1 and qaoed 0.80; read from the source for kvblade.

Not reproduced: what only crashes or corrupts the real one. Two quirks show in process only, because the filter on our
sockets keeps such frames from us: answering frames with the response flag, and frames to another host's MAC.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..wire.codes import SECTOR, Ata

# What a personality sends where the real target leaks memory: other clients' packets, heap, stack.
JUNK = b"OTHER PEOPLE'S DATA "


class Versions(enum.Enum):
    """What becomes of a request whose version is not 1."""

    REFUSE = "AoE error 5"
    SILENCE = "no answer"
    ANY = "served like any other"


class Refusal(enum.Enum):
    """How a request is turned down."""

    AOE = "AoE error 2, bad argument"
    ATA = "ATA abort"
    SILENCE = "no answer"
    ACCEPT = "it is not: the request is served, junk where data is missing"


class Unknown(enum.Enum):
    """The answer to a command that the target does not have."""

    ERROR = "error 1, the header and nothing more"
    ECHO = "error 1, the whole request repeated"
    COPY = "error 1, a header and then the whole request after it"
    SILENCE = "no answer"


class Width(enum.Enum):
    """What decides whether a request's address has 28 or 48 bits."""

    AGREE = "opcode and E flag, which must agree"
    OPCODE = "the opcode"
    FLAG = "the E flag"


class Padding(enum.Enum):
    """What short replies are filled up to 60 bytes with."""

    ZEROS = "zeros"
    NONE = "not filled: veth and tap show the bare reply"
    STALE = "ATA replies, with what was in the packet buffer before; others not at all"


class Order(enum.Enum):
    """In which order requests that arrive together are carried out and answered."""

    ARRIVAL = "as they came"
    OFFSET = "sorted by offset on the disk"
    RANDOM = "any"


class Facts(NamedTuple):
    """What a personality's IDENTIFY may depend on."""

    shelf: int
    slot: int
    path: str
    hostname: str
    sectors: int


@dataclass(frozen=True)
class Personality:
    """The quirks of one target. The defaults are ours."""

    name: str = "aoe-nbd"

    # The AoE header
    announce_version: int = 1  # version nibble of the start announcement
    announces_changes: bool = True  # announces itself again when the MTU changes or the link comes back
    versions: Versions = Versions.REFUSE
    echo_flags: bool = False  # replies repeat the request's version and low flag bits ...
    flags_or: int = 0  # ... with these bits added
    echo_error: bool = False  # successful replies repeat the request's Error byte
    answers_responses: bool = False
    half_wildcards: bool = True  # 7.255 and 65535.3 are matched, not only 65535.255
    checks_destination: bool = True  # frames to another host's MAC are ignored
    least_request: int = 24  # shorter frames are ignored
    commands: frozenset[int] = frozenset(range(4))
    unknown: Unknown = Unknown.ERROR
    padding: Padding = Padding.ZEROS
    shifted_errors: bool = False  # AoE errors: the request's payload follows the header at once, where Arg belongs

    # ATA
    opcodes: frozenset[int] = frozenset(Ata)
    width: Width = Width.AGREE
    checks_w: bool = True  # the W flag must be set on writes and clear on reads
    w_sizes_reply: bool = False  # W decides the reply's length: a read with it gets no data, a write without it does
    zero_sectors: Refusal = Refusal.ATA  # n = 0; ACCEPT is success and nothing done
    too_many: Refusal = Refusal.AOE  # more sectors than advertised
    short_data: Refusal = Refusal.AOE  # a write with less data than its count
    checks_bounds: bool = True
    bounds_status: int = 0x41  # of a request past the end
    flush_status: Mapping[int, int] = field(
        default_factory=dict
    )  # status by opcode, nothing being flushed; empty: a real flush
    flush_error: tuple[int, ...] = (0,)  # one of these is a flush reply's error byte
    clears_count: bool = False  # sector count of a reply is what remains, 0 after success; else as asked
    aoe_flag_on_ata_error: bool = False  # ATA errors set the E flag too, with Error 0
    partial_io: bool = False  # storage that ends early: a reply with the sectors there are, and the remaining count
    limit_at_query: bool = False  # the sector limit follows the MTU only when a config query comes
    power_of_two: bool = False  # sectors a frame: above 8 only 8, 16, 32, 64
    identify_count_one: bool = False  # IDENTIFY with a count other than 1 is AoE error 2
    identify: Callable[[Facts], bytes] | None = None
    follows_size: bool = True  # growth of the storage is noticed

    # Query Config
    buffers: int = 64
    firmware: int = 0x0001  # as the two bytes go out, most significant first
    set_identical: bool = True  # set succeeds where the string is already that
    bad_ccmd: int = 2  # AoE error of ccmd 5 to 15
    shows_ccmd: bool = True  # replies repeat the ccmd; else 0
    bare_config_errors: bool = False  # 24 bytes
    exact_test: bool = True  # test can match at all
    set_shows_string: bool = True  # the reply to set has the string
    bad_length: Refusal = Refusal.AOE  # a string that is not all there, or over 1024 bytes
    checks_length_on_read: bool = True
    length_of_frame: bool = False  # the string's length is held against the whole frame's, not against what follows

    # MAC mask list and Reserve/Release
    mask_miscounts: bool = False  # the third and later entries of the mask land in the second; deleting works on one
    reserve_by_destination: bool = False  # the owner is looked for under the frame's destination MAC
    reserve_searches_sorted: bool = False  # a list that a force-set left unsorted is searched as if it were sorted
    reserve_blocks_all: bool = True  # every ATA command but IDENTIFY; else reads and writes only

    # Concurrency
    order: Order = Order.ARRIVAL
    gather: float = 0.0  # seconds that requests are held back for more to join them
    dies_of_errors: bool = False  # the process ends when a socket call fails: interface down, frame above the MTU


def _words(strings: Mapping[int, bytes], numbers: Mapping[int, int], sectors: int) -> bytes:
    data = bytearray(SECTOR)
    for word, text in strings.items():
        data[word * 2 : word * 2 + len(text)] = text
    for word, value in numbers.items():
        struct.pack_into("<H", data, word * 2, value)
    struct.pack_into("<I", data, 120, min(sectors, (1 << 28) - 1))
    struct.pack_into("<Q", data, 200, sectors)
    return bytes(data)


def _swapped(text: str, size: int) -> bytes:
    raw = text.encode("latin-1", "replace")[:size].ljust(size)
    return b"".join(raw[i + 1 : i + 2] + raw[i : i + 1] for i in range(0, size, 2))


def _disk(serial: str, firmware: str, model: str) -> dict[int, bytes]:
    return {10: _swapped(serial, 20), 23: _swapped(firmware, 8), 27: _swapped(model, 40)}


_VBLADE_WORDS = {47: 0x8000, 49: 0x0200, 50: 0x4000, 83: 0x5400, 84: 0x4000, 86: 0x1400, 87: 0x4000, 93: 0x400B}


def _vblade_identify(facts: Facts) -> bytes:
    serial = f"{facts.shelf}.{facts.slot}:{facts.hostname}"
    return _words(_disk(serial, "V25", "Coraid EtherDrive vblade"), _VBLADE_WORDS, facts.sectors)


def _ggaoed_identify(facts: Facts) -> bytes:
    numbers = {48: 0x0001, 49: 0x0200, 55: 0x0010, 56: 0x00FF, 83: 0x7400, 86: 0x7400}
    return _words(_disk(f"e{facts.shelf}.{facts.slot}", "1.1", "ggaoed"), numbers, facts.sectors)


def _qaoed_identify(facts: Facts) -> bytes:
    strings = {10: facts.path.encode()[:19], 27: b"123456789"}
    return _words(strings, {49: 0x0200, 83: 0x0400, 86: 0x0400}, facts.sectors)


def _kvblade_identify(facts: Facts) -> bytes:
    return _words(_disk("SN HERE", "V0.2\n", "kvblade"), _VBLADE_WORDS, facts.sectors)


_IO = frozenset({Ata.READ, Ata.READ_EXT, Ata.WRITE, Ata.WRITE_EXT, Ata.IDENTIFY})

OURS = Personality()

PERSONALITIES: dict[str, Personality] = {
    "vblade": Personality(
        name="vblade",
        announce_version=0,
        announces_changes=False,
        versions=Versions.ANY,
        echo_flags=True,
        echo_error=True,
        checks_destination=False,
        unknown=Unknown.ECHO,
        padding=Padding.STALE,
        opcodes=_IO | {Ata.FLUSH, Ata.CHECK_POWER},
        width=Width.OPCODE,
        checks_w=False,
        w_sizes_reply=True,
        zero_sectors=Refusal.ACCEPT,
        flush_status={Ata.FLUSH: 0x00},
        flush_error=(0x00, 0x04, 0x10),
        clears_count=True,
        partial_io=True,
        limit_at_query=True,
        identify_count_one=True,
        identify=_vblade_identify,
        follows_size=False,
        buffers=16,
        firmware=0x4019,
        bad_length=Refusal.SILENCE,
        checks_length_on_read=False,
        length_of_frame=True,
        mask_miscounts=True,
        dies_of_errors=True,
    ),
    "ggaoed": Personality(
        name="ggaoed",
        versions=Versions.SILENCE,
        checks_destination=False,
        unknown=Unknown.COPY,
        padding=Padding.NONE,
        shifted_errors=True,
        opcodes=_IO | {Ata.FLUSH, Ata.FLUSH_EXT, Ata.CHECK_POWER},
        width=Width.FLAG,
        checks_w=False,
        too_many=Refusal.ATA,
        short_data=Refusal.ATA,
        flush_status={Ata.FLUSH: Ata.FLUSH, Ata.FLUSH_EXT: Ata.FLUSH_EXT},
        identify=_ggaoed_identify,
        follows_size=False,
        buffers=16,
        firmware=0x0100,
        reserve_by_destination=True,
        reserve_searches_sorted=True,
        reserve_blocks_all=False,
        order=Order.OFFSET,
        gather=0.001,
    ),
    "qaoed": Personality(
        name="qaoed",
        announces_changes=False,
        versions=Versions.ANY,
        echo_flags=True,
        flags_or=0x10,
        answers_responses=True,
        half_wildcards=False,
        checks_destination=False,
        commands=frozenset({0, 1}),
        unknown=Unknown.SILENCE,
        padding=Padding.NONE,
        opcodes=_IO,
        width=Width.FLAG,
        checks_w=False,
        too_many=Refusal.ACCEPT,
        short_data=Refusal.ACCEPT,
        checks_bounds=False,
        aoe_flag_on_ata_error=True,
        identify=_qaoed_identify,
        follows_size=False,
        buffers=20,
        firmware=0x400A,
        set_identical=False,
        bad_ccmd=1,
        exact_test=False,
        set_shows_string=False,
        bad_length=Refusal.ACCEPT,
        checks_length_on_read=False,
    ),
    "kvblade": Personality(
        name="kvblade",
        announces_changes=False,
        versions=Versions.ANY,
        echo_flags=True,
        checks_destination=False,
        least_request=36,
        commands=frozenset({0, 1}),
        unknown=Unknown.SILENCE,
        padding=Padding.NONE,
        opcodes=_IO | {Ata.FLUSH},
        width=Width.OPCODE,
        checks_w=False,
        zero_sectors=Refusal.SILENCE,
        too_many=Refusal.ATA,
        short_data=Refusal.SILENCE,
        bounds_status=0x01,
        flush_status={Ata.FLUSH: 0x40},
        clears_count=True,
        power_of_two=True,
        identify=_kvblade_identify,
        follows_size=False,
        buffers=1024,
        firmware=0x4002,
        shows_ccmd=False,
        bare_config_errors=True,
        bad_length=Refusal.ACCEPT,
        checks_length_on_read=False,
        order=Order.RANDOM,
        gather=0.001,
    ),
}
