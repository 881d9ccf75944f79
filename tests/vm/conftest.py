# SPDX-License-Identifier: BSD-3-Clause
"""Tests in virtual machines: a Debian kernel, its nbd and aoe modules, and the package installed as a user installs it.

They need root, for the network between machine and host; `sudo scripts/test` or `sudo scripts/lab` runs them.
"""

from fixtures import *  # noqa: F403
