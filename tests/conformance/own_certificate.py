"""X.509 certificates shaped like AMD's, and wrong ones: whatever is asked for is signed.

Facts (names, extension numbers, signature parameters) are those of the certificates that AMD serves.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)

from tests.conformance import own_der as der

AMD = "1.3.6.1.4.1.3704.1"  # VCEK certificate specification, AMD 57230
STRUCT_VERSION, PRODUCT_NAME, HARDWARE_ID, PROVIDER_ID = f"{AMD}.1", f"{AMD}.2", f"{AMD}.4", f"{AMD}.5"
BOOTLOADER, TEE, SNP, SPL4, SPL5, SPL6, SPL7, MICROCODE, FMC = (f"{AMD}.3.{n}" for n in range(1, 10))

BASIC_CONSTRAINTS, KEY_USAGE = "2.5.29.19", "2.5.29.15"
CA = der.sequence(der.boolean(True))
CA_LAST = der.sequence(der.boolean(True), der.integer(0))
CERT_SIGN = der.bits(b"\x04", unused=2)
CERT_AND_CRL_SIGN = der.bits(b"\x06", unused=1)

Extension = tuple[str, bool, bytes]  # OID, critical, contents of the OCTET STRING
Edit = Callable[[list[Extension]], list[Extension]]


def _pss_algorithm(digest: str, explicit_trailer: bool) -> bytes:
    """RSASSA-PSS with salt 48; old AMD certificates write the default trailer out, newer ones omit it."""
    hashing = der.sequence(der.oid(digest), der.null())
    trailer = der.explicit(3, der.integer(1)) if explicit_trailer else b""
    parameters = der.sequence(
        der.explicit(0, hashing),
        der.explicit(1, der.sequence(der.oid("1.2.840.113549.1.1.8"), hashing)),
        der.explicit(2, der.integer(48)),
        trailer,
    )
    return der.sequence(der.oid("1.2.840.113549.1.1.10"), parameters)


def _name(common_name: str) -> bytes:
    def rdn(attribute: str, value: bytes) -> bytes:
        return der.set_of(der.sequence(der.oid(attribute), value))

    return der.sequence(
        rdn("2.5.4.11", der.utf8("Engineering")),
        rdn("2.5.4.6", der.printable("US")),
        rdn("2.5.4.7", der.utf8("Santa Clara")),
        rdn("2.5.4.8", der.utf8("CA")),
        rdn("2.5.4.10", der.utf8("Advanced Micro Devices")),
        rdn("2.5.4.3", der.utf8(common_name)),
    )


PSS_SHA384 = "pss-sha384"
PSS_SHA256 = "pss-sha256"
PKCS1_SHA384 = "pkcs1-sha384"


def _sign(tbs: bytes, key: rsa.RSAPrivateKey, algorithm: str) -> bytes:
    digest = hashes.SHA256() if algorithm == PSS_SHA256 else hashes.SHA384()
    if algorithm == PKCS1_SHA384:
        return key.sign(tbs, padding.PKCS1v15(), digest)
    return key.sign(tbs, padding.PSS(padding.MGF1(digest), 48), digest)


def issue(
    *,
    subject: str,
    issuer: str,
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    signer: rsa.RSAPrivateKey,
    serial: int,
    valid: tuple[datetime, datetime],
    extensions: list[Extension],
    algorithm: str = PSS_SHA384,
    explicit_trailer: bool = False,
) -> bytes:
    """Return one DER certificate, exactly as asked for, however wrong."""
    algorithms = {
        PSS_SHA384: _pss_algorithm("2.16.840.1.101.3.4.2.2", explicit_trailer),
        PSS_SHA256: _pss_algorithm("2.16.840.1.101.3.4.2.1", explicit_trailer),
        PKCS1_SHA384: der.sequence(der.oid("1.2.840.113549.1.1.12"), der.null()),
    }
    written = [
        der.sequence(der.oid(name), der.boolean(True) if critical else b"", der.octets(value))
        for name, critical, value in extensions
    ]
    tbs = der.sequence(
        der.explicit(0, der.integer(2)),
        der.integer(serial),
        algorithms[algorithm],
        _name(issuer),
        der.sequence(*(der.utc_time(moment) for moment in valid)),
        _name(subject),
        public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        der.explicit(3, der.sequence(*written)) if written else b"",
    )
    return der.sequence(tbs, algorithms[algorithm], der.bits(_sign(tbs, signer, algorithm)))


def years(before: float, after: float) -> tuple[datetime, datetime]:
    """Return a validity period around now."""
    now = datetime.now(UTC).replace(microsecond=0)
    return now - timedelta(days=365 * before), now + timedelta(days=365 * after)


def pem(certificate: bytes) -> str:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode()
