"""Genuine evidence in all its forms: a door that is closed to everybody would refuse every forgery too."""

from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from kms.encoding import b64url
from kms.simulator import der
from kms.simulator.authorities import Role
from kms.simulator.certificate_table import certificate_table
from kms.simulator.endorsement_extensions import (
    CSP_ID,
    HARDWARE_ID,
    MICROCODE_SPL,
    PRODUCT_NAME,
    SPL_4,
    SPL_5,
    SPL_6,
    SPL_7,
)
from kms.snp import certificate_table as guids
from kms.snp import tcb
from kms.snp.product import Cpuid, Product
from kms.strict_json import JsonValue
from tests.golden.forged.draft import AT, Draft, Evidence, little_endian
from tests.golden.forged.forged_signatures import pss
from tests.golden.forged.genuine import OTHER_CSP_IDS, authority, chip, line_role
from tests.golden.forged.malformed_reports import VERSION_2, N
from tests.golden.forged.recipes import Book, both, certificate, extension, saying, written


def controls(book: Book) -> None:
    """Add them."""
    book.verified("honest")
    _reports(book)
    _certificates(book)
    _forms(book)


def _reports(book: Book) -> None:
    layout, host = book.layout, chip(book.layout)
    book.verified("report-of-version-2", saying(**VERSION_2))
    older = {"launch_mitigations": None, "current_mitigations": None}
    newer = {"launch_mitigations": 0x3F, "current_mitigations": 0x3F}
    for version in sorted({3, 4, 5} - {host.report_version}):
        fields = newer if version == 5 else older
        book.verified(f"report-of-version-{version}", saying(version=version, **fields))
    # (r, n - s) is as good as (r, s): a signature is no token (field lesson 12).
    book.verified("signature-twin", written(lambda r, s: little_endian(r) + little_endian(N - s)))
    book.verified("unnamed-platform-bits", saying(platform_info=1 << 63 | 1 << 40 | 0x25))
    ahead = replace(host.current_tcb, snp=host.current_tcb.snp + 1, microcode=host.current_tcb.microcode + 1)
    book.verified("reported-tcb-below-current", saying(current_tcb=tcb.encode(ahead, layout.product)))
    for level in (0x7F, 0x80, 0xFF):
        raw = tcb.encode(replace(host.current_tcb, microcode=level), layout.product)
        certified = extension("leaf", MICROCODE_SPL, der.integer(level))
        book.verified(f"microcode-{level}", both(saying(current_tcb=raw, reported_tcb=raw), certified))
    if layout.product is Product.GENOA:
        book.verified("bergamo-or-siena", saying(cpuid=Cpuid(0x19, 0xA0, 2)))
        book.verified("last-model", saying(cpuid=Cpuid(0x19, 0xAF, 0)))
    if not layout.is_vcek:
        book.verified("chip-id-zero", saying(chip_id=bytes(64)))
        book.verified("chip-id-of-any-chip", saying(chip_id=b"c" * 64))


def _certificates(book: Book) -> None:
    layout = book.layout
    name = layout.product.certificate_name
    this_second = certificate("leaf", not_before=AT, not_after=AT)
    book.verified("leaf-valid-in-this-second-only", this_second)
    for stepping in ("", "-B0", "-B1-more"):
        value = der.ia5_string(name + stepping)
        book.verified(f"product-name-{name}{stepping}", extension("leaf", PRODUCT_NAME, value))
    book.verified(
        "without-reserved-levels", both(*(extension("leaf", oid) for oid in (SPL_4, SPL_5, SPL_6, SPL_7)))
    )
    if layout.is_vcek:
        value = next(
            each.value
            for each in chip(layout)
            .hierarchy.vcek_certificate(
                chip(layout).endorsement.key.public_key(),
                chip(layout).reported_tcb,
                chip(layout).chip_id,
                not_before=AT,
                not_after=AT,
            )
            .extensions
            if each.oid == HARDWARE_ID
        )
        octets = der.tlv(der.OCTET_STRING, value)
        book.verified("hwid-in-an-octet-string", extension("leaf", HARDWARE_ID, octets))
    else:
        for provider in OTHER_CSP_IDS:
            change = extension("leaf", CSP_ID, der.ia5_string(provider))
            book.verified(f"csp-id-of-{len(provider)}-characters", change)
    spelled_out = pss("sha-384", trailer=True)
    book.verified(
        "trailer-field-spelled-out",
        both(*(certificate(label, scheme=spelled_out) for label in ("leaf", "authority", "ark"))),
    )


def _forms(book: Book) -> None:
    layout = book.layout
    decoys = (
        authority(layout.product, line_role(layout), owner="impostor").der,
        authority(layout.product, Role.ARK, owner="impostor").der,
        authority(layout.other_product, line_role(layout)).der,
        authority(layout.other_product, Role.ARK).der,
    )
    book.verified("certificates-reversed", lambda draft: replace(draft, sent=("ark", "authority", "leaf")))
    book.verified("certificates-twice", lambda draft: replace(draft, sent=draft.sent * 2))
    book.verified("beside-decoys", lambda draft: replace(draft, more=decoys))
    book.verified("behind-decoys", _behind(decoys))
    book.verified("in-a-table", lambda draft: replace(draft, members=in_a_table))
    book.verified("in-a-table-backwards", lambda draft: replace(draft, members=_in_a_table_backwards))
    book.verified("in-pem", lambda draft: replace(draft, members=_in_pem))
    book.verified("an-empty-table-beside", lambda draft: replace(draft, members=_with_empty_table))


def _behind(decoys: tuple[bytes, ...]) -> Callable[[Draft], Draft]:
    def change(draft: Draft) -> Draft:
        own = tuple(draft.parts[label].der for label in draft.sent)
        return replace(draft, sent=(), more=(*decoys, *own))

    return change


def table_entries(evidence: Evidence) -> list[tuple[UUID, bytes]]:
    """Give the entries of a host's certificate table for the chain."""
    leaf = guids.VCEK if b"SEV-VCEK" in dict(evidence.certificates)["leaf"] else guids.VLEK
    named = {"leaf": leaf, "authority": guids.ASK, "ark": guids.ARK}
    return [(named[label], certificate) for label, certificate in evidence.certificates]


def in_a_table(evidence: Evidence) -> dict[str, JsonValue]:
    """Send the certificates as the kernel hands them to a guest."""
    return {"certificate_table": b64url(certificate_table(table_entries(evidence))), "certificates": None}


def _in_a_table_backwards(evidence: Evidence) -> dict[str, JsonValue]:
    """The entries need not be in the order of what they point to."""
    table = certificate_table(table_entries(evidence))
    header = [table[at : at + 24] for at in range(0, 72, 24)]
    return {"certificate_table": b64url(b"".join(reversed(header)) + table[72:]), "certificates": None}


def _in_pem(evidence: Evidence) -> dict[str, JsonValue]:
    pem = [
        load_der_x509_certificate(each).public_bytes(Encoding.PEM).decode()
        for _, each in evidence.certificates
    ]
    return {"certificates": ["".join(pem)]}


def _with_empty_table(evidence: Evidence) -> dict[str, JsonValue]:
    return {"certificate_table": b64url(bytes(24))}
