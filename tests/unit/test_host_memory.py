# SPDX-License-Identifier: BSD-3-Clause
"""Memory protection, each time in a process of its own: what it does, and that what is forbidden is a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROTECTED = """
import ctypes, gc, json, sys, threading
from aoe_nbd.host import memory
failures = memory.protect()
memory.drop_capabilities()
seen = []
def look():
    seen.extend((open("/proc/thread-self/status").read(), ctypes.CDLL(None).prctl(58, 0, 0, 0, 0)))  # PR_GET_IO_FLUSHER
thread = threading.Thread(target=look)
thread.start(); thread.join()
def fields(text):
    return dict(line.split(":", 1) for line in text.splitlines())
own = fields(open("/proc/self/status").read())
print(json.dumps({"failures": failures, "frozen": gc.get_freeze_count(), "locked": int(own["VmLck"].split()[0]),
                  "resident": int(own["VmRSS"].split()[0]), "grown": len(bytearray(64 << 20)),
                  "powers": [int(fields(seen[0])[name], 16) for name in ("CapEff", "CapPrm", "CapInh")],
                  "flusher": seen[1], "privileges": fields(seen[0])["NoNewPrivs"].strip(),
                  "oom": open("/proc/self/oom_score_adj").read()}))
"""


def protected(*wrapper: str) -> Any:
    command = [*wrapper, sys.executable, "-c", PROTECTED]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_can_be_done_is_done() -> None:
    """As whoever runs the tests: whatever is not reported as failed has happened."""
    found = protected()
    failed = "\n".join(found["failures"])
    assert found["frozen"] > 1000
    assert found["grown"] == 64 << 20  # memory can still be had
    assert ("mlockall" in failed) or found["locked"] > 0
    assert ("oom_score_adj" in failed) or found["oom"].strip() == "-1000"
    assert ("PR_SET_IO_FLUSHER" in failed) or found["flusher"] == 1  # threads made later inherit it
    assert found["resident"] < 200_000  # kB: nothing like all that is mapped
    assert found["privileges"] == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has powers to give up")
def test_only_raw_sockets_remain() -> None:
    found = protected()
    effective, permitted, inheritable = found["powers"]
    keep = 1 << 13 | 1 << 14  # CAP_NET_RAW; CAP_IPC_LOCK where the limit of locked memory could not be lifted
    assert effective & 1 << 13
    assert (effective | permitted) & ~keep == 0
    assert inheritable == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has powers to be without")
def test_what_is_forbidden_is_said_and_nothing_breaks() -> None:
    found = protected("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    for what in ("oom_score_adj", "PR_SET_IO_FLUSHER"):
        (sentence,) = [each for each in found["failures"] if what in each]
        assert sentence.startswith("memory is not fully protected: ")
    assert found["powers"] == [0, 0, 0]
