# SPDX-License-Identifier: BSD-3-Clause
"""`python3 -m aoe_nbd`: the same as `aoe-nbd`."""

import sys

from .cli import main

sys.exit(main())
