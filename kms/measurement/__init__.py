"""The launch measurement: what the AMD secure processor hashed of a guest before its first instruction.

Bytes in, digest out. `firmware` reads OVMF, `vmsa` builds the vCPUs' initial state, `pages` chains the
digest, `snp` and `other_modes` put them together; `launch` measures a description (hashes instead of
files), `images` finds which machine of an allowed image shows a measurement, `explanation` says why none
does, and `id_block` signs what a guest must measure as.
"""
