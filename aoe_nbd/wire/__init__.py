# SPDX-License-Identifier: BSD-3-Clause
"""AoE on the wire: bytes to fields and back. Knows bytes only.

`formats` declares each layout once (construct); `derive` computes the fast forms; `frames` reads and writes whole
frames; `identify` reads and writes IDENTIFY data; `codes` names the numbers; `address` the addresses.
"""
