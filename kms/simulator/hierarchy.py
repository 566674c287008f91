"""A SIMULATED key hierarchy in the form of AMD's: ARK, ASK, ASVK, and the endorsement keys that they certify.

Genuine forms (VCEK specification 57230, and the chains that AMD's key distribution service hands out): RSA
authorities that sign with RSASSA-PSS, SHA-384, MGF1 of SHA-384 and a salt of 48 bytes; P-384 leaves with
serial number 0. Every name says that it is a simulation; only the common names are AMD's, because verifiers
read them. A server trusts such an ARK only when `KMS_DEVELOPMENT_ROOTS` names it.
"""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from kms.identifiers import ChipId
from kms.simulator.authorities import BACKDATED, Authority, Role, authority_certificate
from kms.simulator.certificates import Certificate, Extension, simulation_name
from kms.simulator.endorsement_extensions import vcek_extensions, vlek_extensions
from kms.simulator.revocation_lists import RevocationListDraft
from kms.snp.product import Product
from kms.snp.tcb import TcbVersion

# What a caller may give instead of the genuine extensions: (OID, content of extnValue), critical or not.
Extensions = Iterable[Extension | tuple[str, bytes]]


class AmdHierarchy:
    """ARK, ASK and, from its first use, ASVK of one product, all SIMULATED.

    An authority takes seconds to make with AMD's 4096 bits; `save` and `load` keep a hierarchy for the next
    run.
    """

    def __init__(self, product: Product, *, ark: Authority, ask: Authority, asvk: Authority | None) -> None:
        self.product = product
        self.ark = ark
        self.ask = ask
        self._asvk = asvk
        self._asvk_lock = Lock()

    @classmethod
    def generate(cls, product: Product, *, now: datetime, rsa_bits: int = 4096) -> Self:
        """Make an ARK and an ASK with new keys, valid for 25 years from a day before `now` (aware)."""
        key = _new_key(rsa_bits)
        draft = authority_certificate(product, Role.ARK, key.public_key(), key.public_key(), now=now)
        ark = Authority(draft.signed(key), key)
        return cls(product, ark=ark, ask=_subordinate(product, Role.ASK, ark, now, rsa_bits), asvk=None)

    @property
    def asvk(self) -> Authority:
        """The authority of VLEKs: made when it is first asked for, with the ARK's dates and key size."""
        with self._asvk_lock:
            if self._asvk is None:
                made = x509.load_der_x509_certificate(self.ark.certificate).not_valid_before_utc + BACKDATED
                self._asvk = _subordinate(self.product, Role.ASVK, self.ark, made, self.ark.key.key_size)
            return self._asvk

    def vcek_certificate(
        self,
        public_key: EllipticCurvePublicKey,
        tcb: TcbVersion,
        chip_id: ChipId,
        *,
        not_before: datetime,
        not_after: datetime,
    ) -> Certificate:
        """Give the certificate of a chip's key at a TCB, unsigned: a forger changes it, then signs."""
        extensions = vcek_extensions(self.product, tcb, chip_id)
        return _leaf("SEV-VCEK", self.ask, public_key, extensions, not_before=not_before, not_after=not_after)

    def vlek_certificate(
        self,
        public_key: EllipticCurvePublicKey,
        tcb: TcbVersion,
        csp_id: str,
        *,
        not_before: datetime,
        not_after: datetime,
    ) -> Certificate:
        """Give the certificate of a cloud provider's key at a TCB, unsigned. `csp_id` is ASCII."""
        extensions = vlek_extensions(self.product, tcb, csp_id)
        return _leaf(
            "SEV-VLEK", self.asvk, public_key, extensions, not_before=not_before, not_after=not_after
        )

    def issue_vcek(
        self,
        public_key: EllipticCurvePublicKey,
        tcb: TcbVersion,
        chip_id: ChipId,
        *,
        not_before: datetime,
        not_after: datetime,
        extensions: Extensions | None = None,
    ) -> bytes:
        """Certify a chip's key at a TCB: DER, signed by the ASK.

        `extensions` replace the genuine ones, which `vcek_extensions` gives as a list to edit.
        """
        draft = self.vcek_certificate(public_key, tcb, chip_id, not_before=not_before, not_after=not_after)
        return _with(draft, extensions).signed(self.ask.key)

    def issue_vlek(
        self,
        public_key: EllipticCurvePublicKey,
        tcb: TcbVersion,
        csp_id: str,
        *,
        not_before: datetime,
        not_after: datetime,
        extensions: Extensions | None = None,
    ) -> bytes:
        """Certify a cloud provider's key at a TCB: DER, signed by the ASVK. `extensions` as for a VCEK."""
        draft = self.vlek_certificate(public_key, tcb, csp_id, not_before=not_before, not_after=not_after)
        return _with(draft, extensions).signed(self.asvk.key)

    def revocation_list(
        self,
        serials: Iterable[int] = (),
        *,
        number: int | None = 1,
        this_update: datetime,
        next_update: datetime | None,
        signer: Authority | None = None,
    ) -> bytes:
        """Revoke ASKs, ASVKs or ARKs by serial number: DER, in the ARK's name.

        With a `signer` it is forged: that authority's key signs, and the ARK's name stays.
        """
        draft = RevocationListDraft.by(
            self.ark, tuple(serials), number=number, this_update=this_update, next_update=next_update
        )
        return draft.signed((signer or self.ark).key)

    def save(self, folder: Path) -> None:
        """Write certificates and keys as PEM into a new folder (0700, keys 0600), whole or not at all.

        The keys are not encrypted: they are worth nothing.

        Raises:
            OSError: the folder exists and is not empty, or cannot be written.

        """
        authorities = {Role.ARK: self.ark, Role.ASK: self.ask}
        with self._asvk_lock:
            if self._asvk is not None:
                authorities[Role.ASVK] = self._asvk
        folder.parent.mkdir(parents=True, exist_ok=True)
        # mkdtemp makes it 0700; the rename lets one of several parallel test runs win, never a mixture.
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for role, authority in authorities.items():
                (draft / _certificate_file(role)).write_bytes(authority.pem)
                key_file = draft / _key_file(role)
                key_file.touch(mode=0o600)
                key_file.write_bytes(
                    authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                )
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is not what it should be.

        """
        ark = _load(Role.ARK, folder)
        for product in Product:
            if ark.name == simulation_name(Role.ARK.common_name(product)):
                has_asvk = (folder / _certificate_file(Role.ASVK)).exists()
                asvk = _load(Role.ASVK, folder) if has_asvk else None
                return cls(product, ark=ark, ask=_load(Role.ASK, folder), asvk=asvk)
        raise ValueError("the ARK is not one of the simulator's")


def _new_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def _subordinate(product: Product, role: Role, ark: Authority, now: datetime, rsa_bits: int) -> Authority:
    key = _new_key(rsa_bits)
    draft = authority_certificate(product, role, key.public_key(), ark.key.public_key(), now=now)
    return Authority(draft.signed(ark.key), key)


def _leaf(
    name: str,
    authority: Authority,
    public_key: EllipticCurvePublicKey,
    extensions: Iterable[Extension],
    *,
    not_before: datetime,
    not_after: datetime,
) -> Certificate:
    return Certificate(
        serial_number=0,  # as every genuine endorsement certificate
        issuer=authority.name,
        subject=simulation_name(name),
        not_before=not_before,
        not_after=not_after,
        public_key=public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        extensions=tuple(extensions),
    )


def _with(certificate: Certificate, extensions: Extensions | None) -> Certificate:
    if extensions is None:
        return certificate
    return replace(certificate, extensions=tuple(Extension(*extension) for extension in extensions))


def _certificate_file(role: Role) -> str:
    return f"{role.value}.pem"


def _key_file(role: Role) -> str:
    return f"{role.value}.key.pem"


def _load(role: Role, folder: Path) -> Authority:
    certificate = x509.load_pem_x509_certificate((folder / _certificate_file(role)).read_bytes())
    key = load_pem_private_key((folder / _key_file(role)).read_bytes(), password=None)
    if not isinstance(key, rsa.RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError(f"the {role.value} key is not its certificate's")
    return Authority(certificate.public_bytes(Encoding.DER), key)
