# SPDX-License-Identifier: BSD-3-Clause
"""Steps that several of these tests take in a machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from machine import Job, Machine

# Writes and reads back, all of it compared; then the file system must be clean.
_FILE_SYSTEM = """
mkfs.ext4 -q -F {device}
mount {device} /mnt
{verify}
umount /mnt
fsck.ext4 -f -n {device}
"""
_FIO = "fio --name=verify --ioengine=libaio --direct=1 --rw=randwrite --bsrange=4k-64k --iodepth=16 --verify=crc32c"
# Again and again until /tmp/enough is there.
_UNTIL_ENOUGH = """
rm -f /tmp/enough /tmp/failed
while [ ! -e /tmp/enough ]; do
    {fio} >/tmp/fio.out 2>&1 || {{ cat /tmp/fio.out; touch /tmp/failed; exit 1; }}
    echo pass
done
"""


def verify(folder: str = "/mnt", mib: int = 8) -> str:
    """The command that has fio write a file there, and compare what it reads of it."""
    return f"{_FIO} --directory={folder} --size={mib}M >/tmp/fio.out 2>&1 || {{ cat /tmp/fio.out; exit 1; }}"


def file_system(machine: Machine, device: str) -> None:
    """mkfs, mount, write and compare, umount, fsck."""
    machine.sh(_FILE_SYSTEM.format(device=device, verify=verify()))


def partition(machine: Machine, *partitions: str) -> None:
    """A partition table on e1.0, by lines for sfdisk. udev reads the table once more when sfdisk has closed the disk, and
    for a moment there are no partitions then: that is to be waited for, as on any disk.
    """
    lines = "\\n".join(partitions)
    machine.sh(f"printf '{lines}\\n' | sfdisk -q --label gpt /dev/etherd/e1.0; udevadm settle")


def attach(machine: Machine, address: str = "e1.0", *options: str) -> str:
    """Attach it by eth0, and return the device."""
    output = machine.sh(shlex.join(["aoe-nbd", "attach", address, "--interface", "eth0", *options]))
    return next(line for line in output.splitlines() if line.startswith("/dev/nbd"))


def listed(machine: Machine) -> dict[str, dict[str, Any]]:
    """address -> what `aoe-nbd list` says."""
    return {each["address"]: each for each in json.loads(machine.sh("aoe-nbd list --json 2>/dev/null"))}


def until(machine: Machine, condition: str) -> None:
    """Wait until a shell condition holds in the machine."""
    machine.sh(f"until {condition}; do sleep 0.5; done")


def refused(machine: Machine, command: str, *words: str) -> str:
    """The command must fail, and say so in one line with these words in it; returns what it said."""
    done = machine.run(command)
    assert done.status not in (0, 124), f"{command} succeeded:\n{done.output}"
    assert "Traceback" not in done.output
    for word in words:
        assert word in done.output, f"no {word!r} in what {command} said:\n{done.output}"
    return done.output


def kernel_is_content(machine: Machine) -> None:
    """The kernel has seen no I/O error in this test."""
    assert "I/O error" not in machine.sh("dmesg")


class Load:
    """fio that writes and compares on a mounted disk, for as long as `load` lasts."""

    def __init__(self, machine: Machine, job: Job, device: str) -> None:
        self._machine, self._job = machine, job
        self._stat = f"/sys/block/{device.removeprefix('/dev/')}/stat"

    def goes_on(self) -> None:
        """Wait until requests that are sent from now on have been carried out: reads or writes."""
        count = f"awk '{{print $1 + $5}}' {self._stat}"
        begin = int(self._machine.sh(count))
        until(self._machine, f'[ -e /tmp/failed ] || [ "$({count})" -gt {begin + 40} ]')
        if self._machine.run("[ -e /tmp/failed ]").status == 0:
            self._job.check()


@contextmanager
def load(machine: Machine, device: str) -> Iterator[Load]:
    """A file system on the device that fio works on meanwhile; not one error in it, or of the kernel, or of fsck's."""
    machine.sh(f"mkfs.ext4 -q -F {device}; mount {device} /mnt")
    # In bursts, and not all that the machine can do: whatever is started meanwhile needs its processors too.
    rate = "--rate_iops=60 --rate_process=poisson"
    fio = f"{_FIO} --verify_backlog=32 --directory=/mnt --size=4M {rate}"
    job = machine.start(_UNTIL_ENOUGH.format(fio=fio), 3600)
    it = Load(machine, job, device)
    it.goes_on()
    yield it
    machine.sh("touch /tmp/enough")
    assert "pass" in job.check()
    machine.sh(f"umount /mnt; fsck.ext4 -f -n {device}")
    kernel_is_content(machine)
