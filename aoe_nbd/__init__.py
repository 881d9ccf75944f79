# SPDX-License-Identifier: BSD-3-Clause
"""aoe-nbd: ATA-over-Ethernet storage as a Network Block Device, without a kernel module."""

from .compiled import choose

__version__ = "0.1.0"
COMPILED = choose()  # whether the hot path runs as machine code
