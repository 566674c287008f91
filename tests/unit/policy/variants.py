"""Many small policies that differ in a member or a few, and many guests that differ in an attribute or a few.

For properties of pairs of policies: whatever any member of any document may say, some variant says, and some
guest tells it from what the others say.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from itertools import combinations
from typing import Any, Final, NamedTuple

from kms.boot_info import BootInfo
from kms.identifiers import AppId, ChipId, ComposeHash, KeyDigest, Measurement
from kms.keys.names import Scope
from kms.measurement.images import Binding
from kms.measurement.launch import LaunchDescription, Machine, launch_measurement, os_image_hash
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.policy.compiled import Policy
from kms.policy.decision import Allowed, Ask, Context, decide
from kms.policy.diff_side import Side
from kms.policy.revision import Revision
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersions
from tests.unit.policy.samples import (
    ALIAS_CHECK_COMPLETE,
    APP_ID,
    BOOT_INFO,
    CHIP,
    COMPOSE,
    CONTEXT,
    SMT_AND_RESERVED_ONE,
    Document,
    documents,
    key,
    tcb,
)

APP_B: Final = AppId(b"\x0b" * 20)
COMPOSE_B: Final = ComposeHash(b"\xcb" * 32)
CHIP_B, CHIP_C = ChipId(b"\x0b" * 64), ChipId(b"\x0c" * 64)
EARLY, LATE = "2026-11-22T13:00:00Z", "2026-11-22T15:00:00Z"  # after the guests' time, and between two others
EMPTY_INITRD: Final = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing
_TEMPLATE: Final = "app={app_id} compose={compose_hash}"

_BASE: Final = documents()
_PLAIN: Final = _BASE["image"]["launch"]
LAUNCHES: Final[dict[str, Document]] = {
    "plain": _PLAIN,
    "bare": {name: value for name, value in _PLAIN.items() if name != "initrd"},
    "empty": {**_PLAIN, "initrd": EMPTY_INITRD},  # measures as the one before
    "template": {**_PLAIN, "cmdline": _TEMPLATE},
    # Measures as the one before where its command line is filled in for this app.
    "filled": {**_PLAIN, "cmdline": f"app={APP_ID.hex()} compose={COMPOSE.hex()}"},
}
HASHES: Final = {name: os_image_hash(launch) for name, launch in LAUNCHES.items()}
_DESCRIPTIONS: Final = {name: LaunchDescription.parse(launch) for name, launch in LAUNCHES.items()}
_MILAN: Final = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
_GENOA: Final = {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84}
_EXPIRIES: Final = [None, EARLY, LATE]

# By document, by member: what it may say; the first is what it says before any edit. None: it is left out.
MEMBERS: Final[Mapping[str, Mapping[str, list[Any]]]] = {
    "app": {
        "compose": [[COMPOSE.hex()], [COMPOSE.hex(), COMPOSE_B.hex()], [COMPOSE_B.hex()], [], "any"],
        "images": [
            ["os-1"],
            ["os-1", "os-1-large"],
            ["os-1-large"],
            ["os-1", HASHES["plain"].hex()],
            [HASHES["plain"].hex()],
            ["os-1", "os-2"],
            ["os-2", "os-2-empty"],
            ["os-2-empty"],
            ["os-2", HASHES["empty"].hex()],
            [HASHES["empty"].hex()],
            ["os-template", "os-filled"],
            ["os-filled"],
            ["os-template"],
            ["os-template", HASHES["filled"].hex()],
            [],
        ],
        "chips": [
            ["rack-7"],
            ["rack-7", "rack-8"],
            ["rack-8"],
            [CHIP.hex()],
            [CHIP.hex(), CHIP_B.hex()],
            ["rack-7", CHIP_C.hex()],
            [],
            "any",
        ],
        "tcb": ["fleet-2026q4", "other"],
        "guest": ["standard", None, "other"],
        "binding": [
            ["host-data"],
            ["host-data", "cmdline"],
            ["cmdline"],
            ["host-data", "dstack-mr-config"],
            [],
        ],
        "keys": [
            ["disk", "custom:db/*"],
            ["disk", "custom:db/main", "custom:db/a/*"],
            ["disk", "custom:*"],
            ["disk", "custom:db/main*"],
            ["disk", "custom:db/*", "custom:db/*@instance", "custom:db/main"],
            ["disk@chip", "disk@instance"],
            ["disk", "dstack:env"],
            [],
        ],
        "forbid_advisories": [[], ["AMD-SB-3015"], ["AMD-SB-3015", "AMD-SB-3016"]],
        "epoch": [None, 3, 4],
        "compat": ["dstack", None],
        "expires_at": _EXPIRIES,
        "description": ["one", "another"],
    },
    # Listed by no other app; by another id under the same name it is another app.
    "app-b": {"id": [APP_B.hex(), "0c" * 20], "compose": [[COMPOSE.hex()], "any"]},
    "image": {
        "vcpus": [
            {"min": 1, "max": 4},
            {"min": 2, "max": 3},
            {"min": 2, "max": 4},
            {"min": 1, "max": 8},
            None,
        ],
        "vcpu_types": [["EPYC-v4"], ["EPYC-v3"], ["EPYC-v4", "EPYC-Milan"], ["EPYC-Milan"], None],
        "guest_features": [["0x1"], ["0x1", "0x21"], ["0x21"]],
        "enforces": [["host-data"], ["host-data", "dstack-mr-config"], ["dstack-mr-config"]],
        "launch": ["plain", "bare"],
        "expires_at": _EXPIRIES,
    },
    "os-1-large": {
        "vcpus": [{"min": 2, "max": 8}, {"min": 1, "max": 4}],
        "enforces": [["host-data", "dstack-mr-config"], ["host-data"]],
        "expires_at": _EXPIRIES,
    },
    "os-2": {
        "vcpus": [{"min": 1, "max": 8}, {"min": 1, "max": 2}],
        "enforces": [["host-data"], ["host-data", "dstack-mr-config"]],
        "expires_at": _EXPIRIES,
    },
    "os-2-empty": {"enforces": [["host-data", "dstack-mr-config"], ["host-data"]]},
    "os-template": {"enforces": [["cmdline", "host-data"], ["cmdline"]]},
    "os-filled": {"enforces": [["host-data", "dstack-mr-config"], ["host-data"]]},
    "tcb": {
        "products": [
            {"genoa": _GENOA, "genoa/0xa0": {**_GENOA, "microcode": 25}},
            {"genoa": _GENOA},
            {"genoa": {**_GENOA, "microcode": 25}, "genoa/0xa0": _GENOA},
            {"genoa": {**_GENOA, "microcode": 25}},
            {"genoa": {**_GENOA, "microcode": 25}, "genoa/0x11": _GENOA, "genoa/0xa0": _GENOA},
            {"genoa": {**_GENOA, "microcode": 25}, "genoa/0xa0": _GENOA, "milan": _MILAN},
            {"genoa/0x11": {**_GENOA, "microcode": 25}, "genoa/0xa0": _GENOA},
            {"genoa/0x11": {**_GENOA, "microcode": 25}},
            {"genoa": {**_GENOA, "snp": 24, "microcode": 25}, "genoa/0x11": _GENOA, "milan": _MILAN},
            {"genoa": _GENOA, "genoa/0x11": {**_GENOA, "snp": 24}, "milan": _MILAN},
            {},
        ],
        "check": [["reported", "committed"], ["reported"], ["reported", "launch"]],
        "provisional_firmware": ["forbid", "allow"],
        "platform": [
            {"require": [], "forbid": []},
            {"require": ["alias-check-complete"], "forbid": []},
            {"require": [], "forbid": ["alias-check-complete", "smt"]},
            {"require": ["smt"], "forbid": []},
        ],
        "mitigations": [
            {"launch": "0x0", "current": "0x0"},
            {"launch": "0x1", "current": "0x2"},
            {"launch": "0x3", "current": "0x0"},
            {"launch": "0x4", "current": "0x4"},
        ],
        "expires_at": _EXPIRIES,
    },
    "guest": {
        "vmpl": [[0], [0, 1], [1], []],
        "report_versions": [[2, 3, 4, 5], [3, 4, 5], [2, 5]],
        "signers": [["vcek"], ["vcek", "vlek"], ["vlek"]],
        "csp": [[], ["cloud"], ["cloud", "sky"]],
        "debug": ["forbid", "allow"],
        "migration_agent": ["forbid", "allow"],
        "smt": ["allow", "forbid"],
        "single_socket": ["any", "require"],
        "firmware_minimum": ["1.51", "1.55.22", "1.55.23", "1.60", "0.99.99"],
        "guest_svn_minimum": [0, 1, 2],
        "id_key_digests": [["1d" * 48, "00" * 48], ["1d" * 48], "any", []],
        "author_key_digests": ["any", ["00" * 48]],
        "expires_at": _EXPIRIES,
    },
    "chips": {
        "chips": [[CHIP.hex()], [CHIP.hex(), CHIP_B.hex()], [CHIP_B.hex()]],
        "expires_at": _EXPIRIES,
    },
    "rack-8": {"chips": [[CHIP.hex(), CHIP_C.hex()], [CHIP.hex()]], "expires_at": [LATE, EARLY, None]},
    "revoked": {
        "chips": [[], [CHIP.hex()], [CHIP_B.hex()]],
        "measurements": [[], ["33" * 48]],
        "images": [
            [],
            ["os-1"],
            [HASHES["plain"].hex()],
            ["os-2"],
            [HASHES["bare"].hex()],
            ["os-filled"],
            ["os-template"],
            [HASHES["empty"].hex()],
        ],
        "apps": [[], [APP_ID.hex()]],
        "compose": [[], [COMPOSE_B.hex()]],
        "products": [[], ["milan"], ["genoa", "milan"]],
    },
    "more revoked": {"chips": [[], [CHIP.hex()]], "images": [[], ["os-1"], [HASHES["bare"].hex()]]},
}
ALWAYS: Final = frozenset({"tcb", "guest", "revoked", "app"})  # documents that every variant has
PRESENT: Final = "present"  # a member of the others, so to speak: whether the document is there
# What a document says beside its members.
_FIXED: Final[Mapping[str, Document]] = {
    "app": {"kind": "app", "id": APP_ID.hex(), "name": "payments"},
    "app-b": {**{k: v for k, v in _BASE["app"].items() if k not in {"tls", "epoch", "guest"}}, "name": "b",
              "images": [HASHES["filled"].hex()], "keys": ["disk"], "chips": "any"},
    "image": {"kind": "image", "name": "os-1"},
    "os-1-large": {"kind": "image", "name": "os-1-large", "launch": "plain"},
    "os-2": {"kind": "image", "name": "os-2", "launch": "bare"},
    "os-2-empty": {"kind": "image", "name": "os-2-empty", "launch": "empty"},
    "os-template": {"kind": "image", "name": "os-template", "launch": "template"},
    "os-filled": {"kind": "image", "name": "os-filled", "launch": "filled"},
    "tcb": {"kind": "tcb", "name": "fleet-2026q4"},
    "other tcb": {"kind": "tcb", "name": "other", "products": {"genoa": {**_GENOA, "microcode": 50}}},
    "guest": {"kind": "guest", "name": "standard"},
    "other guest": {"kind": "guest", "name": "other", "vmpl": [0, 1], "smt": "forbid"},
    "chips": {"kind": "chips", "name": "rack-7"},
    "rack-8": {"kind": "chips", "name": "rack-8"},
    "revoked": {"kind": "revoked", "name": "emergency"},
    "more revoked": {"kind": "revoked", "name": "more"},
}  # fmt: skip


class Edit(NamedTuple):
    """A member of a document, and which of its values (by place) it says."""

    document: str
    member: str
    choice: int


def every_edit() -> Iterator[Edit]:
    """Give every member with every value that it may have, the first included."""
    for document, members in MEMBERS.items():
        for member, values in members.items():
            yield from (Edit(document, member, index) for index in range(len(values)))
        if document not in ALWAYS:
            yield from (Edit(document, PRESENT, index) for index in range(2))


def says(document: str, member: str, value: Any) -> Edit:
    """Give the edit by which a member says this."""
    return Edit(document, member, MEMBERS[document][member].index(value))


def present(document: str) -> Edit:
    """Give the edit by which a document is there, as it is before any edit."""
    return Edit(document, PRESENT, 0)


def absent(document: str) -> Edit:
    """Give the edit by which a document is not there."""
    return Edit(document, PRESENT, 1)


@lru_cache(maxsize=4096)
def variant(edits: frozenset[Edit]) -> "Variant":
    """Give the policy of these edits; of several of one member, one counts.

    Lists keep only names of documents that are there.
    """
    return Variant(edits)


class Variant:
    """A policy as it was written, as the differences see it, and as it decides."""

    def __init__(self, edits: frozenset[Edit]) -> None:
        chosen = {(each.document, each.member): each.choice for each in sorted(edits)}
        values = {name: _document(name, chosen) for name in _FIXED if not chosen.get((name, PRESENT))}
        names = {(each["kind"], each["name"]) for each in values.values()}
        for each in values.values():
            for member, kind in (("images", "image"), ("chips", "chips")):
                if each["kind"] in {"app", "revoked"} and isinstance(each.get(member), list):
                    each[member] = [item for item in each[member] if len(item) >= 64 or (kind, item) in names]
        text = "\n---\n".join(json.dumps(each) for each in values.values())
        written = Revision.from_files({"policy.yaml": text.encode()}, development=True)
        # As a server loads it: documents in the order of their names.
        self.revision = Revision.from_canonical(written.canonical)
        self.policy = Policy(self.revision)
        self.side = Side.of(self.revision)


def _document(name: str, chosen: Mapping[tuple[str, str], int]) -> Document:
    document = dict(_FIXED[name])
    for member, values in MEMBERS.get(name, {}).items():
        value = values[chosen.get((name, member), 0)]
        if value is not None:
            document[member] = value
    if document["kind"] == "image":
        launch = document["launch"]
        document |= {"launch": LAUNCHES[launch], "os_image_hash": HASHES[launch].hex()}
    if document["kind"] == "app" and "compat" not in document:
        document["keys"] = [each for each in document["keys"] if not each.startswith("dstack:")]
    if document.get("guest_svn_minimum") == 0 and document.get("id_key_digests") == "any":
        document.pop("guest_svn_minimum")
    elif document.get("id_key_digests") == "any" and document.get("author_key_digests") == "any":
        document.pop("guest_svn_minimum", None)  # lint wants a key digest beside it
    return document


# By attribute of a guest: what it may show; the first is what the unedited policy allows. Some are not of
# BootInfo: `launch` and `image` make os_image_hash, image and measurement; `now`, `development`, `ask` and
# `enforces` are asked beside it.
ATTRIBUTES: Final[Mapping[str, list[Any]]] = {
    "now": ["2026-11-22T12:00:00Z", "2026-11-22T14:00:00Z", "2026-11-22T16:00:00Z"],
    "development": [False, True],
    "ask": [
        key("disk"),
        key("custom:db/main"),
        key("custom:db/main/x"),
        key("custom:db/b"),
        key("custom:db/a/b"),
        key("custom:x"),
        key("custom:db/main", Scope.INSTANCE),
        key("disk", Scope.INSTANCE),
        key("disk", Scope.CHIP),
        key("dstack:env"),
    ],
    "app_id": [APP_ID, APP_B, AppId(b"\x0c" * 20)],
    "compose_hash": [COMPOSE, COMPOSE_B],
    "binding": [Binding.HOST_DATA, Binding.CMDLINE, Binding.DSTACK_MR_CONFIG],
    "enforces": [frozenset(Binding), frozenset({Binding.HOST_DATA}), frozenset({Binding.CMDLINE})],
    "advisories": [(), ("AMD-SB-3015",), ("AMD-SB-3016",), None],
    "launch": list(LAUNCHES),
    "image": ["os-1", "os-1-large", "os-2", "os-2-empty", "os-template", "os-filled", None],
    "measurement": ["true", "other", "33" * 48],
    "vcpus": [2, 1, 4, 6, 100],
    "vcpu_type": ["EPYC-v4", "EPYC-Milan", "EPYC-Genoa"],
    "guest_features": [1, 0x21],
    "chip_id": [CHIP, CHIP_B, CHIP_C, None],
    "product": [Product.GENOA, Product.MILAN],
    "cpuid": [Cpuid(0x19, 0x11, 1), Cpuid(0x19, 0xA0, 2), Cpuid(0x19, 0x12, 0), Cpuid(0x19, 0x01, 1), None],
    "reported": [
        tcb(snp=24), tcb(), tcb(microcode=50), tcb(snp=24, microcode=50), tcb(snp=24, microcode=220),
    ],
    "committed": [None, tcb(microcode=50)],
    "launched": [None, tcb(microcode=50)],
    "platform_info": [PlatformInfo(0), PlatformInfo(ALIAS_CHECK_COMPLETE), PlatformInfo(1)],
    "launch_mitigations": [0, 1, 3, 4, 7, None],
    "current_mitigations": [0, 2, 4, 7, None],
    "report_version": [5, 2, 3],
    "signer": [Signer.VCEK, Signer.VLEK],
    "csp_id": [None, "cloud", "sky"],
    "vmpl": [0, 1],
    "guest_policy": [
        GuestPolicy.decode(SMT_AND_RESERVED_ONE | bits) for bits in (0, 1 << 18, 1 << 19, 1 << 20)
    ] + [GuestPolicy.decode(1 << 17)],
    "firmware": [
        FirmwareVersion(major=1, minor=55, build=22),
        FirmwareVersion(major=1, minor=55, build=30),
        FirmwareVersion(major=1, minor=52, build=99),
        FirmwareVersion(major=1, minor=50, build=0),
        FirmwareVersion(major=2, minor=0, build=0),
    ],
    "guest_svn": [0, 1, 2],
    "id_key_digest": [KeyDigest(bytes(48)), KeyDigest(b"\x1d" * 48), KeyDigest(b"\x2d" * 48)],
    "author_key_digest": [KeyDigest(bytes(48)), KeyDigest(b"\x2d" * 48)],
}  # fmt: skip
_LAUNCH: Final = (
    "binding",
    "enforces",
    "launch",
    "image",
    "measurement",
    "vcpus",
    "vcpu_type",
    "guest_features",
)
_PLATFORM: Final = (
    "product", "cpuid", "reported", "committed", "launched", "platform_info", "launch_mitigations",
    "current_mitigations", "firmware",
)  # fmt: skip
# What tells the values of one kind's members apart.
CONCERNED: Final[Mapping[str, tuple[str, ...]]] = {
    "app": (
        "now", "ask", "app_id", "compose_hash", "chip_id", "signer", "advisories", "vmpl", "reported",
        "binding", "enforces", "launch", "image", "vcpus",
    ),
    "image": ("now", *_LAUNCH),
    "tcb": ("now", *_PLATFORM),
    "guest": (
        "now", "development", "report_version", "signer", "csp_id", "vmpl", "guest_policy", "firmware",
        "guest_svn", "id_key_digest", "author_key_digest",
    ),
    "chips": ("now", "chip_id", "signer"),
    "revoked": ("app_id", "compose_hash", "chip_id", "product", *_LAUNCH),
}  # fmt: skip
Shown = Mapping[str, Any]


def guests_about(kind: str) -> Iterator[Shown]:
    """Give guests that differ from the allowed one in no, one or two of the attributes that a kind judges."""
    changes = [(name, value) for name in CONCERNED[kind] for value in ATTRIBUTES[name][1:]]
    yield {}
    for count in (1, 2):
        for chosen in combinations(changes, count):
            if len({name for name, _ in chosen}) == count:
                yield dict(chosen)


def allows(policy: Policy, shown: Shown) -> bool:
    """Say whether a policy allows a guest."""
    boot_info, ask, context = question(tuple(sorted(shown.items(), key=lambda item: item[0])))
    return isinstance(decide(policy, boot_info, ask, context), Allowed)


@lru_cache(maxsize=1 << 16)
def question(shown: tuple[tuple[str, Any], ...]) -> tuple[BootInfo, Ask, Context]:
    """Put together what a guest shows and how it is asked about."""
    each = {name: values[0] for name, values in ATTRIBUTES.items()} | dict(shown)
    reported = each.pop("reported")
    tcb_versions = TcbVersions(
        current=reported,
        reported=reported,
        committed=each.pop("committed") or reported,
        launch=each.pop("launched") or reported,
    )
    firmware = each.pop("firmware")
    ask, enforces, launch = each.pop("ask"), each.pop("enforces"), each.pop("launch")
    context = replace(
        CONTEXT,
        now=datetime.fromisoformat(each.pop("now")),
        development=each.pop("development"),
        enforces=enforces,
    )
    measurement = each.pop("measurement")
    if measurement == "true":
        measured = measurement_of(launch, each["vcpus"], each["vcpu_type"], each["guest_features"])
    elif measurement == "other":
        measured = measurement_of("bare", each["vcpus"], each["vcpu_type"], each["guest_features"])
    else:
        measured = Measurement.from_hex(measurement)
    boot_info = replace(
        BOOT_INFO,
        tcb=tcb_versions,
        current_firmware=firmware,
        committed_firmware=firmware,
        os_image_hash=HASHES[launch],
        measurement=measured,
        **each,
    )
    return boot_info, Ask((ask,)), context


@lru_cache(maxsize=1024)
def measurement_of(launch: str, vcpus: int, vcpu_type: str, features: int) -> Measurement:
    """Give what a guest of the first app shows, placeholders of the command line filled in."""
    description = _DESCRIPTIONS["filled" if launch == "template" else launch]
    return launch_measurement(description, Machine(vcpus, VCPU_TYPES[vcpu_type], features))


def may_be_shown(shown: Shown, before: Side, after: Side) -> bool:
    """Say whether a guest could be on an image of this name, where the name was revoked.

    A guest's image is named by the policy that judges it, after the document of its launch. So the name of a
    document that is gone, or that describes another launch, is nobody's; that the launch stays revoked by its
    hash is what counts.
    """
    name, launch = (shown.get(each, ATTRIBUTES[each][0]) for each in ("image", "launch"))
    if not any(name in each.images for each in before.revoked.values()):
        return True
    return name in after.images and after.images[name].image.os_image_hash == HASHES[launch]


def kind_of(document: str) -> str:
    """Give the kind of a document."""
    kind: str = _FIXED[document]["kind"]
    return kind
