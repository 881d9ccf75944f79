# SPDX-License-Identifier: BSD-3-Clause
"""Little memory, all of it dirty, and the way to free it leads through the bridge: it must never wait for memory itself."""

from __future__ import annotations

from fixtures import Storage
from machine import Machine
from steps import attach, kernel_is_content

# Somewhat more than the machine has, each page different; then some of them are looked at again.
HOG = """
free = next(int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("MemAvailable:")) << 10
pages = (free + (16 << 20)) >> 12
block = bytearray(pages << 12)
view = memoryview(block).cast("Q")
for page in range(pages):
    view[page << 9] = page * 7919
for page in range(0, pages, 32):
    assert view[page << 9] == page * 7919, page
"""


def test_dirty_pages_up_to_the_limit(small_vm: Machine, storage: Storage) -> None:
    """The limit is nearly all of the memory, and what is written is as much."""
    vm = small_vm
    storage.vblade(storage.disk(mib=160))
    device = attach(vm)
    vm.sh("echo 90 >/proc/sys/vm/dirty_ratio; echo 80 >/proc/sys/vm/dirty_background_ratio")
    vm.sh(f"mkfs.ext4 -q -E lazy_itable_init=0 {device}; mount {device} /mnt")
    vm.sh("head -c 100M /dev/zero | tr '\\0' x >/mnt/file; sync", 900)
    vm.sh("head -c 100M /dev/zero | tr '\\0' x | cmp - /mnt/file", 900)
    vm.sh(f"umount /mnt; fsck.ext4 -f -n {device}; aoe-nbd detach e1.0")
    kernel_is_content(vm)


def test_swap_on_an_export(small_vm: Machine, storage: Storage) -> None:
    vm = small_vm
    storage.vblade(storage.disk(mib=160))
    device = attach(vm)
    vm.sh(f"mkswap -q {device}; swapon {device}")
    vm.sh(f"python3 - <<'E'\n{HOG}\nE", 900)
    assert int(vm.sh("awk '$1 == \"pswpout\" {print $2}' /proc/vmstat")) > 1000
    vm.sh(f"swapoff {device}; aoe-nbd detach e1.0")
    kernel_is_content(vm)
    assert "Out of memory" not in vm.sh("dmesg")
