# SPDX-License-Identifier: BSD-3-Clause
"""Little memory, all of it dirty, and the way to free it leads through the bridge: it must never wait for memory itself."""

from __future__ import annotations

from fixtures import Storage
from machine import Machine
from steps import attach, kernel_is_content, until

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
print("swapped", *open("/proc/swaps"))
"""


def test_swap_and_dirty_pages_up_to_the_limit(small_vm: Machine, storage: Storage) -> None:
    vm = small_vm
    storage.vblade(storage.disk(mib=256))
    attach(vm)
    vm.sh("printf 'size=128M, type=swap\\ntype=linux\\n' | sfdisk -q --label gpt /dev/etherd/e1.0")
    until(vm, "[ -b /dev/etherd/e1.0p2 ]")
    vm.sh("mkswap -q /dev/etherd/e1.0p1; swapon /dev/etherd/e1.0p1; mkfs.ext4 -q /dev/etherd/e1.0p2")
    vm.sh("mount /dev/etherd/e1.0p2 /mnt")
    vm.sh("echo 90 >/proc/sys/vm/dirty_ratio; echo 80 >/proc/sys/vm/dirty_background_ratio")
    hog = vm.start(f"python3 - <<'E'\n{HOG}\nE", 1500)
    writer = "for i in 1 2 3; do head -c 16M /dev/zero | tr '\\0' $i >/mnt/$i; done; sync"
    vm.sh(writer, 1500)
    assert "swapped" in hog.check()
    assert int(vm.sh("awk '$1 == \"pswpout\" {print $2}' /proc/vmstat")) > 1000
    vm.sh("echo 3 >/proc/sys/vm/drop_caches")
    vm.sh("for i in 1 2 3; do head -c 16M /dev/zero | tr '\\0' $i | cmp - /mnt/$i; done")
    vm.sh("swapoff /dev/etherd/e1.0p1; umount /mnt; fsck.ext4 -f -n /dev/etherd/e1.0p2; aoe-nbd detach e1.0")
    kernel_is_content(vm)
    assert "Out of memory" not in vm.sh("dmesg")
