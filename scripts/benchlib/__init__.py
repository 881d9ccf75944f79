# SPDX-License-Identifier: BSD-3-Clause
"""What `scripts/bench` measures: one module a benchmark, each with `HELP`, `add_arguments(parser)` and `run(args)`."""
