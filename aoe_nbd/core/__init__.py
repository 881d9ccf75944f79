# SPDX-License-Identifier: BSD-3-Clause
"""The AoE initiator without sockets, threads or a clock: time comes in as an argument, frames go in and out as values.

Start at `initiator`: one LUN's requests on their way to commands on the wire and back. It is put together from
`request`, `lock` (which requests may run together), `copies` (tags), `path` and `flight` (what is under way where, and
when it counts as lost), `rtt`, `window`, `reply` (what an answer means) and `encode` (what goes into a frame).
`exchange` is the small sibling for one-off questions: discovery, config strings, masks, reservations, ping.
"""
