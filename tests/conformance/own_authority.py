"""A development root of its own: ARK, ASK, ASVK, and the chips' certificates, shaped like AMD's.

Facts (names, serial numbers, key usage, which extensions) are those of the certificates that AMD serves.
"""

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.conformance import own_der as der
from tests.conformance.own_certificate import (
    BASIC_CONSTRAINTS,
    BOOTLOADER,
    CA,
    CA_LAST,
    CERT_AND_CRL_SIGN,
    CERT_SIGN,
    FMC,
    HARDWARE_ID,
    KEY_USAGE,
    MICROCODE,
    PRODUCT_NAME,
    PROVIDER_ID,
    PSS_SHA384,
    SNP,
    SPL4,
    SPL5,
    SPL6,
    SPL7,
    STRUCT_VERSION,
    TEE,
    Edit,
    Extension,
    issue,
    years,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security version numbers, each compared by itself; fmc exists on Turin only."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    def one_less(self, component: str) -> "Tcb":
        return replace(self, **{component: getattr(self, component) - 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What tells one processor generation from another in reports and certificates."""

    name: str
    product_name: str  # of the VCEK extension; real ones read "Milan-B0", "Genoa", "Turin"
    cpuid: tuple[int, int, int]  # family, model, stepping
    serial: int  # the ARK's; ASK and ASVK follow it
    tcb: Tcb

    @property
    def turin(self) -> bool:
        return self.name == "Turin"

    def pack(self, tcb: Tcb) -> bytes:
        """TCB_VERSION, 8 bytes, in this product's layout."""
        if self.turin:
            return bytes((tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode))
        return bytes((tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode))


MILAN = Product(
    name="Milan",
    product_name="Milan-B0",
    cpuid=(0x19, 0x01, 0x01),
    serial=0x10000,
    tcb=Tcb(bootloader=4, tee=0, snp=24, microcode=219),
)
GENOA = Product(
    name="Genoa",
    product_name="Genoa",
    cpuid=(0x19, 0x11, 0x01),
    serial=0x20000,
    tcb=Tcb(bootloader=10, tee=0, snp=23, microcode=84),
)
TURIN = Product(
    name="Turin",
    product_name="Turin",
    cpuid=(0x1A, 0x02, 0x01),
    serial=0x30000,
    tcb=Tcb(fmc=1, bootloader=1, tee=1, snp=4, microcode=81),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """One product's ARK with its ASK and ASVK."""

    product: Product
    ark_key: rsa.RSAPrivateKey
    ask_key: rsa.RSAPrivateKey
    asvk_key: rsa.RSAPrivateKey
    ark: bytes = field(init=False)
    ask: bytes = field(init=False)
    asvk: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ark", self._issue_ark())
        object.__setattr__(self, "ask", self.issue_ask())
        object.__setattr__(self, "asvk", self.issue_asvk())

    def _issue_ark(self) -> bytes:
        return issue(
            subject=f"ARK-{self.product.name}",
            issuer=f"ARK-{self.product.name}",
            public_key=self.ark_key.public_key(),
            signer=self.ark_key,
            serial=self.product.serial,
            valid=years(6, 19),
            extensions=[(KEY_USAGE, True, CERT_AND_CRL_SIGN), (BASIC_CONSTRAINTS, True, CA)],
            explicit_trailer=True,
        )

    def issue_ask(
        self,
        *,
        subject: str | None = None,
        public_key: rsa.RSAPublicKey | None = None,
        serial: int | None = None,
        valid: tuple[datetime, datetime] | None = None,
        basic_constraints: bytes | None = CA_LAST,
        key_usage: bytes | None = CERT_SIGN,
    ) -> bytes:
        """Return an ASK certificate by this authority's ARK; None leaves an extension out."""
        extensions: list[Extension] = []
        if basic_constraints is not None:
            extensions.append((BASIC_CONSTRAINTS, True, basic_constraints))
        if key_usage is not None:
            extensions.append((KEY_USAGE, True, key_usage))
        return issue(
            subject=subject or f"SEV-{self.product.name}",
            issuer=f"ARK-{self.product.name}",
            public_key=public_key or self.ask_key.public_key(),
            signer=self.ark_key,
            serial=serial or self.product.serial + 1,
            valid=valid or years(6, 19),
            extensions=extensions,
            explicit_trailer=True,
        )

    def issue_asvk(self) -> bytes:
        return issue(
            subject=f"SEV-VLEK-{self.product.name}",
            issuer=f"ARK-{self.product.name}",
            public_key=self.asvk_key.public_key(),
            signer=self.ark_key,
            serial=self.product.serial + 2,
            valid=years(3, 20),
            extensions=[(BASIC_CONSTRAINTS, True, CA_LAST), (KEY_USAGE, True, CERT_SIGN)],
            explicit_trailer=True,
        )

    def crl(self, revoked_serials: list[int], number: int = 1) -> bytes:
        """Return the ARK's DER revocation list."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(x509.load_der_x509_certificate(self.ark).subject)
            .last_update(now - timedelta(hours=1))
            .next_update(now + timedelta(days=30))
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for serial in revoked_serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
        return builder.sign(self.ark_key, hashes.SHA384(), rsa_padding=pss).public_bytes(Encoding.DER)


def tcb_extensions(product: Product, tcb: Tcb) -> list[Extension]:
    numbers = [(BOOTLOADER, tcb.bootloader), (TEE, tcb.tee), (SNP, tcb.snp)]
    if product.turin:
        numbers.insert(0, (FMC, tcb.fmc))
    else:
        numbers.append((SPL4, 0))
    numbers += [(SPL5, 0), (SPL6, 0), (SPL7, 0), (MICROCODE, tcb.microcode)]
    return [(name, False, der.integer(value)) for name, value in numbers]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One processor: its endorsement key and its 64-byte chip id."""

    authority: Authority
    chip_id: bytes
    key: ec.EllipticCurvePrivateKey
    genuine_vcek: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "genuine_vcek", self.vcek())

    @property
    def product(self) -> Product:
        return self.authority.product

    @property
    def hardware_id(self) -> bytes:
        return self.chip_id[:8] if self.product.turin else self.chip_id

    def vcek(
        self,
        *,
        tcb: Tcb | None = None,
        hardware_id: bytes | None = None,
        product_name: str | None = None,
        subject: str = "SEV-VCEK",
        issuer: str | None = None,
        signer: rsa.RSAPrivateKey | None = None,
        public_key: ec.EllipticCurvePublicKey | None = None,
        valid: tuple[datetime, datetime] | None = None,
        edit: Edit = list,
        algorithm: str = PSS_SHA384,
    ) -> bytes:
        """Return this chip's VCEK certificate, or a wrong one; the hwID is raw, as in all genuine ones."""
        product = self.product
        extensions: list[Extension] = [
            (STRUCT_VERSION, False, der.integer(int(product.turin))),
            (PRODUCT_NAME, False, der.ia5(product_name or product.product_name)),
            *tcb_extensions(product, tcb or product.tcb),
            (HARDWARE_ID, False, self.hardware_id if hardware_id is None else hardware_id),
        ]
        return issue(
            subject=subject,
            issuer=issuer or f"SEV-{product.name}",
            public_key=public_key or self.key.public_key(),
            signer=signer or self.authority.ask_key,
            serial=0,
            valid=valid or years(1, 6),
            extensions=edit(extensions),
            algorithm=algorithm,
        )

    def vlek(self, csp_id: str, *, edit: Edit = list) -> bytes:
        """Return a cloud provider's certificate for this chip's key: cspID instead of hwID."""
        product = self.product
        extensions: list[Extension] = [
            (STRUCT_VERSION, False, der.integer(int(product.turin))),
            (PRODUCT_NAME, False, der.ia5(product.name)),
            *tcb_extensions(product, product.tcb),
            (PROVIDER_ID, False, der.ia5(csp_id)),
        ]
        return issue(
            subject="SEV-VLEK",
            issuer=f"SEV-VLEK-{product.name}",
            public_key=self.key.public_key(),
            signer=self.authority.asvk_key,
            serial=0,
            valid=years(0.1, 0.9),
            extensions=edit(extensions),
        )


def new_chip(authority: Authority) -> Chip:
    identifier = os.urandom(8) + bytes(56) if authority.product.turin else os.urandom(64)
    return Chip(authority=authority, chip_id=identifier, key=ec.generate_private_key(ec.SECP384R1()))


def rsa_keys(folder: Path, names: list[str]) -> dict[str, rsa.RSAPrivateKey]:
    """Return RSA-4096 keys by name, made once and shared by all test processes of a run."""

    def load_or_make(name: str) -> rsa.RSAPrivateKey:
        path = folder / f"{name}.pem"
        if path.exists():
            loaded = load_pem_private_key(path.read_bytes(), None)
            assert isinstance(loaded, rsa.RSAPrivateKey)
            return loaded
        made = rsa.generate_private_key(65537, 4096)
        path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return made

    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(names, pool.map(load_or_make, names), strict=True))
