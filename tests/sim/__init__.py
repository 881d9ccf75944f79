# SPDX-License-Identifier: BSD-3-Clause
"""A deterministic simulation of the initiator: its real bytes against a simulated ether, targets and clients.

One seed gives one `scenario` (who is there, what is asked, what goes wrong and when); one `world` runs it on a virtual
clock: `driver` is what the engine is to the core, `ether` carries and harms frames, `targets` serve them from a store of
their own, `clients` ask, and `checker` judges what they were told. `mutants` are initiators with one rule switched off,
which the checker must catch; `shrink` makes a failure small enough to read. `scripts/sim` runs seeds.

What it takes for granted, since no initiator can do without it:

* A copy of a frame is executed within LIFE of its sending or never. The quarantine is longer than that.
* Ethernet's CRC: a mangled frame may be lost, refused, or executed with its answer mangled, but it never becomes a
  *different valid* frame, such as the same write for another sector.
* A network that makes two frames of one delivers both at once, and they are executed together. (A write that was sent once
  and answered leaves no ghost; whoever wants protection from a network that repeats old frames must wait out the
  quarantine after every write.)
* A disk does not turn into another between two frames: a stranger takes a MAC over only once our path there is not up.
"""
