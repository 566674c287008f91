"""Every generation of the KMS identity, as the register has them now.

A server signs with the generation that it found when it started. What it knows of the others must not be as
old: during a rolling restart a guest that was answered by the new identity may ask any server how the old one
handed over to it.
"""

from typing import Final

from kms.keys.hand_over import KnownIdentities, hand_overs
from kms.keys.identity import Identity
from kms.keys.root_messages import FOUNDING_EPOCH, identity_message
from kms.operator_ports import Generation, KeyRegister
from kms.ports import RootKey

FIRST_GENERATION: Final = 1


class IdentityBook:
    """Implements `kms.ports.Identities`. Identities are derived once each, and kept."""

    def __init__(self, root: RootKey, register: KeyRegister) -> None:
        self._root = root
        self._register = register
        self._derived: dict[int, Identity] = {}
        self._known: tuple[tuple[Generation, ...], KnownIdentities] | None = None

    async def identity(self, generation: int) -> Identity:
        """Give the identity of a generation (1, 2, …), be it registered or not.

        Raises:
            RootKeyUnavailable: the root cannot be used now.

        """
        if generation not in self._derived:
            output = await self._root.prf(FOUNDING_EPOCH, identity_message(generation))
            self._derived[generation] = Identity.from_prf(output)
        return self._derived[generation]

    async def newest(self) -> Identity:
        """Give the identity that a server signs with which starts now; errors as `known`."""
        later = await self._register.generations()
        return await self.identity(later[-1].number if later else FIRST_GENERATION)

    async def known(self) -> KnownIdentities:
        """Give all of them, with their hand-overs; see `Identities.known`."""
        later = await self._register.generations()
        if self._known is None or self._known[0] != later:
            numbers = (FIRST_GENERATION, *(each.number for each in later))
            identities = [await self.identity(number) for number in numbers]
            known = KnownIdentities(
                frozenset(each.public_key for each in identities),
                hand_overs(identities, [each.made_at for each in later]),
            )
            self._known = (later, known)
        return self._known[1]
