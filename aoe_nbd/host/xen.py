# SPDX-License-Identifier: BSD-3-Clause
"""Disks of Xen domains: what a hotplug script does for them, who may share a LUN, and what is known of each guest's disk.

libxl makes a node backend/vbd/DOMID/DEVID in xenstore, with target= of the disk's line in `params` and `r` or `w` in `mode`,
and calls the script. The disk is attached to this host then, held for that node: by that name it is dropped again, whatever
has become of the node, and whoever holds it for a domain that there is no more is found out.

A disk is written by one VM at a time. One that is moving to this same host, or has a stub domain, is several domains with
one UUID. Other hosts are kept off by the fence (see `fence`), whose tag that UUID is.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..core.policy import Fencing
from ..options import Options
from ..wire.address import Address
from . import disks, holders, state, table
from .xenstore import Store, StoreError

SYS = Path("/sys")
GONE = 10.0  # s for the kernel's backend to let go of the device, once libxl has told it to
_LOOK = 0.05  # s between looks for that
_LISTS = {"interface": "interface", "netif": "interface", "mac": "mac"}  # parameters that add up, where others replace


class Refusal(OSError):
    """The disk cannot be had; the message is one sentence."""

    def __init__(self, sentence: str) -> None:
        super().__init__(None, sentence)


class Attach(Protocol):
    """`aoe-nbd attach`: returns the device."""

    def __call__(
        self,
        address: Address,
        given: state.Pairs,
        holder: str,
        *,
        once: bool,
        admit: Callable[[state.Folder], None],
    ) -> str: ...


class Detach(Protocol):
    """`aoe-nbd detach`: returns who holds it still."""

    def __call__(self, address: Address, holder: str) -> Mapping[str, int]: ...


class Vbd(NamedTuple):
    """One disk of one domain: its place in xenstore, and the names that follow from it."""

    domid: int
    devid: int

    @property
    def path(self) -> str:
        return f"backend/vbd/{self.domid}/{self.devid}"

    @property
    def holder(self) -> str:
        return f"xen:{self.domid}:{self.devid}"

    @property
    def backend(self) -> str:
        """Its folder in /sys/bus/xen-backend/devices, as long as the kernel has the disk open for the domain."""
        return f"vbd-{self.domid}-{self.devid}"


def of_path(path: str) -> Vbd:
    """The disk at XENBUS_PATH. Raises Refusal."""
    match = re.fullmatch(r"(?:/local/domain/\d+/)?backend/vbd/(\d+)/(\d+)", path)
    if not match:
        raise Refusal(f"XENBUS_PATH={path} is not that of a disk, backend/vbd/DOMID/DEVID: libxl calls this script")
    return Vbd(int(match[1]), int(match[2]))


def of_holder(name: str) -> Vbd | None:
    """The disk that a holder of a LUN stands for; None if it is no domain's."""
    match = re.fullmatch(r"xen:(\d+):(\d+)", name)
    return Vbd(int(match[1]), int(match[2])) if match else None


@dataclass(frozen=True)
class Wanted:
    """What the disk's line in the domain's configuration asks for: `access` is r, w, or w! for shared."""

    address: Address
    options: state.Pairs
    access: str


def wanted(params: str, mode: str, tag: str | None) -> Wanted:
    """Read `e1.0;option=value;…`, over the options of the LUN's line in the table. Raises Refusal and TableError.

    `tag` is the VM's UUID; without one (this host itself) no other host may have the fence by it.
    """
    first, *words = [word.strip() for word in params.split(";")]
    shared = "w!" in words or "!" in mode
    given = table.parse(f"target={params}", [first, *(word for word in words if word and word != "w!")])
    access = "r" if "w" not in mode else "w!" if shared else "w"
    names = {key for key, _ in given.options}
    if "readonly" in names:
        raise Refusal(f"target={params}: readonly is said by access=r, not here")
    if access == "w!" and dict(given.options).get("fence", "off") != "off":
        raise Refusal(f"target={params}: fence= is for one writer, and w! for several: leave one of the two")
    if access == "r" and shared:
        raise Refusal(f"target={params}: w! shares a disk for writing, so it goes with access=w only")
    line = table.find(given.address)
    inherited = [] if line is None else line.options
    if line is not None and access != "r" and parsed(inherited).readonly:
        raise Refusal(f"{given.address} is read-only on this host ({line.where}): give access=r")
    lists = {_LISTS[name] for name in names if name in _LISTS}
    dropped = names | {"readonly"} | ({"fence"} if access == "w!" else set())
    options = [(key, value) for key, value in inherited if key not in dropped and _LISTS.get(key) not in lists]
    options += given.options
    chosen = {key for key, _ in options}
    if access == "r":
        options.append(("readonly", "true"))
    if access != "w!" and "fence" not in chosen:
        options.append(("fence", "auto"))
    if access == "w" and tag and "owner-tag" not in chosen:
        options.append(("owner-tag", tag))
    return Wanted(given.address, options, access)


