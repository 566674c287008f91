"""Chains that do not lead from the endorsement key to a pinned root, however much they resemble one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import gcd

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID

from kms.simulator.authorities import Role
from kms.simulator.der import ia5_string
from kms.simulator.endorsement_extensions import PRODUCT_NAME
from kms.snp.product import Cpuid, Product
from tests.golden.forged.draft import Draft
from tests.golden.forged.genuine import authority, authority_key, common_name, line_role, spki_of
from tests.golden.forged.malformed_reports import VERSION_2
from tests.golden.forged.recipes import (
    NO_CHAIN,
    NO_ROOT,
    UNAVAILABLE,
    Book,
    both,
    certificate,
    extension,
    saying,
    untrusted,
)
from tests.golden.forged.worthless_keys import WorthlessKey, ec_key, rsa_key

BASIC_CONSTRAINTS = ExtensionOID.BASIC_CONSTRAINTS.dotted_string
KEY_USAGE = ExtensionOID.KEY_USAGE.dotted_string
IMPOSTOR = "impostor"
_CA = bytes.fromhex("30030101ff")


def forged_chains(book: Book) -> None:
    """Add them."""
    _impostors(book)
    _wrong_issuers(book)
    _other_products(book)
    _authority_bits(book)
    _keys(book)
    _missing(book)


def under_impostor(draft: Draft) -> Draft:
    """Give the forger's own hierarchy, of the same names."""
    layout, role = draft.layout, line_role(draft.layout)
    parts = {
        "leaf": replace(draft.parts["leaf"], by=authority_key(layout.product, role, owner=IMPOSTOR)),
        "authority": authority(layout.product, role, owner=IMPOSTOR),
        "ark": authority(layout.product, Role.ARK, owner=IMPOSTOR),
    }
    return replace(draft, parts=parts)


def _impostors(book: Book) -> None:
    """Field lesson 2: a chain is no better for being consistent."""
    ours = authority(book.layout.product, Role.ARK)
    impostor = authority_key(book.layout.product, line_role(book.layout), owner=IMPOSTOR)
    unknown_root = ("root-unknown", "chain-names", "product")
    book.untrusted("chain-of-an-impostor", under_impostor, *unknown_root)
    book.untrusted(
        "chain-of-an-impostor-with-the-pinned-root",
        lambda draft: replace(
            under_impostor(draft), parts={**under_impostor(draft).parts, "ark": draft.parts["ark"]}
        ),
        "authority-signature",
    )
    book.untrusted(
        "chain-of-an-impostor-beside-the-pinned-root",
        lambda draft: replace(under_impostor(draft), more=(ours.der,)),
        *unknown_root,
    )
    # The genuine chain beside the forged one proves nothing of it.
    genuine = (authority(book.layout.product, line_role(book.layout)).der, ours.der)
    book.untrusted(
        "chain-of-an-impostor-beside-the-genuine-one",
        lambda draft: replace(under_impostor(draft), more=genuine),
        *unknown_root,
    )
    book.untrusted(
        "chain-of-an-impostor-without-root-beside-the-genuine-one",
        lambda draft: replace(under_impostor(draft), sent=("leaf", "authority"), more=genuine),
        "authority-signature",
    )
    # No root, no product, and no CPUID: that three say nothing does not mean that they agree.
    of_no_product = both(
        saying(**VERSION_2), extension("leaf", PRODUCT_NAME, ia5_string("Rome")), under_impostor
    )
    # Turin's hwID is short because it is Turin's, which nothing says here.
    mismatch = ["hwid-mismatch"] if book.layout.is_turin and book.layout.is_vcek else []
    book.untrusted("chain-of-an-impostor-for-no-product", of_no_product, *unknown_root, *mismatch)
    book.untrusted("leaf-of-an-impostor", certificate("leaf", by=impostor), "leaf-signature")
    book.untrusted(
        "authority-of-an-impostor",
        certificate("authority", by=rsa_key("impostor-ark")),
        "authority-signature",
    )
    # The pinned key in a certificate of the forger's making: its dates would be his word.
    book.untrusted("root-edited", certificate("ark", by=rsa_key("impostor-ark")), "root-signature")


def _wrong_issuers(book: Book) -> None:
    layout = book.layout
    role = line_role(layout)
    other_role = Role.ASVK if layout.is_vcek else Role.ASK
    ark_key = authority_key(layout.product, Role.ARK)
    ark_name = common_name(layout, Role.ARK)
    book.untrusted("leaf-by-the-root", certificate("leaf", issuer=ark_name, by=ark_key), *NO_CHAIN)
    book.untrusted("leaf-by-the-root-in-another-name", certificate("leaf", by=ark_key), "leaf-signature")
    book.untrusted(
        "authority-by-itself",
        certificate("authority", issuer=common_name(layout, role), by=authority_key(layout.product, role)),
        *NO_CHAIN,
    )

    def of_the_other_line(draft: Draft) -> Draft:
        issued = draft.certificate(
            "leaf",
            issuer=common_name(layout, other_role),
            by=authority_key(layout.product, other_role),
        )
        return replace(issued, parts={**issued.parts, "authority": authority(layout.product, other_role)})

    # An ASVK for a VCEK, an ASK for a VLEK: a cloud provider is not a chip.
    book.untrusted("authority-of-the-other-kind", of_the_other_line, "chain-names")
    book.untrusted(
        "leaf-by-the-authority-of-the-other-kind-in-another-name",
        certificate("leaf", by=authority_key(layout.product, other_role)),
        "leaf-signature",
    )
    book.untrusted(
        "leaf-by-another-product-in-another-name",
        certificate("leaf", by=authority_key(layout.other_product, role)),
        "leaf-signature",
    )


