"""Certificates under names that are not theirs. AMD's common names say what a key may be used for."""

from collections.abc import Callable

from cryptography import x509

from kms.simulator.authorities import Role
from kms.simulator.certificates import simulation_name
from tests.golden.forged.draft import Draft
from tests.golden.forged.genuine import common_name, line_role
from tests.golden.forged.recipes import NO_CHAIN, NO_ROOT, UNAVAILABLE, Book, both, certificate, untrusted


def forged_names(book: Book) -> None:
    """Add them."""
    layout = book.layout
    role, other = line_role(layout), layout.other_product
    other_role = Role.ASVK if layout.is_vcek else Role.ASK
    missing = untrusted("endorsement-certificate", over_http=UNAVAILABLE if layout.is_vcek else None)
    kind, other_kind = ("SEV-VCEK", "SEV-VLEK") if layout.is_vcek else ("SEV-VLEK", "SEV-VCEK")
    leaf_names = {
        "as-the-other-kind": simulation_name(other_kind),
        "without-sev": simulation_name(kind.removeprefix("SEV-")),
        "with-more": simulation_name(f"{kind}2"),
        "lower-case": simulation_name(kind.lower()),
        "nothing": _nameless(),
        "twice": _named_twice(kind),
    }
    for title, name in book.some(leaf_names).items():
        book.add(f"leaf-named-{title}", certificate("leaf", subject=name), missing)

    def authority_named(name: bytes) -> Callable[[Draft], Draft]:
        return both(certificate("authority", subject=name), certificate("leaf", issuer=name))

    def root_named(name: bytes) -> Callable[[Draft], Draft]:
        return both(
            certificate("ark", subject=name, issuer=name),
            certificate("authority", issuer=name),
        )

    names = {
        "for-another-product": common_name(layout, role, other),
        "for-the-other-kind": common_name(layout, other_role),
        "in-lower-case": simulation_name(role.common_name(layout.product).lower()),
        "nothing": _nameless(),
    }
    for title, name in book.some(names).items():
        book.untrusted(f"authority-named-{title}", authority_named(name), "chain-names")
    roots = {
        "for-another-product": common_name(layout, Role.ARK, other),
        "as-an-authority": common_name(layout, other_role),
        "nothing": _nameless(),
    }
    for title, name in book.some(roots).items():
        book.untrusted(f"root-named-{title}", root_named(name), "chain-names")
    elsewhere = simulation_name("Somebody else")
    book.untrusted("root-issued-by-another-name", certificate("ark", issuer=elsewhere), "chain-names")
    book.untrusted("authority-issued-by-another-name", certificate("authority", issuer=elsewhere), *NO_ROOT)
    # The same common name in another organisation is another issuer.
    namesake = _with_organisation(common_name(layout, role), "Somebody else")
    book.untrusted("leaf-issued-by-a-namesake", certificate("leaf", issuer=namesake), *NO_CHAIN)


def _nameless() -> bytes:
    organisation = x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Attested KMS simulator")
    return x509.Name([organisation]).public_bytes()


def _named_twice(name: str) -> bytes:
    once = x509.Name.from_bytes(simulation_name(name))
    return x509.Name([*once, x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]).public_bytes()


def _with_organisation(name: bytes, organisation: str) -> bytes:
    # Of the same length, so that nothing else in the DER differs.
    genuine = b"Attested KMS simulator"
    return name.replace(genuine, organisation.ljust(len(genuine), ".").encode())
