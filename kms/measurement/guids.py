"""The GUIDs of OVMF's footer table and of QEMU's hash table, in the mixed-endian form they are stored in."""

from typing import Final


def guid(text: str) -> bytes:
    """Give the 16 stored bytes: three groups little-endian, the rest as written (UEFI, appendix A)."""
    low, mid, high, *rest = (bytes.fromhex(group) for group in text.split("-"))
    return low[::-1] + mid[::-1] + high[::-1] + b"".join(rest)


# edk2 OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm and OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm
TABLE_FOOTER: Final = guid("96b582de-1fb2-45f7-baea-a366c55a082d")
SEV_HASH_TABLE: Final = guid("7255371f-3a3b-4b04-927b-1da6efa8d454")  # u32 address, u32 size
SEV_ES_RESET_BLOCK: Final = guid("00f771de-1a7e-4fcb-890e-68c77e2fb44e")  # u32 EIP of application processors
SEV_METADATA: Final = guid("dc886566-984a-4798-a75e-5585a7bf67cc")  # u32 offset from the end of the image
# coconut-svsm, the table at the end of its image
SVSM_INFO: Final = guid("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd")  # u32 offset of the entry point

# QEMU target/i386/sev.c
HASH_TABLE_HEADER: Final = guid("9438d606-4f22-4cc9-b479-a793d411fd21")
HASH_CMDLINE: Final = guid("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
HASH_INITRD: Final = guid("44baf731-3a2f-4bd7-9af1-41e29169781d")
HASH_KERNEL: Final = guid("4de79437-abd2-427f-b835-d5b172d2045b")
