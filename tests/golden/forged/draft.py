"""Genuine evidence in parts. A forgery changes one part before, or one byte after, it is signed.

A draft is a value: each method gives another one. Contents come from the simulator; the signatures are
`tests.golden.forged.signing`'s, so that the same draft always gives the same bytes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms.encoding import b64url
from kms.simulator.certificates import Certificate, Extension
from kms.simulator.report_bytes import SIGNED_LENGTH, ReportFields
from kms.simulator.revocation_lists import RevocationListDraft
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from kms.snp.report import LENGTH
from kms.strict_json import JsonValue
from tests.golden.forged.signing import signed
from tests.golden.forged.worthless_keys import WorthlessKey

AT: Final = datetime(2026, 11, 21, 12, tzinfo=UTC)  # the moment at which the corpus is judged
DAY: Final = timedelta(days=1)
R: Final = 0x2A0  # offsets of the signature's halves, 72 bytes each
S: Final = 0x2E8

Extensions = Iterable[Extension]


@dataclass(frozen=True, slots=True)
class Layout:
    """A form of evidence: the product gives the TCB's layout, the signer the kind of chain."""

    product: Product
    signer: Signer

    @property
    def name(self) -> str:
        return f"{self.product.value}-{self.signer.value}"

    @property
    def line(self) -> Line:
        return Line(self.signer, self.product)

    @property
    def is_vcek(self) -> bool:
        return self.signer is Signer.VCEK

    @property
    def is_turin(self) -> bool:
        return self.product is Product.TURIN

    @property
    def other_product(self) -> Product:
        """Another product of another TCB layout, or for Milan of the same one."""
        return Product.GENOA if self.product is Product.MILAN else Product.MILAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A certificate of the chain: what it says, and whose key signs it. `edit` changes the signed DER."""

    says: Certificate
    by: WorthlessKey
    edit: Callable[[bytes], bytes] = bytes

    @property
    def der(self) -> bytes:
        return self.edit(signed(self.says, self.by))


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownList:
    """A revocation list: what it says, whose key signs it, and the layout at whose KDS path it was found."""

    says: RevocationListDraft
    by: WorthlessKey
    of: Layout | None
    edit: Callable[[bytes], bytes] = bytes

    @property
    def der(self) -> bytes:
        return self.edit(signed(self.says, self.by))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How revocation is judged (`KMS_CRL`, `KMS_CRL_MAX_AGE`), and the lists that the server knows."""

    mode: str = "when-available"
    max_age: timedelta = 7 * DAY
    lists: tuple[KnownList, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a guest sends: the report, labelled certificates, and members of the wire form beside them."""

    report: bytes
    certificates: tuple[tuple[str, bytes], ...]
    members: Mapping[str, JsonValue]
    rules: Rules

    def to_json(self) -> dict[str, JsonValue]:
        """Give the wire form, protocol section 2. A member that is None is left out."""
        evidence: dict[str, JsonValue] = {"tee": "sev-snp", "report": b64url(self.report)}
        if self.certificates:
            evidence["certificates"] = [b64url(certificate) for _, certificate in self.certificates]
        return {name: value for name, value in {**evidence, **self.members}.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Evidence of one layout, to be changed and then finished.

    `unsigned` and `tampering` are written into the report before and after it is signed. `write_signature`
    gives 144 bytes for r and s. `sent` are the labels of `parts` in the order in which they are sent; `more`
    comes after them. `members` stand in the evidence beside, or instead of, what else it has.
    """

    layout: Layout
    fields: ReportFields
    report_key: ec.EllipticCurvePrivateKey
    report_hash: hashes.HashAlgorithm = field(default_factory=hashes.SHA384)
    parts: Mapping[str, Part]
    sent: tuple[str, ...] = ("leaf", "authority", "ark")
    more: tuple[bytes, ...] = ()
    unsigned: tuple[tuple[int, bytes], ...] = ()
    tampering: tuple[Callable[[bytearray], None], ...] = ()
    write_signature: Callable[[int, int], bytes] = lambda r, s: little_endian(r) + little_endian(s)
    members: Callable[[Evidence], Mapping[str, JsonValue]] = lambda _: {}
    rules: Rules = field(default_factory=Rules)

    # ── the report ────────────────────────────────────────────────────────────────────────────

    def saying(self, **fields: Any) -> "Draft":
        """Change what the chip signs."""
        return replace(self, fields=replace(self.fields, **fields))

    def writing(self, offset: int, data: bytes) -> "Draft":
        """Write bytes into the report before it is signed, where no field stands."""
        return replace(self, unsigned=(*self.unsigned, (offset, data)))

    def tampered(self, change: Callable[[bytearray], None]) -> "Draft":
        """Change the signed report."""
        return replace(self, tampering=(*self.tampering, change))

    def flipping(self, offset: int, mask: int = 1) -> "Draft":
        """Flip bits of a byte of the signed report."""

        def flip(report: bytearray) -> None:
            report[offset] ^= mask

        return self.tampered(flip)

    def replacing(self, offset: int, data: bytes) -> "Draft":
        """Replace bytes of the signed report."""

        def put(report: bytearray) -> None:
            report[offset : offset + len(data)] = data

        return self.tampered(put)

    # ── the chain ─────────────────────────────────────────────────────────────────────────────

    def certificate(self, label: str, *, by: WorthlessKey | None = None, **says: Any) -> "Draft":
        """Change what a certificate says, or whose key signs it."""
        part = self.parts[label]
        changed = replace(part, says=replace(part.says, **says), by=by or part.by)
        return replace(self, parts={**self.parts, label: changed})

    def edited(self, label: str, edit: Callable[[bytes], bytes]) -> "Draft":
        """Change a signed certificate."""
        return replace(self, parts={**self.parts, label: replace(self.parts[label], edit=edit)})

    def extensions(self, label: str, change: Callable[[list[Extension]], Extensions]) -> "Draft":
        """Change a certificate's extensions."""
        return self.certificate(label, extensions=tuple(change(list(self.parts[label].says.extensions))))

    def extension(self, label: str, oid: str, *values: bytes) -> "Draft":
        """Give an extension these values: none removes it, two double it; one that is new is added."""

        def change(extensions: list[Extension]) -> Extensions:
            there = [each for each in extensions if each.oid == oid] or [Extension(oid, b"")]
            made = [there[0]._replace(value=value) for value in values]
            place = extensions.index(there[0]) if there[0] in extensions else len(extensions)
            rest = [each for each in extensions if each.oid != oid]
            return [*rest[:place], *made, *rest[place:]]

        return self.extensions(label, change)

    def value(self, label: str, oid: str) -> bytes:
        """Give an extension's value as it is."""
        return next(each.value for each in self.parts[label].says.extensions if each.oid == oid)

    def leaf_key(self, key: ec.EllipticCurvePrivateKey) -> "Draft":
        """Certify another key, and sign the report with it."""
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return replace(self.certificate("leaf", public_key=spki), report_key=key)

    def ruled(self, mode: str, *lists: KnownList) -> "Draft":
        """Judge revocation in this mode, with these lists."""
        return replace(self, rules=replace(self.rules, mode=mode, lists=lists))

    # ── finishing ─────────────────────────────────────────────────────────────────────────────

    def report(self) -> bytes:
        """Give the report: 1184 bytes unless tampering changed that."""
        raw = bytearray(self.fields.encode())
        for offset, data in self.unsigned:
            raw[offset : offset + len(data)] = data
        scheme = ec.ECDSA(self.report_hash, deterministic_signing=True)
        r, s = decode_dss_signature(self.report_key.sign(bytes(raw[:SIGNED_LENGTH]), scheme))
        # What was written beyond the signed part stays where it is.
        tail = bytes(raw[SIGNED_LENGTH:]).ljust(LENGTH - SIGNED_LENGTH, b"\x00")
        raw[SIGNED_LENGTH:] = self.write_signature(r, s).ljust(144, b"\x00") + tail[144:]
        for change in self.tampering:
            change(raw)
        return bytes(raw)

    def evidence(self) -> Evidence:
        """Sign everything."""
        certificates = [(label, self.parts[label].der) for label in self.sent]
        certificates += [(f"more-{number}", der) for number, der in enumerate(self.more, 1)]
        evidence = Evidence(
            report=self.report(), certificates=tuple(certificates), members={}, rules=self.rules
        )
        return replace(evidence, members=self.members(evidence))


def little_endian(half: int) -> bytes:
    """Give a signature's half as reports hold it: 72 bytes."""
    return half.to_bytes(72, "little")