def _other_products(book: Book) -> None:
    layout = book.layout
    other, role = layout.other_product, line_role(layout)

    def under_other(draft: Draft) -> Draft:
        leaf = replace(
            draft.parts["leaf"],
            says=replace(draft.parts["leaf"].says, issuer=common_name(layout, role, other)),
            by=authority_key(other, role),
        )
        parts = {"leaf": leaf, "authority": authority(other, role), "ark": authority(other, Role.ARK)}
        return replace(draft, parts=parts)

    reasons = ["product"]
    if layout.is_turin:
        # Read in Milan's layout, the chip id has 64 bytes and the TCB other places, and no FMC.
        reasons += ["hwid-mismatch"] if layout.is_vcek else []
        reasons += ["certificate-tcb-extensions", "certificate-tcb", "certificate-not-above-current"]
    book.untrusted("chain-of-another-product", under_other, *reasons)
    # Nothing is known of such a report's product but its chain, which is not to be believed here: so it is
    # not malformed either, though its TCB has reserved bytes set in that product's layout.
    book.untrusted("version-2-chain-of-another-product", both(saying(**VERSION_2), under_other), *reasons)
    cpuids = {
        Product.MILAN: [Cpuid(0x19, 0x10, 0), Cpuid(0x19, 0xA0, 0)],
        Product.TURIN: [Cpuid(0x1A, 0x12, 0)],
    }[layout.product]
    unknown = (Cpuid(0x19, 0x20, 0), Cpuid(0x19, 0xB0, 0), Cpuid(0x17, 0x31, 0), Cpuid(0, 0, 0))
    for cpuid in [*cpuids, *book.some_of(*unknown)]:
        book.untrusted(f"cpuid-{cpuid.family:#x}-{cpuid.model:#x}", saying(cpuid=cpuid), "product")
    if layout.is_turin:
        # In the layout of the product that it names, the TCB has reserved bytes set.
        book.malformed("cpuid-of-milan", saying(cpuid=Cpuid(0x19, 0x01, 1)), "tcb-reserved")
    else:
        book.malformed("cpuid-of-turin", saying(cpuid=Cpuid(0x1A, 0x02, 1)), "tcb-reserved")


def _authority_bits(book: Book) -> None:
    changes = {
        "is-no-ca": (BASIC_CONSTRAINTS, [b"\x30\x00"]),
        "has-no-basic-constraints": (BASIC_CONSTRAINTS, []),
        "has-two-basic-constraints": (BASIC_CONSTRAINTS, [_CA, _CA]),
        "signs-lists-only": (KEY_USAGE, [bytes.fromhex("03020102")]),
        "signs-data-only": (KEY_USAGE, [bytes.fromhex("03020780")]),
        "has-no-key-usage": (KEY_USAGE, []),
    }
    for label, title in (("authority", "authority"), ("ark", "root")):
        for name, (oid, values) in book.some(changes).items():
            book.untrusted(f"{title}-{name}", extension(label, oid, *values), "authority-bits")


def _keys(book: Book) -> None:
    for curve in book.some_of(ec.SECP256R1, ec.BrainpoolP384R1):
        key = ec_key("of another curve", curve)
        book.untrusted(
            f"leaf-key-on-{curve.__name__.lower()}",
            partial(Draft.leaf_key, key=key),
            "leaf-key",
            "report-signature",
        )
    book.untrusted(
        "leaf-key-of-rsa",
        certificate("leaf", public_key=spki_of(rsa_key("impostor-ask"))),
        "leaf-key",
        "report-signature",
    )
    book.untrusted("leaf-is-a-ca", extension("leaf", BASIC_CONSTRAINTS, _CA), "leaf-key")

    def another_key(draft: Draft) -> Draft:
        return replace(draft.leaf_key(ec_key("forger")), report_key=draft.report_key)

    book.untrusted("leaf-for-another-key", another_key, "report-signature")

    def issued_by(key: WorthlessKey) -> Callable[[Draft], Draft]:
        return both(certificate("authority", public_key=spki_of(key)), certificate("leaf", by=key))

    # AMD's have 4096 bits and the exponent 65537; weaker ones are nobody's.
    book.untrusted("authority-key-of-1024-bits", issued_by(rsa_key("short")), "leaf-signature")
    book.untrusted("authority-key-of-a-small-exponent", issued_by(_small_exponent()), "leaf-signature")


def _small_exponent() -> WorthlessKey:
    key = rsa_key("impostor-ask")
    e = next(each for each in range(3, 65537, 2) if gcd(each, (key.p - 1) * (key.q - 1)) == 1)
    return replace(key, e=e)


def _missing(book: Book) -> None:
    vcek = book.layout.is_vcek
    # Not proof against the guest: what is missing may be had (503). A VLEK can only come from the host.
    no_leaf = untrusted("endorsement-certificate", over_http=UNAVAILABLE if vcek else None)
    book.add("without-certificates", lambda draft: replace(draft, sent=()), no_leaf)
    book.add("without-leaf", lambda draft: replace(draft, sent=("authority", "ark")), no_leaf)
    no_authority = untrusted(*NO_CHAIN, over_http=UNAVAILABLE)
    book.add("without-authority", lambda draft: replace(draft, sent=("leaf", "ark")), no_authority)
    book.add("leaf-alone", lambda draft: replace(draft, sent=("leaf",)), no_authority)
    no_root = untrusted(*NO_ROOT, over_http=UNAVAILABLE)
    book.add("without-root", lambda draft: replace(draft, sent=("leaf", "authority")), no_root)
