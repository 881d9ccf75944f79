# SPDX-License-Identifier: BSD-3-Clause
"""Requests for the target, written byte by byte and not with the code under test, and an export to send them to."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from aoe_nbd.target import PERSONALITIES, Backend, Lun, State
from aoe_nbd.wire.address import Address

US = bytes.fromhex("0200000000bb")  # the target's MAC
ME = bytes.fromhex("0200000000aa")
OTHER = bytes.fromhex("0200000000cc")
EVERYONE = b"\xff" * 6
TAG = 0x80001234
SECTORS = 64
E28 = 0xE0000000


def sector(lba: int) -> bytes:
    """What the sample disk holds there."""
    return struct.pack("<Q", 0xABCD0000 + lba) * 64


def make_lun(
    tmp_path: Path, like: str | None = None, sectors: int = SECTORS, state: State | None = None, **options: Any
) -> Lun:
    path = tmp_path / "disk"
    if not path.exists():
        path.write_bytes(b"".join(sector(lba) for lba in range(sectors)))
    backend = Backend(str(path), **{key: options.pop(key) for key in ("read_only", "sync") if key in options})
    if like:
        options["like"] = PERSONALITIES[like]
    return Lun(Address(7, 3), backend, state, seed=1, **options)


def frame(
    command: int,
    body: bytes,
    *,
    src: bytes = ME,
    dst: bytes = US,
    verfl: int = 0x10,
    error: int = 0,
    shelf: int = 7,
    slot: int = 3,
    tag: int = TAG,
    pad: bool = True,
) -> bytes:
    whole = dst + src + struct.pack(">HBBHBBI", 0x88A2, verfl, error, shelf, slot, command, tag) + body
    return whole.ljust(60, b"\0") if pad else whole


def ata(
    opcode: int, lba: int = 0, n: int = 1, data: bytes = b"", flags: int = 0, feature: int = 0, **more: Any
) -> bytes:
    body = struct.pack(">BBBB", flags, feature, n, opcode) + lba.to_bytes(6, "little") + b"\0\0" + data
    return frame(0, body, **more)


def read28(lba: int, n: int = 1, **more: Any) -> bytes:
    return ata(0x20, lba | E28, n, **more)


def read48(lba: int, n: int = 1, flags: int = 0x40, **more: Any) -> bytes:
    return ata(0x24, lba, n, flags=flags, **more)


def write28(lba: int, data: bytes, n: int | None = None, flags: int = 0x01, **more: Any) -> bytes:
    return ata(0x30, lba | E28, len(data) // 512 if n is None else n, data, flags, **more)


def write48(lba: int, data: bytes, n: int | None = None, opcode: int = 0x34, **more: Any) -> bytes:
    return ata(opcode, lba, len(data) // 512 if n is None else n, data, 0x41, **more)


def config(ccmd: int, string: bytes = b"", length: int | None = None, **more: Any) -> bytes:
    return frame(1, struct.pack(">HHBBH", 0, 0, 0, ccmd, len(string) if length is None else length) + string, **more)


def mask(mcmd: int, *directives: tuple[int, bytes], count: int | None = None, **more: Any) -> bytes:
    body = struct.pack(">BBBB", 0, mcmd, 0, len(directives) if count is None else count)
    return frame(2, body + b"".join(struct.pack(">BB6s", 0, d, m) for d, m in directives), **more)


def reserve(rcmd: int, *macs: bytes, count: int | None = None, **more: Any) -> bytes:
    return frame(3, struct.pack(">BB", rcmd, len(macs) if count is None else count) + b"".join(macs), **more)


def ask(lun: Lun, request: bytes, mtu: int = 1500) -> bytes:
    """The one reply to `request`."""
    replies = lun.handle(memoryview(request), US, mtu)
    assert len(replies) == 1, replies
    return bytes(replies[0])


def silent(lun: Lun, request: bytes, reason: str, mtu: int = 1500) -> None:
    """No reply, and it is counted under `reason`."""
    before = lun.counters[reason]
    assert lun.handle(memoryview(request), US, mtu) == []
    assert lun.counters[reason] == before + 1


def head(command: int, verfl: int = 0x18, error: int = 0, to: bytes = ME, tag: int = TAG) -> bytes:
    """The header of a reply."""
    return to + US + bytes.fromhex("88a2") + bytes([verfl, error, 0, 7, 3, command]) + tag.to_bytes(4, "big")


def regs(reply: bytes) -> tuple[int, int, int, int]:
    """Version/flags byte, error register, sector count and status of an ATA reply."""
    return reply[14], reply[25], reply[26], reply[27]


OK = 0x40
