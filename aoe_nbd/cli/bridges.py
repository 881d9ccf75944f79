# SPDX-License-Identifier: BSD-3-Clause
"""Running bridges, for the verbs that ask them: which control sockets there are, and whom they belong to."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from ..host import state
from ..host.control import Client
from ..wire.address import Address
from .failure import Failure
from .words import address

_SERVED = ".control"  # how the control socket of a bridge that `serve` has started ends, beside attached disks' folders


class Bridge(NamedTuple):
    """One bridge. `address` is the LUN that is meant, None for all that it serves."""

    address: Address | None
    client: Client

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        """Raises ControlError."""
        return self.client.ask(verb, **args, **({"address": str(self.address)} if self.address else {}))

    @property
    def name(self) -> str:
        return str(self.address) if self.address is not None else self.client.path


def add_arguments(parser: argparse.ArgumentParser, several: bool) -> None:
    """Declare ADDRESS, which may be left out if `several` bridges can be asked, and --control."""
    more = "; without it, all bridges of this host" if several else ""
    parser.add_argument(
        "address", nargs="?" if several else None, metavar="ADDRESS", help=f"e<shelf>.<slot>, such as e1.0{more}"
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        help="the control socket of a bridge that was started by hand, with control=PATH",
    )


def chosen(args: argparse.Namespace) -> list[Bridge]:
    """The bridges that are meant, whether they run or not. Raises Failure if none was named and there is none."""
    which = address(args.address) if args.address else None
    if args.control:
        what = f"bridge of {which}" if which else f"bridge with control={args.control}"
        return [Bridge(which, Client(args.control, what))]
    if which is not None:
        return [_of(which)]
    found = [_of(folder.address) for folder in state.folders()]
    found += [Bridge(None, Client(path, f"bridge at {path}")) for path in sorted(state.root().glob(f"*{_SERVED}"))]
    if not found:
        raise Failure(f"no bridge runs here (there is none in {state.root()}); --control PATH names one elsewhere")
    return found


def _of(which: Address) -> Bridge:
    """The bridge of an attached disk, or the one that `serve` has started."""
    folder = state.Folder(which)
    served = state.root() / f"{which}{_SERVED}"
    control = served if served.exists() and not folder.control.exists() else folder.control
    return Bridge(which, Client(control, f"bridge of {which}"))
