"""Revocation lists made with the library's builder: a writer of its own for what the loader must read."""

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding

from kms.simulator.authorities import Authority

_PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


def revocation_list(
    issuer: Authority,
    *,
    this_update: datetime,
    next_update: datetime,
    serials: Iterable[int] = (),
    number: int | None = 1,
    signer: Authority | None = None,
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    entry_extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    scheme: padding.PSS | padding.PKCS1v15 = _PSS,
    digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 | None = None,
) -> bytes:
    """Give a DER list in the issuer's name, signed by its key or another's; extensions: (value, critical)."""
    name = x509.load_der_x509_certificate(issuer.certificate).subject
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name)
        .last_update(this_update)
        .next_update(next_update)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(this_update)
        for value, critical in entry_extensions:
            entry = entry.add_extension(value, critical=critical)
        builder = builder.add_revoked_certificate(entry.build())
    built = builder.sign((signer or issuer).key, digest or hashes.SHA384(), rsa_padding=scheme)
    return built.public_bytes(Encoding.DER)
