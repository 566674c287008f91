"""Keys: what a guest may ask for, how it is derived, how it is sealed to the guest and signed by the KMS.

Everything here is pure: the root is reached only through the 64-byte outputs of its PRF, which callers
fetch (`kms.ports.RootKey`) for the messages of `kms.keys.root_messages`. The whole scheme, written so
that it can be built a second time, is docs/reference/keys.md.
"""
