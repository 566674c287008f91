"""A fake kernel and initrd for SIMULATED guests: bytes to be measured, not to be run.

The same seed gives the same bytes, so a demo's measurement can be recomputed by anybody.
"""

from hashlib import shake_256

_MIB = 1 << 20


def fake_kernel(seed: bytes, *, size: int = 2 * _MIB) -> bytes:
    """Give `size` bytes (from 1024) with the setup header by which a boot loader knows a bzImage."""
    image = bytearray(shake_256(b"simulated kernel\x00" + seed).digest(size))
    # Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
    image[0x1F1] = 1  # setup_sects: one sector of setup code after the boot sector
    image[0x1FE:0x200] = b"\x55\xaa"  # boot_flag
    image[0x202:0x206] = b"HdrS"  # header
    image[0x206:0x208] = (0x020F).to_bytes(2, "little")  # protocol version 2.15
    image[0x211] = 0x01  # loadflags: LOADED_HIGH
    return bytes(image)


def fake_initrd(seed: bytes, *, size: int = 4 * _MIB) -> bytes:
    """Give `size` bytes (from 6) that begin as a cpio archive does (magic `070701`)."""
    archive = bytearray(shake_256(b"simulated initrd\x00" + seed).digest(size))
    archive[:6] = b"070701"
    return bytes(archive)
