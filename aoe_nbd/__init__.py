# SPDX-License-Identifier: BSD-3-Clause
"""aoe-nbd: ATA-over-Ethernet storage as a Network Block Device, without a kernel module."""

__version__ = "0.1.0"
