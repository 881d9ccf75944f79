# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's network block devices, by its generic-netlink family `nbd` (linux/nbd-netlink.h).

A device is connected once, and then given new sockets and sizes as often as need be: whoever has it open never notices.
While no socket of a device lives, the kernel keeps its requests, for as long as `patience` says.
"""

# mypy: disallow-subclassing-any=False

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from .. import netlink

# It takes its time, so this module is for the supervisor; what sysfs tells is `disks`'s to say.
with netlink.parts():
    from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, NetlinkError, genlmsg, nla
    from pyroute2.netlink.generic import GenericNetlinkSocket

FAMILY, VERSION, GROUP = "nbd", 1, "nbd_mc_group"
BLOCK = 512  # logical block size: partition tables and file systems of AoE disks count in 512-byte sectors
FOREVER = 1_000_000_000  # s of patience, for on-dead=hold: thirty years

_MODPROBE = ("/sbin/modprobe", "nbd")


class Command(IntEnum):
    """NBD_CMD_…"""

    CONNECT = 1
    DISCONNECT = 2
    RECONFIGURE = 3
    LINK_DEAD = 4
    STATUS = 5


class nbdmsg(genlmsg):
    """One message of the family."""

    prefix = "NBD_ATTR_"
    nla_map = (
        ("NBD_ATTR_UNSPEC", "none"),
        ("NBD_ATTR_INDEX", "uint32"),
        ("NBD_ATTR_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_BLOCK_SIZE_BYTES", "uint64"),
        ("NBD_ATTR_TIMEOUT", "uint64"),
        ("NBD_ATTR_SERVER_FLAGS", "uint64"),
        ("NBD_ATTR_CLIENT_FLAGS", "uint64"),
        ("NBD_ATTR_SOCKETS", "sockets"),
        ("NBD_ATTR_DEAD_CONN_TIMEOUT", "uint64"),
        ("NBD_ATTR_DEVICE_LIST", "devices"),
        ("NBD_ATTR_BACKEND_IDENTIFIER", "asciiz"),
    )

    class sockets(nla):
        prefix = "NBD_SOCK_"
        nla_map = (("NBD_SOCK_ITEM_UNSPEC", "none"), ("NBD_SOCK_ITEM", "socket"))

        class socket(nla):
            prefix = "NBD_SOCK_"
            nla_map = (("NBD_SOCK_UNSPEC", "none"), ("NBD_SOCK_FD", "uint32"))

    class devices(nla):
        prefix = "NBD_DEVICE_"
        nla_map = (("NBD_DEVICE_ITEM_UNSPEC", "none"), ("NBD_DEVICE_ITEM", "device"))

        class device(nla):
            prefix = "NBD_DEVICE_"
            nla_map = (("NBD_DEVICE_UNSPEC", "none"), ("NBD_DEVICE_INDEX", "uint32"), ("NBD_DEVICE_CONNECTED", "uint8"))


class NbdError(OSError):
    """What the kernel refused, or why it could not be asked: an errno, and one sentence."""


class _Socket(GenericNetlinkSocket):
    module_err_level = "debug"  # a missing family is ours to report


def _open() -> Any:
    """A socket bound to the family, with the module loaded if it was not. Raises NbdError."""
    try:
        return _bound()
    except NetlinkError as error:
        if error.code != errno.ENOENT:
            raise NbdError(error.code, f"the kernel's nbd cannot be asked: {os.strerror(error.code)}") from None
    problem = "it was loaded, but is not there"
    try:
        done = subprocess.run(_MODPROBE, capture_output=True, text=True, check=False)
        problem = (done.stderr.strip().splitlines() or [problem])[-1]
        if done.returncode == 0:
            with contextlib.suppress(NetlinkError):
                return _bound()
    except OSError as error:
        problem = f"{_MODPROBE[0]}: {error.strerror}"
    raise NbdError(
        errno.ENODEV,
        f"this kernel has no nbd module loaded ({problem}): load it with `modprobe nbd` as root; Debian's own kernels have it",
    )


def _bound() -> Any:
    sock = _Socket()
    try:
        sock.bind(FAMILY, nbdmsg)
    except BaseException:
        sock.close()
        raise
    return sock


class Kernel:
    """Asks the kernel. Methods raise NbdError."""

    def __init__(self) -> None:
        self._socket = _open()

    def close(self) -> None:
        self._socket.close()

    def _ask(self, command: Command, what: str, attrs: Sequence[tuple[str, Any]], answer: bool = False) -> list[Any]:
        """Put one command; with `answer`, for its answer, and else for the kernel's word that it is done."""
        message = nbdmsg()
        message["cmd"], message["version"] = command, VERSION
        message["attrs"] = [[f"NBD_ATTR_{name}", value] for name, value in attrs]
        flags = NLM_F_REQUEST if answer else NLM_F_REQUEST | NLM_F_ACK
        try:
            return list(self._socket.nlm_request(message, msg_type=self._socket.prid, msg_flags=flags))
        except NetlinkError as error:
            if error.code == errno.EPERM:
                raise NbdError(error.code, f"no permission to {what}: run it as root (CAP_SYS_ADMIN)") from None
            raise NbdError(error.code, f"the kernel refused to {what}: {os.strerror(error.code)}") from None

    def connect(self, fd: int, size: int, *, flags: int, patience: int, backend: str) -> int:
        """Connect a free device, whose index is returned, to an NBD server by the socket `fd`.

        `size` in bytes; `flags` are the server's transmission flags; `patience` in s. `backend` names what it holds, in
        /sys/block/nbdN/backend too. There is no NBD timeout: with its one connection, a slow server is just waited for.
        """
        attrs = [
            ("SIZE_BYTES", size),
            ("BLOCK_SIZE_BYTES", BLOCK),
            ("TIMEOUT", 0),
            ("DEAD_CONN_TIMEOUT", patience),
            ("SERVER_FLAGS", flags),
            ("CLIENT_FLAGS", 0),
            ("SOCKETS", _sockets(fd)),
            ("BACKEND_IDENTIFIER", backend),
        ]
        for message in self._ask(Command.CONNECT, "connect an nbd device", attrs, answer=True):
            index = message.get_attr("NBD_ATTR_INDEX")
            if index is not None:
                return int(index)
        raise NbdError(errno.EPROTO, "the kernel connected an nbd device and did not say which")

    def reconfigure(
        self,
        index: int,
        backend: str,
        *,
        fd: int | None = None,
        size: int | None = None,
        timeout: int | None = None,
        patience: int | None = None,
    ) -> None:
        """Change a connected device. Only a dead socket is replaced: where all live, the kernel drops `fd` and says nothing.

        `timeout` in s: requests older than that have their socket declared dead, and wait for another; 0 is none.
        EINVAL if the device is not connected any more, or holds something else than `backend`.
        """
        attrs: list[tuple[str, Any]] = [("INDEX", index), ("BACKEND_IDENTIFIER", backend)]
        given = (("SIZE_BYTES", size), ("TIMEOUT", timeout), ("DEAD_CONN_TIMEOUT", patience))
        attrs += [(name, value) for name, value in given if value is not None]
        if size is not None:
            attrs.append(("BLOCK_SIZE_BYTES", BLOCK))
        if fd is not None:
            attrs.append(("SOCKETS", _sockets(fd)))
        self._ask(Command.RECONFIGURE, f"reconfigure /dev/nbd{index}", attrs)

    def disconnect(self, index: int) -> None:
        """Disconnect a device: what has not been answered by now fails. It becomes free when nobody has it open any more."""
        self._ask(Command.DISCONNECT, f"disconnect /dev/nbd{index}", [("INDEX", index)])

    def connected(self) -> dict[int, bool]:
        """Which devices there are, and whether they are in use: connected, or still open."""
        found: dict[int, bool] = {}
        for message in self._ask(Command.STATUS, "list the nbd devices", [], answer=True):
            devices = message.get_attr("NBD_ATTR_DEVICE_LIST")
            for device in devices.get_attrs("NBD_DEVICE_ITEM") if devices else ():
                found[device.get_attr("NBD_DEVICE_INDEX")] = bool(device.get_attr("NBD_DEVICE_CONNECTED"))
        return found


def _sockets(fd: int) -> dict[str, Any]:
    return {"attrs": [["NBD_SOCK_ITEM", {"attrs": [["NBD_SOCK_FD", fd]]}]]}


class Watch:
    """The kernel's word that a socket of a device has died, for somebody's poll: whenever `fileno` is readable, `read`."""

    def __init__(self) -> None:
        self._socket = _open()
        self._socket.add_membership(GROUP)

    def fileno(self) -> int:
        return int(self._socket.fileno())

    def read(self) -> set[int]:
        """The devices that have lost a socket. Some may be missing, if there were too many at once."""
        try:
            messages = self._socket.get()
        except (NetlinkError, OSError):
            return set()
        found = set()
        for message in messages:
            if message.get("cmd") == Command.LINK_DEAD:
                found.add(message.get_attr("NBD_ATTR_INDEX"))
        return found

    def close(self) -> None:
        self._socket.close()
