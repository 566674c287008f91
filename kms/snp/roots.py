"""The roots we trust: AMD's three ARKs by the hash of their public keys, and development roots by choice.

A root is never taken from evidence (field lesson 2): a certificate that a guest sends is an ARK only if
its public key is pinned here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kms.snp.certificate import Certificate
from kms.snp.product import Product, product_named

# SHA-256 of the DER SubjectPublicKeyInfo of ARK-Milan, ARK-Genoa (also Bergamo, Siena) and ARK-Turin, as
# AMD's key distribution service serves them (/vcek/v1/<product>/cert_chain, second certificate); equal in
# go-sev-guest, virtee/sev, Trustee and Microsoft's TEE attestation verification.
AMD_ROOTS: Mapping[bytes, Product] = {
    bytes.fromhex("9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9"): Product.MILAN,
    bytes.fromhex("429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831"): Product.GENOA,
    bytes.fromhex("4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08"): Product.TURIN,
}

_ARK_PREFIX = "ARK-"


@dataclass(frozen=True, slots=True)
class TrustedRoots:
    """Pinned ARK public keys and the product that each speaks for.

    `development` holds ARK certificates that an operator added through KMS_DEVELOPMENT_ROOTS; with any of
    them the server is in development mode.
    """

    pins: Mapping[bytes, Product] = field(default_factory=lambda: dict(AMD_ROOTS))
    development: tuple[Certificate, ...] = ()

    @classmethod
    def with_development(cls, certificates: Iterable[Certificate]) -> "TrustedRoots":
        """Trust AMD's roots and these as well.

        Raises:
            ValueError: a certificate whose common name is not `ARK-Milan`, `ARK-Genoa` or `ARK-Turin`
                (that name gives its product), or that is not self-signed.

        """
        pins = dict(AMD_ROOTS)
        extra = tuple(certificates)
        for certificate in extra:
            product = product_of_ark(certificate)
            if product is None:
                raise ValueError(
                    "the common name of a development root must be ARK-Milan, ARK-Genoa or ARK-Turin"
                )
            if certificate.subject != certificate.issuer or not certificate.is_signed_by(certificate):
                raise ValueError("a development root must be self-signed with RSA-PSS and SHA-384")
            pins[certificate.public_key_sha256] = product
        return cls(pins=pins, development=extra)

    def product_of(self, ark: Certificate) -> Product | None:
        """Give the product that a pinned ARK speaks for; None if its key is not pinned."""
        return self.pins.get(ark.public_key_sha256)


def product_of_ark(certificate: Certificate) -> Product | None:
    """Give the product that an ARK's common name claims."""
    name = certificate.subject_name
    return product_named(name.removeprefix(_ARK_PREFIX)) if name.startswith(_ARK_PREFIX) else None
