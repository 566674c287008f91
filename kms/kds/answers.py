"""What a key distribution service would answer from a store: the same for the mirror and for a bundle.

A store may hold several certificates for one question: AMD signs a chip's certificate anew when it is asked
again (the same key, later dates), and an installation with development roots knows two ARKs of a product.
"""

import ssl
from collections.abc import Iterable, Sequence

from kms.ports import Role, StoredCertificate, StoredRevocationList
from kms.snp.certificate import Certificate
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.tcb import TcbVersion

# RFC 2585, section 4; PEM chains have no type of their own for any order of certificates, this one is common.
CERTIFICATE_TYPE = "application/pkix-cert"
LIST_TYPE = "application/pkix-crl"
CHAIN_TYPE = "application/x-pem-file"


def longest_valid_first(certificates: Iterable[StoredCertificate]) -> list[StoredCertificate]:
    """Order certificates that answer one question: the one that is valid longest is the answer."""

    def key(stored: StoredCertificate) -> tuple[float, bytes]:
        return (-stored.certificate.not_after.timestamp(), stored.certificate.fingerprint)

    return sorted(certificates, key=key)


def newest_first(lists: Iterable[StoredRevocationList]) -> list[StoredRevocationList]:
    """Order the revocation lists of one line: one for each ARK, the one issued last is the answer."""
    return sorted(lists, key=lambda each: (-each.list.this_update.timestamp(), each.ark))


def chain_of(line: Line, authorities: Sequence[StoredCertificate]) -> tuple[Certificate, Certificate] | None:
    """Give the ASK or ASVK of a line and the ARK that signed it; None where either is not stored."""
    of_product = [each for each in authorities if each.line.product is line.product]
    arks = longest_valid_first(each for each in of_product if each.role is Role.ARK)
    for authority in longest_valid_first(
        each for each in of_product if each.role is Role.AUTHORITY and each.line == line
    ):
        for ark in arks:
            if authority.certificate.is_signed_by(ark.certificate):
                return authority.certificate, ark.certificate
    return None


def chain_pem(chain: tuple[Certificate, Certificate]) -> bytes:
    """Give a chain as the KDS sends it: PEM, the ASK or ASVK first, then the ARK."""
    return b"".join(ssl.DER_cert_to_PEM_cert(each.der).encode("ascii") for each in chain)


def vcek_at(tcb: TcbVersion, vceks: Iterable[StoredCertificate]) -> Certificate | None:
    """Give the certificate of a chip at a TCB, from all of its certificates."""
    fitting = longest_valid_first(
        each for each in vceks if each.tcb == tcb and each.line.signer is Signer.VCEK
    )
    return fitting[0].certificate if fitting else None


def list_of(line: Line, lists: Iterable[StoredRevocationList]) -> StoredRevocationList | None:
    """Give the revocation list of a line."""
    found = newest_first(each for each in lists if each.line == line)
    return found[0] if found else None
