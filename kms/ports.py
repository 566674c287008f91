"""What the release path needs from outside, as small protocols. Edges implement them; wiring joins them."""

from typing import Protocol


class RootKey(Protocol):
    """The root secret as a PRF: it need never leave where it lives (a file, an HSM, Vault).

    An epoch is a version of the root, a positive integer; a new epoch is a new secret.
    """

    async def prf(self, epoch: int, message: bytes) -> bytes:
        """Give HMAC-SHA-512 of `message` under the root of `epoch`: 64 bytes.

        Raises:
            RootKeyUnavailable: the provider did not answer, or this epoch does not exist there.

        """
        ...

    async def epochs(self) -> tuple[int, ...]:
        """Give the epochs that exist, oldest first; the last one is the newest."""
        ...
