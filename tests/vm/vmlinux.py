# SPDX-License-Identifier: BSD-3-Clause
"""vmlinux.py BZIMAGE OUTPUT: take the ELF kernel out of a bzImage that was packed with xz, as Debian's is.

QEMU enters the ELF by its PVH note, and the emulated CPU is spared the unpacking: the kernel's documentation of the x86
boot protocol says where the payload lies.
"""

import lzma
import struct
import sys
from pathlib import Path


def extract(image: bytes) -> bytes:
    """The kernel in `image`; ValueError if there is none that we can unpack."""
    setup_sectors = image[0x1F1] or 4
    payload_offset, payload_length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + payload_offset
    try:
        # The four bytes of size that follow the stream are not part of it: a decompressor object stops before them.
        kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[start : start + payload_length])
    except lzma.LZMAError as error:
        raise ValueError(f"the kernel is not packed with xz ({error})") from None
    if not kernel.startswith(b"\x7fELF"):
        raise ValueError("no ELF kernel in the image")
    return kernel


if __name__ == "__main__":
    bzimage, output = map(Path, sys.argv[1:])
    output.write_bytes(extract(bzimage.read_bytes()))
