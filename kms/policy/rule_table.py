"""Which member of which document each check goes by. A test holds it to the checks that decisions make."""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Final, NamedTuple

from kms.boot_info import BootInfo
from kms.snp.tcb import TcbVersion, TcbVersions


class Ruled(NamedTuple):
    """A member that a check goes by: the kind of its document, and its name (``platform.require``).

    `default` is what it is taken for where it is left out, as one would write it; empty for a member that
    cannot be left out.
    """

    kind: str
    member: str
    default: str = ""


_NEVER: Final = "never"

MEMBERS: Final[Mapping[str, Ruled]] = {
    "app-listed": Ruled("app", "id"),
    "app-current": Ruled("app", "expires_at", _NEVER),
    "compose-listed": Ruled("app", "compose"),
    "binding-allowed": Ruled("app", "binding"),
    "advisories": Ruled("app", "forbid_advisories", "[]"),
    "advisories-attestable": Ruled("app", "forbid_advisories", "[]"),
    "image-listed": Ruled("app", "images"),
    "chip-listed": Ruled("app", "chips"),
    "key-allowed": Ruled("app", "keys"),
    "epoch": Ruled("app", "epoch", "the newest"),
    "image-current": Ruled("image", "expires_at", _NEVER),
    "binding-enforced": Ruled("image", "enforces"),
    "tcb-document-current": Ruled("tcb", "expires_at", _NEVER),
    "product-listed": Ruled("tcb", "products"),
    "firmware-not-provisional": Ruled("tcb", "provisional_firmware", "forbid"),
    "platform-required": Ruled("tcb", "platform.require", "[]"),
    "platform-forbidden": Ruled("tcb", "platform.forbid", "[]"),
    "mitigations-launch": Ruled("tcb", "mitigations.launch", "0x0"),
    "mitigations-current": Ruled("tcb", "mitigations.current", "0x0"),
    "guest-current": Ruled("guest", "expires_at", _NEVER),
    "vmpl": Ruled("guest", "vmpl", "[0]"),
    "report-version": Ruled("guest", "report_versions", "[2, 3, 4, 5]"),
    "signer-allowed": Ruled("guest", "signers", "[vcek]"),
    "csp": Ruled("guest", "csp", "[]"),
    "policy-debug": Ruled("guest", "debug", "forbid"),
    "policy-migration-agent": Ruled("guest", "migration_agent", "forbid"),
    "policy-smt": Ruled("guest", "smt", "allow"),
    "policy-single-socket": Ruled("guest", "single_socket", "any"),
    "policy-cxl": Ruled("guest", "cxl", "allow"),
    "policy-ciphertext-hiding": Ruled("guest", "ciphertext_hiding", "any"),
    "policy-aes-256-xts": Ruled("guest", "aes_256_xts", "any"),
    "policy-rapl-disabled": Ruled("guest", "rapl_disabled", "any"),
    "policy-page-swap-disabled": Ruled("guest", "page_swap_disabled", "any"),
    "firmware-current": Ruled("guest", "firmware_minimum", "1.51"),
    "firmware-committed": Ruled("guest", "firmware_minimum", "1.51"),
    "guest-svn": Ruled("guest", "guest_svn_minimum", "0"),
    "id-key": Ruled("guest", "id_key_digests", "any"),
    "author-key": Ruled("guest", "author_key_digests", "any"),
}

# By three members of the image.
MACHINE: Final = "machine-allowed"

# By `products` of the tcb document: the TCB version that each looks at.
LEVELS: Final[Mapping[str, Callable[[TcbVersions], TcbVersion]]] = {
    "tcb-reported": attrgetter("reported"),
    "tcb-committed": attrgetter("committed"),
    "tcb-current": attrgetter("current"),
    "tcb-launch": attrgetter("launch"),
}


class Revocable(NamedTuple):
    """A member of documents of kind revoked, and what the guest proved that it may hold."""

    member: str
    proven: Callable[[BootInfo], object]


REVOKED: Final[Mapping[str, Revocable]] = {
    "app-not-revoked": Revocable("apps", attrgetter("app_id")),
    "compose-not-revoked": Revocable("compose", attrgetter("compose_hash")),
    "measurement-not-revoked": Revocable("measurements", attrgetter("measurement")),
    "chip-not-revoked": Revocable("chips", attrgetter("chip_id")),
    "product-not-revoked": Revocable("products", attrgetter("product")),
    "image-not-revoked": Revocable("images", attrgetter("os_image_hash")),
}

# By the image documents together.
MEASUREMENT: Final = "measurement-known"

# What a guest must prove or ask for whatever the documents say.
WITHOUT_DOCUMENT: Final[Mapping[str, str]] = {
    "app-document": "HOST_DATA commits to the app document, or the request names app and compose",
    "app-binding": "an app document, or the measured command line, names the app",
    "app-claim": "the app that the request claims is the one that is bound",
    "document-agrees": "an app document beside another binding names the same app and compose",
    "document-kms-identity": "an app document names this KMS or none",
    "keys-asked": "at least one key is asked for",
    "key-derivable": "the guest proves the instance or chip of the key; keys of dstack want ids of 20 bytes",
}
