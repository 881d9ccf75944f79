# SPDX-License-Identifier: BSD-3-Clause
"""How a command says that it cannot do what was asked. Imports nothing, so that `aoe-nbd --help` needs nothing else."""


class Failure(Exception):
    """The command cannot do what was asked; the message is one sentence for the user."""
