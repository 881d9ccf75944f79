# SPDX-License-Identifier: BSD-3-Clause
"""Attached LUNs as the kernel's aoe module would show them in sysfs, so that aoetools' own aoe-stat reads them:

    sysfs_dir=/run/aoe-nbd/sysfs aoe-stat

Below that folder, block/etherd!e1.0 holds `size` (sectors of 512 bytes), `netif` (a comma list), `state` (up or down),
`mac` (of the first path, without colons), `payload` (bytes of a frame) and `firmware-version` (that of IDENTIFY). There is
no `dev`: with it, aoe-stat compares the minor number with the node in /dev/etherd, which it expects to be no link. aoe-stat
also passes over every path with a letter p in it, so the folder's path must have none.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..wire.address import Address, parse_address
from ..wire.codes import SECTOR

PREFIX = "etherd!"


def _folder(address: Address | str, root: Path) -> Path:
    return root / "block" / f"{PREFIX}{address}"


def shown(lun: Mapping[str, Any]) -> dict[str, str]:
    """What each file of a LUN holds, without the newline."""
    paths = lun["paths"]
    alive = [path for path in paths if path["state"] == "up"] or paths
    sectors = min((min(path["sectors"]["read"], path["sectors"]["write"]) for path in alive), default=0)
    return {
        "size": str(lun["size_bytes"] // SECTOR),
        "netif": ",".join(dict.fromkeys(path["interface"] for path in paths)) or "none",
        "state": "up" if lun["state"] == "up" else "down",
        "mac": paths[0]["mac"].replace(":", "") if paths else "",
        "payload": str(sectors * SECTOR),
        "firmware-version": lun["identity"]["firmware"],
    }


def _replace(file: Path, text: str) -> None:
    """Have the file hold `text`, whole at every moment; it is not touched if it does."""
    with contextlib.suppress(FileNotFoundError):
        if file.read_text() == text:
            return
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text)
    fresh.rename(file)


def _write(folder: Path, files: Mapping[str, str]) -> None:
    """Have a LUN's folder hold the files; it appears with all of them."""
    making = folder if folder.is_dir() else folder.with_name(f".{folder.name}.new")
    making.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, text in files.items():
        _replace(making / name, text + "\n")
    if making != folder:
        making.rename(folder)


def write(status: Mapping[str, Any], root: Path) -> None:
    """Show the LUNs of a bridge below `root` as its status (aoe_nbd.host.report) has them. Raises OSError."""
    for lun in status["luns"]:
        try:
            _write(_folder(lun["address"], root), shown(lun))
        except FileNotFoundError:  # the last of the others has just gone, and the empty folder with it
            _write(_folder(lun["address"], root), shown(lun))


def down(address: Address, root: Path) -> None:
    """Show a LUN that is shown already as down, since nobody can ask it. Raises OSError."""
    folder = _folder(address, root)
    if folder.is_dir():
        _replace(folder / "state", "down\n")


def remove(address: Address, root: Path) -> None:
    """Show a LUN no more, and leave no empty folder."""
    folder = _folder(address, root)
    gone = folder.with_name(f".{folder.name}.gone")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
        root.rmdir()


def read(root: Path) -> dict[Address, dict[str, str]]:
    """Every LUN that is shown, with what its files hold; a file that is not there is left out."""
    found: dict[Address, dict[str, str]] = {}
    for folder in (root / "block").glob(f"{PREFIX}*"):
        with contextlib.suppress(ValueError):
            address = parse_address(folder.name.removeprefix(PREFIX))
            found[address] = {}
            for file in folder.glob("[!.]*"):
                with contextlib.suppress(OSError):
                    found[address][file.name] = file.read_text().strip()
    return found
