# SPDX-License-Identifier: BSD-3-Clause
"""AoE frames in and out of named Ethernet interfaces. Knows frames as bytes, and nothing of what they mean.

`packet` is the raw socket, with its receive `ring` and kernel `filter`; `outbox` is frames prepared for sending;
`interfaces` asks and watches rtnetlink.
"""

from .filter import Accept
from .interfaces import Interface, InterfaceWatch, LinkError, interface, interfaces
from .packet import Link

__all__ = ["Accept", "Interface", "InterfaceWatch", "Link", "LinkError", "interface", "interfaces"]
