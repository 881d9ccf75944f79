# SPDX-License-Identifier: BSD-3-Clause
"""Messages to the kernel's nbd, byte by byte against linux/nbd-netlink.h, and the sentences for what it refuses."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_ACK, NetlinkError

from aoe_nbd.host import nbd

HEADER = Path("/usr/include/linux/nbd-netlink.h")
Tree = dict[int, Any]


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    """Type and value of each netlink attribute in `data`."""
    found = []
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found.append((kind & 0x3FFF, data[4:length]))
        data = data[(length + 3) & ~3 :]
    return found


def number(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


class FakeSocket:
    """Takes what is sent as the kernel would see it, and answers with bytes that the kernel would send."""

    prid = 0x1F

    def __init__(self) -> None:
        self.asked: list[tuple[int, Tree, bool]] = []
        self.answer: bytes | NetlinkError = b""

    def nlm_request(self, msg: Any, msg_type: int, msg_flags: int) -> list[Any]:
        assert msg_type == self.prid
        msg["header"]["type"], msg["header"]["flags"] = msg_type, msg_flags
        msg.encode()
        raw = bytes(msg.data)
        command, version = struct.unpack_from("=BB", raw, 16)
        assert version == 1
        self.asked.append((command, dict(attributes(raw[20:])), bool(msg_flags & NLM_F_ACK)))
        if isinstance(self.answer, NetlinkError):
            raise self.answer
        if not self.answer:
            return []
        body = struct.pack("=BBH", command, 1, 0) + self.answer
        reply = nbd.nbdmsg(struct.pack("=IHHII", 16 + len(body), self.prid, 0, 1, 0) + body)
        reply.decode()
        return [reply]

    def close(self) -> None:
        pass


@pytest.fixture
def socket(monkeypatch: pytest.MonkeyPatch) -> FakeSocket:
    fake = FakeSocket()
    monkeypatch.setattr(nbd, "_open", lambda: fake)
    return fake


def test_connect(socket: FakeSocket) -> None:
    socket.answer = attribute(1, struct.pack("=I", 3))
    assert nbd.Kernel().connect(7, 1 << 30, flags=0b101, patience=99, backend="e1.0") == 3
    ((command, tree, _),) = socket.asked
    assert command == 1
    assert 1 not in tree, "the kernel chooses the device"
    assert [number(tree[kind]) for kind in (2, 3, 4, 8, 5)] == [1 << 30, 512, 0, 99, 0b101]
    assert all(len(tree[kind]) == 8 for kind in (2, 3, 4, 5, 6, 8)), "they are 64 bits wide"
    ((item, value),) = attributes(tree[7])
    assert (item, attributes(value)) == (1, [(1, struct.pack("=I", 7))])
    assert tree[10] == b"e1.0\0"


def test_reconfigure_says_only_what_changes(socket: FakeSocket) -> None:
    kernel = nbd.Kernel()
    kernel.reconfigure(3, "e1.0", timeout=5)
    kernel.reconfigure(3, "e1.0", fd=9, size=1 << 20, timeout=0, patience=1)
    (first, only, acknowledged), (second, all_of_it, _) = socket.asked
    assert (first, second, acknowledged) == (3, 3, True)
    assert sorted(only) == [1, 4, 10] and (number(only[1]), number(only[4])) == (3, 5)
    assert sorted(all_of_it) == [1, 2, 3, 4, 7, 8, 10] and number(all_of_it[4]) == 0


def test_disconnect(socket: FakeSocket) -> None:
    nbd.Kernel().disconnect(2)
    assert [(command, sorted(tree)) for command, tree, _ in socket.asked] == [(2, [1])]


def test_which_are_connected(socket: FakeSocket) -> None:
    def device(index: int, connected: bool) -> bytes:
        return attribute(1, attribute(1, struct.pack("=I", index)) + attribute(2, bytes([connected])))

    socket.answer = attribute(9, device(0, True) + device(1, False) + device(16, True))
    assert nbd.Kernel().connected() == {0: True, 1: False, 16: True}


@pytest.mark.parametrize(
    ("code", "naming"), [(errno.EPERM, "run it as root"), (errno.EBUSY, "Device or resource busy")]
)
def test_refusals_are_sentences(socket: FakeSocket, code: int, naming: str) -> None:
    socket.answer = NetlinkError(code)
    with pytest.raises(nbd.NbdError, match=naming) as caught:
        nbd.Kernel().disconnect(2)
    assert caught.value.errno == code and "disconnect /dev/nbd2" in caught.value.strerror


def test_no_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> None:
        raise NetlinkError(errno.ENOENT)

    tool = tmp_path / "modprobe"
    tool.write_text('#!/bin/sh\necho "modprobe: FATAL: Module $1 not found" >&2\nexit 1\n')
    tool.chmod(0o755)
    monkeypatch.setattr(nbd, "_bound", missing)
    monkeypatch.setattr(nbd, "_MODPROBE", (str(tool), "nbd"))
    with pytest.raises(nbd.NbdError, match=r"FATAL: Module nbd not found\): load it with `modprobe nbd`"):
        nbd.Kernel()


@pytest.mark.skipif(not HEADER.exists(), reason="linux-libc-dev is not installed")
def test_numbers_are_the_kernels() -> None:
    text = HEADER.read_text()
    enums = [
        re.findall(r"^\s(NBD_\w+)", block, re.MULTILINE) for block in re.findall(r"enum \{(.*?)\};", text, re.DOTALL)
    ]
    ours = [nbd.nbdmsg, nbd.nbdmsg.devices, nbd.nbdmsg.devices.device, nbd.nbdmsg.sockets, nbd.nbdmsg.sockets.socket]
    for names, message in zip(enums, ours, strict=False):
        assert [name for name, _ in message.nla_map] == names
    commands = [name.removeprefix("NBD_CMD_") for name in enums[5]][1:]
    assert [command.name for command in nbd.Command] == commands and [*nbd.Command] == [*range(1, 6)]
