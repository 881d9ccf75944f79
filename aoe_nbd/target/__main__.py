# SPDX-License-Identifier: BSD-3-Clause
"""`python -m aoe_nbd.target`."""

import sys

from .command import main

sys.exit(main())
