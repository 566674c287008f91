"""The server's TLS: a certificate of a local CA, made on first start, or the operator's own.

The local CA only says "the same server as before" to guests that pin it; it is unrelated to everything
that the root secret derives.
"""

import ipaddress
import ssl
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kms import private_files
from kms.errors import ConfigurationError
from kms.keys.apps_ca import key_usage

_CA_LIFE: Final = timedelta(days=3650)
_SERVER_LIFE: Final = timedelta(days=365)
_RENEW_BEFORE: Final = timedelta(days=60)
_BACKDATE: Final = timedelta(minutes=5)  # clocks of guests that boot are often a little behind
_PUBLIC: Final = 0o644


class LocalTls:
    """The files of a local CA and its server certificate in a folder: made when missing, renewed when old."""

    def __init__(self, folder: Path) -> None:
        self.ca = folder / "ca.pem"
        self.certificate = folder / "server.pem"
        self.key = folder / "server-key.pem"
        self._folder = folder
        self._ca_key = folder / "ca-key.pem"

    def ensure(self, names: Iterable[str], now: datetime) -> None:
        """Make what is missing; make the server certificate anew if it is old or has other names.

        Raises:
            ConfigurationError: the files cannot be read or written.

        """
        wanted = certificate_names(names)
        try:
            private_files.make_folder(self._folder)
            if not self.ca.exists():
                self._make_ca(now)
            ca = _certificate(self.ca, remedy=self._new_ca())
            if not self._is_current(ca, wanted, now):
                self._make_server(ca, wanted, now)
        except OSError as error:
            raise ConfigurationError(
                f"the TLS files in {self._folder} cannot be used: {error.strerror}",
                remedy="the server must be able to read and write them, with space left",
            ) from error

    def _new_ca(self) -> str:
        return (
            f"restore {self.ca.name} and {self._ca_key.name} from a backup, or remove both from "
            f"{self._folder} to have a new CA made; guests must then pin the new ca.pem"
        )

    def _make_ca(self, now: datetime) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attested-kms local TLS CA")])
        certificate = (
            _builder(name, name, key.public_key(), now, _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        private_files.replace(self._ca_key, _private_pem(key))
        private_files.replace(self.ca, certificate.public_bytes(serialization.Encoding.PEM), mode=_PUBLIC)

    def _make_server(self, ca: x509.Certificate, names: list[str], now: datetime) -> None:
        try:
            ca_key = serialization.load_pem_private_key(self._ca_key.read_bytes(), None)
        except FileNotFoundError:
            raise _unusable(self._ca_key, "is not there", remedy=self._new_ca()) from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise _unusable(self._ca_key, "is damaged", remedy=self._new_ca()) from None
        if not isinstance(ca_key, ec.EllipticCurvePrivateKey) or ca_key.public_key() != ca.public_key():
            raise _unusable(self._ca_key, f"is not the key of {self.ca.name}", remedy=self._new_ca())
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attested-kms")])
        certificate = (
            _builder(subject, ca.subject, key.public_key(), now, _SERVER_LIFE)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
            )
            .sign(ca_key, hashes.SHA256())
        )
        private_files.replace(self.key, _private_pem(key))
        private_files.replace(
            self.certificate, certificate.public_bytes(serialization.Encoding.PEM), mode=_PUBLIC
        )

    def _is_current(self, ca: x509.Certificate, names: list[str], now: datetime) -> bool:
        """Whether the certificate is this CA's, for these names, long enough, and has this key.

        A crash between the two files, or a CA that was made anew, leaves what fits nothing: it is replaced.
        """
        if not self.certificate.exists() or not self.key.exists():
            return False
        remedy = f"remove it from {self._folder}: it is made again under the same CA"
        certificate = _certificate(self.certificate, remedy=remedy)
        try:
            key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise _unusable(self.key, "is damaged", remedy=remedy) from None
        try:
            certificate.verify_directly_issued_by(ca)
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        has = sorted(str(name.value) for name in extension.value)
        return (
            has == names
            and certificate.public_key() == key.public_key()
            and certificate.not_valid_after_utc - now > _RENEW_BEFORE
        )


def certificate_names(names: Iterable[str]) -> list[str]:
    """Give host names and addresses as they stand in a certificate, sorted.

    Raises:
        ConfigurationError: one of them cannot stand in any.

    """
    try:
        return sorted({str(_general_name(name).value) for name in names})
    except ValueError as error:
        raise ConfigurationError(
            f"a name for the TLS certificate is none: {error}",
            remedy="KMS_TLS_NAMES takes ASCII host names (punycode) and addresses",
        ) from error


def server_context(
    certificate: Path, key: Path, minimum: str, operator_ca: Path | None = None
) -> ssl.SSLContext:
    """Make the server's TLS context, from version `minimum` ("1.3" or "1.2").

    With an `operator_ca` clients may show a certificate of it (`ask_for_certificates`).

    Raises:
        ConfigurationError: the certificate or key, or the CA, cannot be loaded.

    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the TLS certificate {certificate} and key {key} cannot be loaded: {error}",
            remedy="KMS_TLS_CERT must be a PEM chain and KMS_TLS_KEY its unencrypted PEM key",
        ) from error
    if operator_ca is not None:
        ask_for_certificates(context, operator_ca)
    return context


def certificate_expiry(certificate: Path) -> datetime:
    """Give when the first certificate of a PEM chain expires, intermediate ones too.

    Raises:
        ConfigurationError: it cannot be read.

    """
    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the TLS certificate {certificate} cannot be read: {error}") from error
    return min(each.not_valid_after_utc for each in chain)


def ask_for_certificates(context: ssl.SSLContext, operator_ca: Path) -> None:
    """Let clients show a certificate of the CAs in a PEM file; whoever shows another one is turned away.

    OpenSSL verifies names, signatures, dates, and that a certificate with an extended key usage is for
    clients (X509_PURPOSE_SSL_CLIENT). It asks nobody for revocations: an operator's access is ended here.

    Raises:
        ConfigurationError: the file cannot be read, or holds no certificate.

    """
    context.verify_mode = ssl.CERT_OPTIONAL
    # An intermediate CA may stand in the file alone: what else its root signs is then not let in.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(operator_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"the CA of operators {operator_ca} cannot be loaded: {error.strerror or error}",
            remedy="KMS_OPERATOR_CA must be a PEM file of certificates",
        ) from error


def _certificate(path: Path, *, remedy: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise _unusable(path, "is damaged", remedy=remedy) from None


def _unusable(path: Path, why: str, *, remedy: str) -> ConfigurationError:
    return ConfigurationError(
        f"the TLS files in {path.parent} cannot be used: {path.name} {why}", remedy=remedy
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
