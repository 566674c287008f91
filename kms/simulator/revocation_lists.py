"""Revocation lists of the SIMULATED hierarchy, as values that can be changed in any detail and then signed.

The form is that of RFC 5280, section 5.1: version 2, signed as AMD's certificates are (VCEK specification
57230), RSASSA-PSS with SHA-384. ``replace(draft, scheme=…)`` makes a forged variant; nothing is judged here.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.x509.oid import ExtensionOID

from kms.simulator import der
from kms.simulator.authorities import Authority
from kms.simulator.certificates import PSS_SHA384, Extension, SignatureScheme, write_extension


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationListDraft:
    """What a revocation list says, before anybody signs it.

    `issuer` is a DER Name; `serials` are all revoked at `this_update`, 0 included, which AMD's lists cannot
    name. Without a `number` the list has no CRL number, without `next_update` no end. `extensions` are
    written after AKI and number.
    """

    issuer: bytes
    issuer_key: RSAPublicKey
    serials: tuple[int, ...]
    number: int | None
    this_update: datetime
    next_update: datetime | None
    extensions: tuple[Extension, ...] = ()
    scheme: SignatureScheme = PSS_SHA384

    @classmethod
    def by(
        cls,
        authority: Authority,
        serials: tuple[int, ...],
        *,
        number: int | None,
        this_update: datetime,
        next_update: datetime | None,
    ) -> "RevocationListDraft":
        """Give the list in an authority's name."""
        return cls(
            issuer=authority.name,
            issuer_key=authority.key.public_key(),
            serials=serials,
            number=number,
            this_update=this_update,
            next_update=next_update,
        )

    def signed(self, key: RSAPrivateKey) -> bytes:
        """Sign it: DER of the list (RFC 5280, section 5.1)."""
        this_update = der.time(self.this_update.astimezone(UTC))
        revoked = [der.tlv(der.SEQUENCE, der.integer(serial), this_update) for serial in self.serials]
        tbs = der.tlv(
            der.SEQUENCE,
            der.integer(1),  # version 2
            self.scheme.algorithm,
            self.issuer,
            this_update,
            b"" if self.next_update is None else der.time(self.next_update.astimezone(UTC)),
            # Absent where nothing is revoked: an empty list is not allowed (section 5.1.2.6).
            der.tlv(der.SEQUENCE, *revoked) if revoked else b"",
            der.context(0, der.tlv(der.SEQUENCE, *map(write_extension, self._all_extensions()))),
        )
        signature = key.sign(tbs, self.scheme.padding, self.scheme.hash)
        return der.tlv(der.SEQUENCE, tbs, self.scheme.algorithm, der.tlv(der.BIT_STRING, b"\x00", signature))

    def _all_extensions(self) -> tuple[Extension, ...]:
        issuer_key_id = Extension(
            ExtensionOID.AUTHORITY_KEY_IDENTIFIER.dotted_string,
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.issuer_key).public_bytes(),
        )
        if self.number is None:
            return (issuer_key_id, *self.extensions)
        number = Extension(ExtensionOID.CRL_NUMBER.dotted_string, der.integer(self.number))
        return (issuer_key_id, number, *self.extensions)
