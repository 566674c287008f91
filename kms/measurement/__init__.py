"""The launch measurement: what the AMD secure processor hashed of a guest before its first instruction.

Bytes in, digest out. `firmware` reads OVMF, `vmsa` builds the vCPUs' initial state, `pages` chains the
digest, `snp` and `older_modes` put them together; `launch` measures a description (hashes instead of
files), and `images` finds which machine of an allowed image shows a measurement.
"""
