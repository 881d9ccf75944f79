# SPDX-License-Identifier: BSD-3-Clause
"""What pyproject.toml cannot say: with AOE_NBD_COMPILE=1, the hot path is compiled (see aoe_nbd/compiled.py).

    AOE_NBD_COMPILE=1 pip install .        needs gcc and Python's headers
    scripts/compile                        for a checkout; installs what it needs
"""

import os
import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).parent))
MYPYC = "mypy==2.4.1"

if os.environ.get("AOE_NBD_COMPILE") != "1":
    setup()
else:
    from aoe_nbd.compiled import MODULES, library

    try:
        from mypyc.build import mypycify
    except ImportError:  # pip asks first what the build needs
        setup(setup_requires=[MYPYC])
    else:
        flags = ["--ignore-missing-imports", "--no-warn-unused-ignores"]
        modules = mypycify(
            [*flags, *(f"aoe_nbd/{name}" for name in MODULES)],
            opt_level="3",
            debug_level="0",
            multi_file=True,
            group_name=library(),
            target_dir="build/compiled",
        )
        setup(ext_modules=modules, setup_requires=[MYPYC])
