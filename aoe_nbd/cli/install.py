# SPDX-License-Identifier: BSD-3-Clause
"""Put into place, on this machine, what lets aoe-nbd be found: by a person, by systemd, udev and nbdkit.

For aoe-nbd from a checkout or a virtual environment, which stays where it is and is what is used then; the Debian package
has it all in place already. Doing it again renews what has changed. The table /etc/aoe-nbd/aoetab is put there once, and
never overwritten.
"""

# scripts/build-deb has this same module fill the package's tree: there is one list of what goes where.

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import manual
from .failure import Failure

_PACKAGE = Path(__file__).resolve().parents[1]  # aoe_nbd
_NBDKIT = "nbdkit-aoe-plugin"


class Piece(NamedTuple):
    """A file that some program looks for: what it is for, its template (below plugin/), and where it goes."""

    part: str
    template: str
    here: str  # on a machine, as its administrator would have put it there; {plugindir} is nbdkit's
    packaged: str  # as a distribution's package has it


PIECES = (
    Piece("command", "aoe-nbd", "/usr/local/bin/aoe-nbd", "/usr/bin/aoe-nbd"),
    Piece("nbdkit", f"nbdkit/{_NBDKIT}", f"{{plugindir}}/{_NBDKIT}", f"/usr/share/aoe-nbd/{_NBDKIT}"),
    Piece(
        "systemd",
        "systemd/aoe-nbd@.service",
        "/etc/systemd/system/aoe-nbd@.service",
        "/lib/systemd/system/aoe-nbd@.service",
    ),
    Piece(
        "systemd",
        "systemd/aoe-nbd.service",
        "/etc/systemd/system/aoe-nbd.service",
        "/lib/systemd/system/aoe-nbd.service",
    ),
    Piece("udev", "udev/60-aoe-nbd.rules", "/etc/udev/rules.d/60-aoe-nbd.rules", "/lib/udev/rules.d/60-aoe-nbd.rules"),
    Piece(
        "modules",
        "modules-load/aoe-nbd.conf",
        "/etc/modules-load.d/aoe-nbd.conf",
        "/usr/lib/modules-load.d/aoe-nbd.conf",
    ),
    Piece(
        "needrestart",
        "needrestart/aoe-nbd.conf",
        "/etc/needrestart/conf.d/aoe-nbd.conf",
        "/etc/needrestart/conf.d/aoe-nbd.conf",
    ),
    Piece("xen", "xen/block-aoe", "/etc/xen/scripts/block-aoe", "/etc/xen/scripts/block-aoe"),
    *(
        Piece(
            "manual",
            f"man/{page}",
            f"/usr/local/share/man/man{page[-1]}/{page}",
            f"/usr/share/man/man{page[-1]}/{page}",
        )
        for page in manual.PAGES
    ),
    Piece("table", "aoetab", "/etc/aoe-nbd/aoetab", "/etc/aoe-nbd/aoetab"),
)
_PROGRAMS = ("command", "nbdkit", "xen")  # parts that are run, and import the package
PARTS = tuple(dict.fromkeys(piece.part for piece in PIECES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb on `parser`."""
    add = parser.add_argument
    add("--uninstall", action="store_true", help="remove it again, but no table that was edited")
    add(
        "--only", action="append", choices=PARTS, metavar="PART", help=f"only this part, repeatable: {', '.join(PARTS)}"
    )
    add("--root", default="/", metavar="DIR", help="into the tree below DIR, telling no running program of it")
    add("--plugindir", metavar="DIR", help="nbdkit's folder of plugins (default: the one it was built with)")
    add(
        "--package-folder",
        metavar="DIR",
        help="the folder that holds the package aoe_nbd (default: this one's); '' if Python finds it by itself",
    )
    add("--packaged", action="store_true", help="as in a distribution's package: other places, below --root")


def templates() -> Path:
    """The folder of the templates: plugin/ in a checkout, share/aoe-nbd of an environment. Raises Failure."""
    for folder in (_PACKAGE.parent / "plugin", Path(sysconfig.get_path("data")) / "share" / "aoe-nbd"):
        if (folder / "aoetab").is_file():
            return folder
    raise Failure(f"there is nothing to install from beside {_PACKAGE}: a package of the system has it all in place")


class Installation:
    """Where each piece goes, and what is to stand there."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.root, self.packaged = Path(args.root).resolve(), args.packaged
        self.parts = args.only or list(PARTS)
        self.source = templates()
        folder = args.package_folder
        self.folder = ("" if self.packaged else str(_PACKAGE.parent)) if folder is None else folder
        if re.search(r'["\\\n]', self.folder):
            raise Failure(f"a folder's name with a quote or a backslash in it will not do: {self.folder!r}")
        self.plugindir = Path(args.plugindir).resolve() if args.plugindir else None
        if self.plugindir and not self.plugindir.is_dir():
            raise Failure(f"{args.plugindir} is not a folder")
        if not self.plugindir and "nbdkit" in self.parts and not self.packaged:
            self.plugindir = self.root / _plugindir().lstrip("/")

    def pieces(self) -> Iterator[tuple[Piece, Path]]:
        """Each piece that is meant, with its place."""
        for piece in PIECES:
            if piece.part in self.parts:
                place = piece.packaged if self.packaged else piece.here.format(plugindir=self.plugindir)
                yield piece, Path(place) if place.startswith(f"{self.plugindir}/") else self.root / place.lstrip("/")

    def text(self, piece: Piece) -> str:
        """What a piece holds."""
        source = self.source / piece.template
        if piece.part == "manual":
            return manual.page(source)
        text = source.read_text()
        if piece.part == "systemd" and not self.packaged:
            command = next(each.here for each in PIECES if each.part == "command")
            return text.replace("=/usr/bin/aoe-nbd ", f"={command} ")
        if piece.part in _PROGRAMS:
            text = text.replace('PACKAGE_FOLDER = ""', f'PACKAGE_FOLDER = "{self.folder}"', 1)
            if piece.part != "nbdkit" and not self.packaged:
                text = text.replace("#!/usr/bin/python3 ", f"#!{sys.executable} ", 1)
        return text


def _plugindir() -> str:
    nbdkit = shutil.which("nbdkit", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/usr/bin")
    if nbdkit is None:
        raise Failure("nbdkit is not installed: on Debian, `apt-get install nbdkit nbdkit-plugin-python`")
    config = subprocess.run([nbdkit, "--dump-config"], capture_output=True, text=True, check=True).stdout
    found = re.search("^plugindir=(.+)$", config, re.MULTILINE)
    if not found:
        raise Failure(f"{nbdkit} --dump-config names no plugindir: give --plugindir DIR")
    return found[1]


def _put(place: Path, text: str, executable: bool) -> str:
    """Have a file hold `text`, whole at every moment. Returns what was done."""
    with contextlib.suppress(FileNotFoundError):
        if place.read_text() == text and bool(place.stat().st_mode & 0o111) == executable:
            return "unchanged"
    done = "renewed" if place.exists() else "installed"
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f".{place.name}.new")
    fresh.write_text(text)
    fresh.chmod(0o755 if executable else 0o644)
    fresh.rename(place)
    return done


def install(which: Installation, say: Callable[[str], None]) -> None:
    """Put every piece into its place. Raises Failure and OSError."""
    for piece, place in which.pieces():
        if piece.part == "table" and place.exists():
            say(f"kept {place}")
            continue
        say(f"{_put(place, which.text(piece), piece.part in _PROGRAMS)} {place}")


def uninstall(which: Installation, say: Callable[[str], None]) -> None:
    """Remove every piece, and the folder of the table if it is empty then. Raises OSError."""
    for piece, place in which.pieces():
        if not place.exists():
            continue
        if piece.part == "table" and place.read_text() != which.text(piece):
            say(f"kept {place}")
            continue
        place.unlink()
        if piece.part == "table":
            with contextlib.suppress(OSError):
                place.parent.rmdir()
        say(f"removed {place}")


def attached(sys_block: Path = Path("/sys/block")) -> list[str]:
    """The LUNs that are attached to this host by aoe-nbd, as the kernel knows them."""
    found = []
    for backend in sys_block.glob("nbd*/backend"):
        with contextlib.suppress(OSError):
            found.append(backend.read_text().strip())
    return sorted(name for name in found if re.fullmatch(r"e[0-9]+\.[0-9]+", name))


def _tell(which: Installation) -> None:
    """Have the programs that run see what has changed."""
    if "systemd" in which.parts and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=False)
    if "udev" in which.parts and Path("/run/udev/control").exists():
        subprocess.run(["udevadm", "control", "--reload"], check=False)


def _systemctl(verb: str) -> None:
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "--quiet", verb, "aoe-nbd.service"], check=False)


def run(args: argparse.Namespace) -> int:
    """Install or uninstall."""
    which = Installation(args)
    alive = which.root == Path("/")
    if args.packaged and alive:
        raise Failure("--packaged fills the tree of a package: give --root DIR")
    if alive and Path("/lib/systemd/system/aoe-nbd@.service").exists() and not args.uninstall:
        raise Failure(
            "the Debian package aoe-nbd is installed, and two of them would mix: `apt-get remove aoe-nbd` first"
        )
    if args.uninstall and alive and "systemd" in which.parts and (disks := attached()):
        raise Failure(f"{', '.join(disks)} is attached: `aoe-nbd detach` it first")
    for piece, place in which.pieces():
        parent = next(folder for folder in place.parents if folder.exists())
        if not os.access(parent, os.W_OK):
            raise Failure(f"{place} ({piece.part}) may not be written: run this as root, by sudo")
    if args.uninstall and alive and "systemd" in which.parts:
        _systemctl("disable")
    (uninstall if args.uninstall else install)(which, print)
    if alive:
        _tell(which)
        if not args.uninstall and "systemd" in which.parts:
            _systemctl("enable")
    return 0
