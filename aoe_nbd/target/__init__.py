# SPDX-License-Identifier: BSD-3-Clause
"""The target: files and block devices exported by AoE, for use and for tests. Shares wire and link with the initiator.

`backend` is the storage, `state` what clients set, `lun` one export without sockets, `batch` the same for many like
requests at once, `server` the loop over links, `personality` the quirks of other targets, `faults` a bad network on
demand, `command` the command line.
"""

from .backend import Backend, BackendError
from .faults import Errors, Faults, Line
from .lun import Lun
from .personality import OURS, PERSONALITIES, Personality
from .server import Target, TargetError
from .state import State, StateError

__all__ = [
    "OURS",
    "PERSONALITIES",
    "Backend",
    "BackendError",
    "Errors",
    "Faults",
    "Line",
    "Lun",
    "Personality",
    "State",
    "StateError",
    "Target",
    "TargetError",
]
