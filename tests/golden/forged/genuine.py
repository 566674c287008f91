"""What every case of the corpus begins with: evidence that is genuine, of each layout and signer."""

from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms.simulator.authorities import Authority, Role, authority_certificate
from kms.simulator.certificates import Certificate, simulation_name
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.flags import Signer
from kms.snp.product import Product
from tests.golden.forged.draft import AT, DAY, Draft, Layout, Part
from tests.golden.forged.signing import signed
from tests.golden.forged.worthless_keys import WorthlessKey, ec_key, rsa_key

CSP_ID: Final = "Example Cloud"
OTHER_CSP_IDS: Final = ("x", "y" * 127)  # as short and as long as one may be
LAYOUTS: Final = tuple(
    Layout(product, signer) for product in (Product.MILAN, Product.TURIN) for signer in Signer
)
GENOA: Final = tuple(Layout(Product.GENOA, signer) for signer in Signer)
_MADE = AT - 30 * DAY


@dataclass(frozen=True, slots=True)
class Guest:
    """What a report says of its guest; the three are 48, 32 and 64 bytes."""

    measurement: bytes
    host_data: bytes
    report_data: bytes


def authority_key(product: Product, role: Role, *, owner: str | None = None) -> WorthlessKey:
    """Give the key of an ARK, ASK or ASVK; the impostor's are the same for every product."""
    return rsa_key(f"{owner or product.value}-{role.value}")


@cache
def authority(product: Product, role: Role, *, owner: str | None = None) -> Part:
    """Give the certificate of an ARK, ASK or ASVK, or of the impostor's hierarchy of the same names."""
    key, root = (authority_key(product, each, owner=owner) for each in (role, Role.ARK))
    return Part(says=authority_certificate(product, role, key.public, root.public, now=_MADE), by=root)


@cache
def hierarchy(product: Product) -> AmdHierarchy:
    """Give the whole hierarchy of a product, as the simulator works with it."""
    made = {
        role: Authority(
            signed(authority(product, role).says, authority_key(product, Role.ARK)),
            authority_key(product, role).private,
        )
        for role in Role
    }
    return AmdHierarchy(product, ark=made[Role.ARK], ask=made[Role.ASK], asvk=made[Role.ASVK])


@cache
def chip(layout: Layout) -> SimulatedChip:
    """Give the up-to-date chip of a layout."""
    made = SimulatedChip.typical(
        hierarchy(layout.product),
        chip_id=simulated_chip_id(layout.product, b"chip of the corpus"),
        now=AT - DAY,
    )
    return made if layout.is_vcek else replace(made, csp_id=CSP_ID)


def line_role(layout: Layout) -> Role:
    """Give who issues the leaves of a layout."""
    return Role.ASK if layout.is_vcek else Role.ASVK


def common_name(layout: Layout, role: Role, product: Product | None = None) -> bytes:
    """Give the DER Name of an authority of the layout's product, or of another."""
    return simulation_name(role.common_name(product or layout.product))


@cache
def leaf(layout: Layout) -> Certificate:
    """Give what the endorsement certificate says."""
    host = chip(layout)
    key = ec_key(layout.name).public_key()
    if layout.is_vcek:
        return host.hierarchy.vcek_certificate(
            key, host.reported_tcb, host.chip_id, not_before=AT - DAY, not_after=AT + 7 * 365 * DAY
        )
    return host.hierarchy.vlek_certificate(
        key, host.reported_tcb, CSP_ID, not_before=AT - DAY, not_after=AT + 365 * DAY
    )


def genuine(layout: Layout, guest: Guest) -> Draft:
    """Give the evidence that an honest guest on an honest host sends, still to be signed."""
    launched = chip(layout).launch(
        guest.measurement, host_data=guest.host_data, report_id=b"report id of the corpus".ljust(32, b".")
    )
    return Draft(
        layout=layout,
        fields=launched.fields(guest.report_data),
        report_key=ec_key(layout.name),
        parts={
            "leaf": Part(says=leaf(layout), by=authority_key(layout.product, line_role(layout))),
            "authority": authority(layout.product, line_role(layout)),
            "ark": authority(layout.product, Role.ARK),
        },
    )


def spki_of(key: WorthlessKey) -> bytes:
    """Give the DER SubjectPublicKeyInfo of an authority's key, as certificates hold it."""
    return key.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: WorthlessKey) -> bytes:
    """Give what pins a root: SHA-256 of its DER SubjectPublicKeyInfo, 32 bytes."""
    return sha256(spki_of(key)).digest()
