# SPDX-License-Identifier: BSD-3-Clause
"""What the host needs around a bridge: the kernel's nbd, the table of LUNs, their names, their supervision."""
