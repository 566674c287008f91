"""One revocation list (CRL): read strictly, because what it does not say lets a revoked authority pass.

Source: RFC 5280 section 5; signed as AMD's certificates are (VCEK specification 57230).
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from kms.errors import MalformedEvidence
from kms.snp.certificate import Certificate, displayable
from kms.snp.kds_paths import Line
from kms.snp.pem import pem_blocks
from kms.snp.signatures import has_one_spelling, is_signature, names_pss_sha384

MAX_LENGTH: Final = 64 * 1024  # of the DER: room for more than a thousand serial numbers
_MAX_PEM: Final = 2 * MAX_LENGTH
_PEM_LABEL: Final = "X509 CRL"


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """A parsed list. Parsing says nothing about trust: `check_revocation` asks who signed it.

    `serials` are those of every entry, whatever its reason. `line` is the line at whose KDS path the list was
    found; None where it came without one (a host's table).
    """

    der: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    issuer_name: str
    number: int | None
    this_update: datetime
    next_update: datetime | None
    serials: frozenset[int] = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    signed_with_pss_sha384: bool
    line: Line | None = None

    def is_signed_by(self, ark: Certificate) -> bool:
        """Say whether the list is in `ark`'s name, and its RSA key signed it with RSA-PSS and SHA-384."""
        return (
            self.signed_with_pss_sha384
            and self.issuer == ark.subject
            and is_signature(ark.public_key_der, self.signed, self.signature)
        )

    def replaces(self, older: "RevocationList") -> bool:
        """Say whether this list is newer than another of its ARK and line.

        Of two numbered lists the one with the higher number is, and with equal numbers the one issued later.
        Where one or both have no number, the one issued later is. A list never replaces itself.
        """
        issued_later = self.this_update > older.this_update
        if self.number is None or older.number is None or self.number == older.number:
            return issued_later
        return self.number > older.number


def load_revocation_list(data: bytes, *, line: Line | None = None) -> RevocationList:
    """Parse one revocation list, PEM or DER, of at most `MAX_LENGTH` bytes of DER.

    Refused is what RFC 5280 (sections 5.2 and 6.3.3) lets nobody use who does not understand it: unknown
    critical extensions, of the list or of an entry; lists of changes (delta CRLs); lists that are not about
    all that their issuer issued.

    Raises:
        MalformedEvidence: it is not such a list, reason `revocation-list-unreadable`. The detail does not
            repeat the input.

    """
    if len(data) > _MAX_PEM:
        raise _unreadable(f"longer than {_MAX_PEM} bytes")
    der = data
    if b"-----BEGIN" in data:
        try:
            (der,) = pem_blocks(data, _PEM_LABEL)
        except ValueError as error:  # a PemError, or more than one block
            raise _unreadable("not one PEM block") from error
    if len(der) > MAX_LENGTH:
        raise _unreadable(f"longer than {MAX_LENGTH} bytes")
    try:
        return _convert(x509.load_der_x509_crl(der), der, line)
    except MalformedEvidence:
        raise
    except Exception as error:  # hostile DER makes the library raise TypeError and others too
        raise _unreadable("does not parse") from error


def _convert(parsed: x509.CertificateRevocationList, der: bytes, line: Line | None) -> RevocationList:
    number: int | None = None
    for extension in parsed.extensions:
        value = extension.value
        if isinstance(value, x509.CRLNumber):
            number = value.crl_number
        elif isinstance(value, x509.IssuingDistributionPoint):
            _check_covers_everything(value)
        elif isinstance(value, x509.DeltaCRLIndicator) or extension.critical:
            raise _unreadable(f"extension {extension.oid.dotted_string} cannot be honoured")
    if number is not None and number < 0:
        raise _unreadable("a negative number")
    return RevocationList(
        der=der,
        issuer=parsed.issuer.public_bytes(),
        issuer_name=displayable(
            [str(each.value) for each in parsed.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)]
        ),
        number=number,
        this_update=parsed.last_update_utc,
        next_update=parsed.next_update_utc,
        serials=frozenset(map(_serial, parsed)),
        signed=parsed.tbs_certlist_bytes,
        signature=parsed.signature,
        signed_with_pss_sha384=names_pss_sha384(
            parsed.signature_algorithm_oid,
            parsed.signature_algorithm_parameters,
            parsed.signature_hash_algorithm,
        )
        and has_one_spelling(der, parsed.tbs_certlist_bytes),
        line=line,
    )


def _check_covers_everything(point: x509.IssuingDistributionPoint) -> None:
    # Only what leaves out ASKs, ASVKs or ARKs, or some reasons, narrows the list for us.
    if (
        point.only_contains_user_certs
        or point.only_contains_attribute_certs
        or point.only_some_reasons
        or point.indirect_crl
    ):
        raise _unreadable("it is not about all that its issuer revoked")


def _serial(entry: x509.RevokedCertificate) -> int:
    for extension in entry.extensions:
        known = isinstance(extension.value, x509.CRLReason | x509.InvalidityDate)
        if extension.critical and not known:
            raise _unreadable(f"an entry's extension {extension.oid.dotted_string} cannot be honoured")
    return entry.serial_number


def _unreadable(detail: str) -> MalformedEvidence:
    return MalformedEvidence(f"a revocation list: {detail}", reason="revocation-list-unreadable")