class Hotplug:
    """What the script does, with `attach` and `detach` of the command line."""

    def __init__(self, store: Store, attach: Attach, detach: Detach, note: Callable[[str], None]) -> None:
        self.store, self.attach, self.detach, self._note = store, attach, detach, note

    # -- the script's words ------------------------------------------------------------------------------------------

    def add(self, vbd: Vbd) -> str:
        """Have the disk's LUN attached, and tell libxl and the kernel where. Doing it again changes nothing.

        Returns the device. Raises Refusal, and what `attach` raises; then nothing has changed.
        """
        params, mode = (self.store.read(f"{vbd.path}/{name}") for name in ("params", "mode"))
        if not params or not mode:
            raise Refusal(f"xenstore has no target for {vbd.path}: give target=e<shelf>.<slot> in the disk's line")
        want = wanted(params, mode, self._tag(vbd.domid))
        self._drop_stale(want.address, vbd)
        device = self.attach(
            want.address, want.options, vbd.holder, once=True, admit=lambda folder: self._admit(folder, vbd, want)
        )
        self._drop_stale(want.address, vbd)  # those that could not be dropped as long as they were the last
        number = os.stat(device).st_rdev
        self.store.write(f"{vbd.path}/physical-device-path", device)
        self.store.write(f"{vbd.path}/physical-device", f"{os.major(number):x}:{os.minor(number):x}")
        self.store.write(f"{vbd.path}/hotplug-status", "connected")
        return device

    def remove(self, vbd: Vbd) -> None:
        """Give back what was attached for that disk, if anything is. Raises what `detach` raises."""
        for folder in state.folders():
            if vbd.holder in folder.holders():
                self._release(folder.address, vbd)

    # -- who is there ------------------------------------------------------------------------------------------------

    def _vms(self, domid: int) -> set[str]:
        """The VMs that a domain is of: its own, and that which it serves as a stub domain."""
        target = self.store.read(f"/local/domain/{domid}/target")
        found = (self.store.read(f"/local/domain/{each}/vm") for each in (str(domid), target) if each)
        return {vm for vm in found if vm}

    def _tag(self, domid: int) -> str | None:
        """The UUID of the VM; None for this host itself, as when pygrub looks into a disk."""
        if domid == 0:
            return None
        served = self.store.read(f"/local/domain/{domid}/target") or str(domid)
        vm = self.store.read(f"/local/domain/{served}/vm")
        if not vm:
            raise Refusal(f"xenstore does not say which VM domain {domid} is: it has no /local/domain/{served}/vm")
        return vm.rpartition("/")[2]

    def _stale(self, address: Address, vbd: Vbd) -> bool:
        """Whether that holder of the LUN is none: its domain has ended, or has no such disk any more."""
        if not self.store.exists(vbd.domid):
            return True
        params = self.store.read(f"{vbd.path}/params") or ""
        return params.partition(";")[0].strip() != str(address)

    def _drop_stale(self, address: Address, but: Vbd) -> None:
        """Mend what was left by a domain for which the script was never called at the end."""
        for name in state.Folder(address).holders():
            vbd = of_holder(name)
            if vbd is None or vbd == but or not self._stale(address, vbd):
                continue
            if not self.store.exists(vbd.domid):
                self.store.remove(vbd.path)  # by which the kernel's backend ends
            try:
                self._release(address, vbd)
            except OSError as error:
                self._note(f"{address} could not be taken from domain {vbd.domid}, which is gone: {error.strerror}")
            else:
                self._note(f"{address} was held by domain {vbd.domid}, which is gone: taken from it")

    def _release(self, address: Address, vbd: Vbd) -> None:
        """Drop a holder, once the kernel has closed the device for it."""
        backend = SYS / "bus/xen-backend/devices" / vbd.backend
        limit = time.monotonic() + GONE
        while backend.exists() and time.monotonic() < limit:
            time.sleep(_LOOK)
        self.detach(address, vbd.holder)

    # -- sharing -----------------------------------------------------------------------------------------------------

    def _admit(self, folder: state.Folder, vbd: Vbd, want: Wanted) -> None:
        """Refuse to attach it for this domain, if another or this host uses it in a way that does not go with that."""
        mine = self._vms(vbd.domid)
        ours = {vbd.domid}
        for name in folder.holders():
            other = of_holder(name)
            if other is None or other == vbd or self._stale(folder.address, other):
                continue
            if mine & self._vms(other.domid):
                ours.add(other.domid)
            elif want.access == "w" or (want.access == "r" and "w" in (self.store.read(f"{other.path}/mode") or "")):
                how = "" if want.access == "w" else " for writing"
                who, where = self._named(other)
                raise Refusal(
                    f"{folder.address} is in use{how} by domain {who} as {where}: "
                    f"shut it down, or `xl block-detach {who} {where}`, first"
                )
        if want.access != "w":
            return  # read-only is the whole device, for everybody; and who says w! knows
        self._admit_one_writer(folder, want, ours)

    def _admit_one_writer(self, folder: state.Folder, want: Wanted, ours: Collection[int]) -> None:
        """It may be attached already: then by the same fence, and used by nobody but the domains `ours`."""
        mine = {f"Xen domain {domid}" for domid in ours}
        users = [user for user in _users(folder.address) if user not in mine]
        if any(other.domid in ours for other in map(of_holder, folder.holders()) if other is not None):
            users = [user for user in users if not holders.is_process(user)]  # the VM's own device model
        if users:
            raise Refusal(f"{folder.address} is in use on this host, {holders.sentence(users)}: end that first")
        known = folder.state()
        if known is None or folder.running() is None:
            return
        there, here = parsed([state.pair(text) for text in known.options]), parsed(want.options)
        if there.fence != here.fence or (here.fence != Fencing.OFF and there.owner_tag != here.owner_tag):
            by = ", ".join(folder.holders()) or "nobody"
            raise Refusal(
                f"{folder.address} is attached already, by fence={there.fence} and not for this domain (held by {by}): "
                f"`aoe-nbd detach {folder.address} --all-holders` first"
            )

    def _named(self, vbd: Vbd) -> tuple[str, str]:
        """(domain, vdev) of a disk, by the names that xl knows, or else by number."""
        domain = self.store.read(f"/local/domain/{vbd.domid}/name")
        return domain or str(vbd.domid), self.store.read(f"{vbd.path}/dev") or str(vbd.devid)


