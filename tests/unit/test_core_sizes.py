# SPDX-License-Identifier: BSD-3-Clause
"""Frame sizes of a path: never more than is allowed, larger ones only after they got through, and stepping down."""

from __future__ import annotations

import pytest

from aoe_nbd.core.constants import SIZE_SAFE
from aoe_nbd.core.sizes import FrameSizes
from aoe_nbd.wire.codes import Ata, Command
from aoe_nbd.wire.frames import ATA_SIZE
from inmemory import Lan


def test_it_starts_with_what_fits_any_ethernet() -> None:
    sizes = FrameSizes()
    sizes.allow(16, 0.0)
    assert sizes.limit == [SIZE_SAFE, SIZE_SAFE]
    assert sizes.next_probe == 0.0


def test_each_direction_is_found_out_apart() -> None:
    sizes = FrameSizes()
    sizes.allow(16, 0.0)
    assert {(0, 16), (1, 16)} <= set(sizes.due(0.0))
    sizes.answered(1, 16, 5)
    assert sizes.limit == [SIZE_SAFE, 16]
    assert all(way == 0 for way, _ in sizes.due(1.0))


@pytest.mark.parametrize("most", [1, 2, 5, 8, 16, 120, 255])
def test_never_more_than_is_allowed(most: int) -> None:
    sizes = FrameSizes()
    sizes.allow(most, 0.0)
    for way in (0, 1):
        sizes.answered(way, 255, 1)
    assert max(sizes.limit) <= most
    assert all(n <= most for _, n in sizes.due(0.0))
    sizes.allow(1, 1.0)
    assert sizes.limit == [1, 1]


def test_a_refusal_halves_and_never_raises() -> None:
    sizes = FrameSizes()
    sizes.allow(16, 0.0)
    sizes.answered(0, 16, 1)
    sizes.refused(16)
    assert sizes.most == 8
    sizes.allow(2, 1.0)
    sizes.refused(16)  # a late one, of a frame sent before
    assert sizes.most == 2
    assert max(sizes.limit) <= 2
    for _ in range(5):
        sizes.refused(1)
    assert sizes.most == 1


@pytest.mark.parametrize("direction", ["to", "back"])
@pytest.mark.parametrize("carries", [1514, 4500])
def test_a_black_hole_between_is_found_and_stepped_around(direction: str, carries: int) -> None:
    """Interfaces say 9000, but a switch between drops what is longer, without a word. Data pass all the same."""
    lan = Lan(9000)
    port = lan.target()
    getattr(port, direction).mtu = carries
    initiator = lan.attach()
    lan.pause(5)
    data = bytes(range(256)) * 2 * 300
    lan.write(0, data)
    assert lan.read(0, 300) == data
    assert port.disk.whole(0, 300) == data
    limit = initiator.paths[0].sizes.limit
    assert limit[1 if direction == "to" else 0] <= (carries - ATA_SIZE) // 512
    assert limit[0 if direction == "to" else 1] == 16


def test_a_hole_that_opens_while_large_frames_are_sent() -> None:
    lan = Lan(9000)
    port = lan.target()
    initiator = lan.attach()
    lan.pause(5)
    assert initiator.paths[0].sizes.limit == [16, 16]
    port.to.mtu = port.back.mtu = 1514
    data = bytes(range(256)) * 2 * 300
    lan.write(0, data)
    assert lan.read(0, 300) == data
    assert initiator.paths[0].sizes.limit == [2, 2]


def test_when_the_hole_is_mended_large_frames_come_back() -> None:
    lan = Lan(9000)
    port = lan.target()
    port.to.mtu = 1514
    initiator = lan.attach()
    lan.pause(5)
    assert initiator.paths[0].sizes.limit == [16, 2]
    port.to.mtu = 0
    lan.pause(130)
    assert initiator.paths[0].sizes.limit == [16, 16]


@pytest.mark.parametrize("like", ["ours", "vblade", "ggaoed", "qaoed", "kvblade"])
def test_trying_sizes_hurts_nobody(like: str) -> None:
    """What is tried is an IDENTIFY with padding and a READ; no write, and nothing past the end of a small disk."""
    lan = Lan(9000)
    port = lan.target(like, sectors=5)
    initiator = lan.attach()
    lan.pause(10)
    opcodes = {f[27] for f in lan.sent if f[19] == Command.ATA}
    assert opcodes <= {Ata.IDENTIFY, Ata.READ_EXT}
    assert all(f[26] <= 5 for f in lan.requests(Ata.READ_EXT))
    assert port.disk.sectors == 5
    assert initiator.up
    assert not [e for e in lan.events if e.what == "refused"]
