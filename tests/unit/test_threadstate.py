# SPDX-License-Identifier: BSD-3-Clause
"""How Python's lock is shared among nbdkit's threads."""

from __future__ import annotations

import sys

import pytest

from aoe_nbd.threadstate import share_lock


@pytest.mark.parametrize("clients", [0, 1, 4, 64])
def test_all_waiters_together_wake_no_more_often_than_those_of_one_client(clients: int) -> None:
    before = sys.getswitchinterval()
    try:
        share_lock(1)
        one = sys.getswitchinterval()
        share_lock(clients)
        assert sys.getswitchinterval() / max(1, clients) == pytest.approx(one, abs=2e-6)
    finally:
        sys.setswitchinterval(before)