def _users(address: Address) -> list[str]:
    return [user for index in disks.holding(str(address)) for user in holders.lasting(f"nbd{index}")]


def parsed(pairs: state.Pairs) -> Options:
    """What the bridge makes of them. Raises OptionError."""
    options = Options()
    for key, value in pairs:
        options.set(key, value)
    return options


# -- what is known of guests -------------------------------------------------------------------------------------------


def guests(names: Sequence[str]) -> list[dict[str, Any]]:
    """Those of a LUN's holders that are disks of domains: which domain, and what the kernel's backend has done for it.

    `requests` counts the domain's own since it has the disk, whatever was restarted beneath it; None for a domain whose disk
    the kernel's backend does not serve. What only root or dom0 may know is None.
    """
    found = [vbd for vbd in map(of_holder, names) if vbd is not None]
    if not found:
        return []
    try:
        with contextlib.closing(Store()) as store:
            return [_guest(vbd, store) for vbd in found]
    except StoreError:
        return [_guest(vbd, None) for vbd in found]


def _guest(vbd: Vbd, store: Store | None) -> dict[str, Any]:
    def read(path: str) -> str | None:
        return None if store is None else store.read(path)

    vm = read(f"/local/domain/{vbd.domid}/vm")
    return {
        "holder": vbd.holder,
        "domid": vbd.domid,
        "exists": None if store is None else store.exists(vbd.domid),
        "domain": read(f"/local/domain/{vbd.domid}/name"),
        "uuid": vm.rpartition("/")[2] if vm else None,
        "vdev": read(f"{vbd.path}/dev"),
        "access": read(f"{vbd.path}/mode"),
        "requests": _requests(SYS / "bus/xen-backend/devices" / vbd.backend / "statistics"),
    }


def _requests(folder: Path) -> dict[str, dict[str, int]] | None:
    """blkback's counters. It does not count the bytes of discards."""
    try:
        count = {name: int((folder / f"{name}_req").read_text()) for name in ("rd", "wr", "f", "ds")}
        sectors = {name: int((folder / f"{name}_sect").read_text()) for name in ("rd", "wr")}
    except (OSError, ValueError):
        return None
    return {
        "read": {"operations": count["rd"], "bytes": sectors["rd"] * 512},
        "write": {"operations": count["wr"], "bytes": sectors["wr"] * 512},
        "flush": {"operations": count["f"]},
        "trim": {"operations": count["ds"]},
    }
