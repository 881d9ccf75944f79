# SPDX-License-Identifier: BSD-3-Clause
"""Export files and block devices by ATA over Ethernet, until SIGTERM or Ctrl-C."""

from ..target.command import add_arguments, run

__all__ = ["add_arguments", "run"]
