# SPDX-License-Identifier: BSD-3-Clause
"""What clients can set on an export and expect to find again: config string, MAC mask list, reservation.

Kept in memory, or with a folder given in one JSON file an export, written so that a crash leaves the old or the new.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..wire.address import Address, format_mac
from ..wire.codes import MAX_STRING


class StateError(Exception):
    """State that cannot be read or kept; the message is one sentence that says which, why, and what to do."""


@dataclass
class State:
    """The state of one export. Change it, then `save()`."""

    config: bytes = b""
    mask: list[bytes] = field(default_factory=list)  # empty: everyone may come
    reserved: list[bytes] = field(default_factory=list)  # empty: nobody holds it
    path: Path | None = None

    @classmethod
    def load(cls, folder: str | None, address: Address) -> State:
        """The state last saved in `folder`, empty if there is none. Raises StateError."""
        if folder is None:
            return cls()
        path = Path(folder) / f"{address}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            saved = json.loads(path.read_text())
            state = cls(bytes.fromhex(saved["config"]), _macs(saved["mask"]), _macs(saved["reserved"]), path)
        except FileNotFoundError:
            return cls(path=path)
        except OSError as error:
            raise StateError(f"state file {path} cannot be read ({error.strerror}): give another --state-dir") from None
        except (ValueError, KeyError, TypeError):
            raise StateError(f"state file {path} is damaged: mend it, or remove it to start with none") from None
        if len(state.config) > MAX_STRING or max(len(state.mask), len(state.reserved)) > 255:
            raise StateError(
                f"state file {path} holds more than a target may: mend it, or remove it to start with none"
            )
        return state

    def save(self) -> None:
        """Return when the state is on stable storage (at once if it is kept in memory only). Raises OSError."""
        if self.path is None:
            return
        content = {
            "config": self.config.hex(),
            "mask": [format_mac(mac) for mac in self.mask],
            "reserved": [format_mac(mac) for mac in self.reserved],
        }
        fresh = self.path.with_suffix(".new")
        with open(fresh, "w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _macs(texts: object) -> list[bytes]:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("a list of MAC addresses is meant")
    macs = [bytes.fromhex(text.replace(":", "")) for text in texts]
    if any(len(mac) != 6 for mac in macs):
        raise ValueError("a MAC address has six bytes")
    return macs
