# SPDX-License-Identifier: BSD-3-Clause
"""The numbers of the protocol engine. Times in seconds."""

from typing import Final

RTO_INITIAL: Final = 0.2  # before the first RTT sample
RTO_INITIAL_FLUSH: Final = 5.0  # a flush may take a disk seconds; a second one is harmless but helps nobody
RTO_MIN: Final = 0.010
RTO_MAX: Final = 2.0
RTO_MAX_FLUSH: Final = 10.0
JITTER: Final = 0.10  # of each timeout, so that many hosts do not resend in step

RTT_STALE: Final = 1.0  # a path's round trip that is older than this is measured anew before it decides anything

REORDER_MIN: Final = 200e-6  # a copy is not lost until a later one was answered and this much more than srtt has passed
REORDER_DECAY: Final = 16  # RTTs without a proven false alarm before the reorder window shrinks again
DUPLICATES: Final = 3  # later copies answered that prove a copy lost at once, where nothing has been out of order
REORDER_MEMORY: Final = 10.0  # for so long after a proven false alarm they do not
PROBE_MIN: Final = 1e-3  # of a tail loss probe
PROBES: Final = 2  # of these in a row, each after twice the time, until only the timeout is left

WINDOW_START: Final = 16
WINDOW_MOST: Final = 256  # more brings nothing, and would outrun the receive ring (kvblade says that it takes 1024)
LOSS_FREE: Final = 16  # frames of a window of which one may get lost in a round at no cost
LOSSES_FEW: Final = 2  # in one round of a window, or an eighth of it: no more than a bad cable would lose
WINDOW_CUT: Final = 0.7
WINDOW_SILENT: Final = 2
STREAM_SHARE: Final = 4  # a long request goes on when this part of the window is free again: few large sendings, and wake-ups
STREAM_LEAST: Final = 32  # buffers of a target from which on that pays: fewer are too soon empty
DELAY_BRAKE: Final = 2.0  # no growth while srtt is above this multiple of the least RTT seen,
DELAY_SMALL: Final = (
    2e-3  # s, and above this: less is but the queue of a full window at a quick target, whose buffers are there for it
)
MIN_RTT_SPAN: Final = 10.0  # how long a least RTT counts

QUARANTINE: Final = 1.0  # after this time no copy of a frame is on its way any more

STRIKES_OUT: Final = 2  # timeouts in a row, nothing heard, until a path is out
PROBE_OUT_FIRST: Final = 0.1  # IDENTIFY to a path that is not up: this interval at first, doubled up to
PROBE_OUT_MOST: Final = 0.5
PROBE_STRANGER: Final = 30.0  # to a path that showed another disk
KEEPALIVE: Final = 5.0  # a path that is up is asked this often to IDENTIFY (has it grown?) and for its configuration

FENCE_POLL: Final = 0.5  # between looks at the record of the owner
FENCE_RETRY: Final = 0.2  # the same while something is to be found out or changed
FENCE_LEASE: Final = 1.5  # that a look at it is good for: three, so that one may get lost
FENCE_GRACE: Final = 5.0  # after a target lost its memory, in which who knows better sees that it is back, on a busy host too
FENCE_RESERVE: Final = 1.0  # that a target has to answer Reserve/Release; who does not know it may keep silent

DEAD_AFTER: Final = 5.0  # no answer from any path for so long: the target is dead (what then happens is the policy's business)
SIZE_SAFE: Final = 2  # sectors that fit any Ethernet: larger frames must first be seen to get through
SIZE_LOSSES: Final = 6  # of the largest frames in a row, on a live path, until they are made smaller (three may be chance)
SIZE_RETRY_FIRST: Final = 1.0  # larger frames are tried again after this time, doubled up to
SIZE_RETRY_MOST: Final = 60.0

RESENDS_AT_ONCE: Final = 3  # of one command; after that each further one waits for a timeout that doubles
RESENT_MANY: Final = 64  # copies of one request that are kept in mind before those are looked for that cannot land any more
REFUSALS: Final = 8  # "bad argument" answers that one request lives through while the frame size is found anew
