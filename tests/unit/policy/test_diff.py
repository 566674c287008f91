"""What operators are told of a change: one edit at a time, its words and what it does."""

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pytest

from kms.measurement.launch import os_image_hash
from kms.policy.diff import Difference, Effect, differences, intent_of
from kms.policy.history import Intent
from kms.policy.revision import Revision
from tests.unit.policy.samples import CHIP, HASH_ALONE, IMAGE_HASH, Document, documents

Documents: TypeAlias = dict[str, Document]
Edit: TypeAlias = Callable[[Documents], object]
Told: TypeAlias = tuple[str, str | None, str, str]

WIDENS, NARROWS, NEITHER = "widens", "narrows", "neither"
APP, IMAGE, TCB, GUEST = "app payments", "image demo-os-1", "tcb fleet-2026q4", "guest standard"
CHIPS, REVOKED = "chips rack-7", "revoked emergency"
GENOA = {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84}
GENOA_TEXT = "bootloader 10, tee 0, snp 23, microcode 84"
OTHER_CHIP = "38d1" * 32
HASH, HASH_ALONE_TEXT = IMAGE_HASH.hex()[:16] + "…", HASH_ALONE.hex()[:16] + "…"


def revision(values: Iterable[Document]) -> Revision:
    text = "\n---\n".join(json.dumps(each) for each in values)
    return Revision.from_files({"policy.yaml": text.encode()}, development=True)


def told(old: Documents | None, new: Documents) -> list[Told]:
    before = None if old is None else revision(old.values())
    found = differences(before, revision(new.values()))
    return [(each.document, each.member, each.effect.value, each.text) for each in found]


def member(kind: str, name: str, value: Any) -> Edit:
    return lambda values: values[kind].update({name: value})


def without(kind: str, name: str) -> Edit:
    return lambda values: values[kind].pop(name)


def product(name: str, levels: dict[str, int] | None) -> Edit:
    def edit(values: Documents) -> None:
        values["tcb"]["products"].pop(name, None)
        if levels is not None:
            values["tcb"]["products"][name] = levels

    return edit


def both(*edits: Edit) -> Edit:
    return lambda values: [edit(values) for edit in edits]


def add(document: Document) -> Edit:
    return lambda values: values.update({f"{document['kind']} {document['name']}": document})


def second(kind: str, name: str, **changes: Any) -> Document:
    return {**documents()[kind], "name": name, **changes}


def relaunched(name: str, **launch_changes: Any) -> Document:
    launch = {**documents()["image"]["launch"], **launch_changes}
    return second("image", name, launch=launch, os_image_hash=os_image_hash(launch).hex())


# An edit of the sample policy, and what is told of it. Undoing the edit is told by the second list: what
# widens one way must be told as something else on the way back.
EDITS: list[tuple[str, Edit, list[Told], list[Told]]] = [
    (
        "description",
        member("app", "description", "something else"),
        [(APP, "description", NEITHER, "description changed")],
        [(APP, "description", NEITHER, "description changed")],
    ),
    (
        "owner",
        without("app", "owner"),
        [(APP, "owner", NEITHER, "owner payments@example.com → nobody")],
        [(APP, "owner", NEITHER, "owner nobody → payments@example.com")],
    ),
    (
        "name of an app",
        member("app", "name", "payouts"),
        [("app payouts", "name", NEITHER, "name payments → payouts")],
        [(APP, "name", NEITHER, "name payouts → payments")],
    ),
    (
        "expiry",
        member("tcb", "expires_at", "2027-01-01T00:00:00Z"),
        [(TCB, "expires_at", NARROWS, "expires never → 2027-01-01T00:00:00Z")],
        [(TCB, "expires_at", WIDENS, "expires 2027-01-01T00:00:00Z → never")],
    ),
    (
        "a later expiry",
        member("chips", "expires_at", "2100-01-01T00:00:00.5Z"),
        [(CHIPS, "expires_at", WIDENS, "expires 2099-12-31T23:59:59Z → 2100-01-01T00:00:00.500000Z")],
        [(CHIPS, "expires_at", NARROWS, "expires 2100-01-01T00:00:00.500000Z → 2099-12-31T23:59:59Z")],
    ),
    (
        "compose",
        member("app", "compose", ["2f" * 32]),
        [
            (APP, "compose", WIDENS, "compose 2f2f2f2f2f2f2f2f… added"),
            (APP, "compose", NARROWS, "compose c0c0c0c0c0c0c0c0… removed"),
        ],
        [
            (APP, "compose", NARROWS, "compose 2f2f2f2f2f2f2f2f… removed"),
            (APP, "compose", WIDENS, "compose c0c0c0c0c0c0c0c0… added"),
        ],
    ),
    (
        "any compose",
        member("app", "compose", "any"),
        [(APP, "compose", WIDENS, "compose hashes: listed only → any")],
        [(APP, "compose", NARROWS, "compose hashes: any → listed only")],
    ),
    (
        "a chip",
        member("app", "chips", ["rack-7", OTHER_CHIP]),
        [(APP, "chips", WIDENS, "chip 38d138d138d138d1… added")],
        [(APP, "chips", NARROWS, "chip 38d138d138d138d1… removed")],
    ),
    (
        "a chip that its set had until the set expires",
        member("app", "chips", ["rack-7", CHIP.hex()]),
        [(APP, "chips", WIDENS, "chip c7c7c7c7c7c7c7c7… added")],
        [(APP, "chips", NARROWS, "chip c7c7c7c7c7c7c7c7… removed")],
    ),
    (
        "any chip",
        member("app", "chips", "any"),
        [(APP, "chips", WIDENS, "chips: listed only → any")],
        [(APP, "chips", NARROWS, "chips: any → listed only")],
    ),
    (
        "another name for the same set of chips",
        both(add(second("chips", "rack-8")), member("app", "chips", ["rack-8"])),
        [
            (APP, "chips", NEITHER, "set of chips rack-7 removed"),
            (APP, "chips", NEITHER, "set of chips rack-8 added"),
            ("chips rack-8", None, NEITHER, "added"),
        ],
        [
            (APP, "chips", NEITHER, "set of chips rack-7 added"),
            (APP, "chips", NEITHER, "set of chips rack-8 removed"),
            ("chips rack-8", None, NEITHER, "removed"),
        ],
    ),
    (
        "a set of chips that lasts longer",
        both(
            add(second("chips", "rack-8", expires_at="2100-01-01T00:00:00Z")),
            member("app", "chips", ["rack-7", "rack-8"]),
        ),
        [
            (APP, "chips", WIDENS, "set of chips rack-8 added"),
            ("chips rack-8", None, NEITHER, "added"),
        ],
        [
            (APP, "chips", NARROWS, "set of chips rack-8 removed"),
            ("chips rack-8", None, NEITHER, "removed"),
        ],
    ),
    (
        "a chip of a set",
        member("chips", "chips", [CHIP.hex(), OTHER_CHIP]),
        [(CHIPS, "chips", WIDENS, "chip 38d138d138d138d1… added")],
        [(CHIPS, "chips", NARROWS, "chip 38d138d138d138d1… removed")],
    ),
    (
        "many chips of a set",
        member("chips", "chips", [CHIP.hex(), *(f"{each:04x}" * 32 for each in range(1, 1205))]),
        [
            (
                CHIPS,
                "chips",
                WIDENS,
                "1,204 chips added: 0001000100010001…, 0002000200020002…, 0003000300030003… and 1,201 more",
            )
        ],
        [
            (
                CHIPS,
                "chips",
                NARROWS,
                "1,204 chips removed: 0001000100010001…, 0002000200020002…, 0003000300030003… and 1,201 more",
            )
        ],
    ),
    (
        "binding",
        member("app", "binding", ["host-data", "cmdline", "dstack-mr-config"]),
        [(APP, "binding", WIDENS, "binding dstack-mr-config added")],
        [(APP, "binding", NARROWS, "binding dstack-mr-config removed")],
    ),
    (
        "a key of another scope",
        member(
            "app", "keys", ["disk", "env", "signing", "tls", "custom:db/*", "disk@instance", "dstack:disk"]
        ),
        [(APP, "keys", NARROWS, "key disk@chip removed")],
        [(APP, "keys", WIDENS, "key disk@chip added")],
    ),
    (
        "keys that a pattern covers",
        member(
            "app",
            "keys",
            [
                "disk",
                "env",
                "signing",
                "tls",
                "custom:db/*",
                "custom:db/a",
                "custom:db/a/*",
                "disk@instance",
                "disk@chip",
                "dstack:disk@instance",
            ],
        ),
        [
            (APP, "keys", NEITHER, "key custom:db/a added"),
            (APP, "keys", NEITHER, "key custom:db/a/* added"),
        ],
        [
            (APP, "keys", NEITHER, "key custom:db/a removed"),
            (APP, "keys", NEITHER, "key custom:db/a/* removed"),
        ],
    ),
    (
        "a pattern of another scope covers nothing",
        member(
            "app",
            "keys",
            [
                "disk",
                "env",
                "signing",
                "tls",
                "custom:db*",
                "custom:db/a@chip",
                "disk@instance",
                "disk@chip",
                "dstack:disk",
            ],
        ),
        [
            (APP, "keys", WIDENS, "key custom:db* added"),
            (APP, "keys", NEITHER, "key custom:db/* removed"),
            (APP, "keys", WIDENS, "key custom:db/a@chip added"),
        ],
        [
            (APP, "keys", NARROWS, "key custom:db* removed"),
            (APP, "keys", NEITHER, "key custom:db/* added"),
            (APP, "keys", NARROWS, "key custom:db/a@chip removed"),
        ],
    ),
    (
        "forbidden bulletins",
        member("app", "forbid_advisories", ["AMD-SB-3016"]),
        [
            (APP, "forbid_advisories", WIDENS, "forbidden bulletin AMD-SB-3015 removed"),
            (APP, "forbid_advisories", NARROWS, "forbidden bulletin AMD-SB-3016 added"),
        ],
        [
            (APP, "forbid_advisories", NARROWS, "forbidden bulletin AMD-SB-3015 added"),
            (APP, "forbid_advisories", WIDENS, "forbidden bulletin AMD-SB-3016 removed"),
        ],
    ),
    (
        "epoch",
        without("app", "epoch"),
        [(APP, "epoch", WIDENS, "epoch 3 → the newest")],
        [(APP, "epoch", WIDENS, "epoch the newest → 3")],
    ),
    (
        "tls",
        member("app", "tls", {"names": ["payments.internal", "pay.example.com"], "days": 6}),
        [
            (APP, "tls", WIDENS, "TLS name pay.example.com added"),
            (APP, "tls", NARROWS, "days of TLS certificates 7 → 6"),
        ],
        [
            (APP, "tls", NARROWS, "TLS name pay.example.com removed"),
            (APP, "tls", WIDENS, "days of TLS certificates 6 → 7"),
        ],
    ),
    (
        "compatibility, which gives keys of another KMS",
        both(
            without("app", "compat"),
            member(
                "app", "keys", ["disk", "env", "signing", "tls", "custom:db/*", "disk@instance", "disk@chip"]
            ),
        ),
        [
            (APP, "keys", NARROWS, "key dstack:disk removed"),
            (APP, "compat", NARROWS, "compatibility dstack → none"),
        ],
        [
            (APP, "keys", WIDENS, "key dstack:disk added"),
            (APP, "compat", WIDENS, "compatibility none → dstack"),
        ],
    ),
    (
        "the guest document, for one that says the same",
        without("app", "guest"),
        [(APP, "guest", NEITHER, "guest document standard → strict")],
        [(APP, "guest", NEITHER, "guest document strict → standard")],
    ),
    (
        "the guest document, for one that says something else",
        both(
            add(
                second(
                    "guest",
                    "lax",
                    vmpl=[0, 1],
                    cxl="forbid",
                    expires_at="2027-01-01T00:00:00Z",
                    guest_svn_minimum=2,
                    id_key_digests=["1d" * 48],
                )
            ),
            member("app", "guest", "lax"),
        ),
        [
            (
                APP,
                "guest",
                WIDENS,
                (
                    "guest document standard → lax: VMPL 1 added; expires never → 2027-01-01T00:00:00Z;"
                    " cxl: allow → forbid; and 2 more"
                ),
            ),
            ("guest lax", None, NEITHER, "added"),
        ],
        [
            (
                APP,
                "guest",
                WIDENS,
                (
                    "guest document lax → standard: expires 2027-01-01T00:00:00Z → never;"
                    " cxl: forbid → allow; minimum guest SVN 2 → 0; and 2 more"
                ),
            ),
            ("guest lax", None, NEITHER, "removed"),
        ],
    ),
    (
        "the tcb document, for a higher one",
        both(
            add(second("tcb", "high", products={"genoa": {**GENOA, "microcode": 99}})),
            member("app", "tcb", "high"),
        ),
        [
            (
                APP,
                "tcb",
                NARROWS,
                (
                    "tcb document fleet-2026q4 → high:"
                    " milan removed: bootloader 4, tee 0, snp 24, microcode 219;"
                    " minimum microcode of genoa 84 → 99;"
                    " genoa/0xa0 removed: bootloader 10, tee 0, snp 23, microcode 25;"
                    " as genoa now: bootloader 10, tee 0, snp 23, microcode 99; and 1 more"
                ),
            ),
            ("tcb high", None, NEITHER, "added"),
        ],
        [
            (
                APP,
                "tcb",
                WIDENS,
                (
                    "tcb document high → fleet-2026q4:"
                    " milan added: bootloader 4, tee 0, snp 24, microcode 219;"
                    " minimum microcode of genoa 99 → 84;"
                    " genoa/0xa0 added: bootloader 10, tee 0, snp 23, microcode 25; and 1 more"
                ),
            ),
            ("tcb high", None, NEITHER, "removed"),
        ],
    ),
    (
        "an image",
        member("app", "images", ["demo-os-1"]),
        [(APP, "images", NARROWS, f"image {HASH_ALONE_TEXT} removed")],
        [(APP, "images", WIDENS, f"image {HASH_ALONE_TEXT} added")],
    ),
    (
        "an image by its hash instead of its name",
        member("app", "images", [IMAGE_HASH.hex(), HASH_ALONE.hex()]),
        [
            (APP, "images", NEITHER, f"image {HASH} added"),
            (APP, "images", NEITHER, "image demo-os-1 removed"),
        ],
        [
            (APP, "images", NEITHER, f"image {HASH} removed"),
            (APP, "images", NEITHER, "image demo-os-1 added"),
        ],
    ),
    (
        "machines of an image",
        member("image", "vcpus", {"min": 1, "max": 65}),
        [(IMAGE, "vcpus", WIDENS, "vCPUs 1 to 64 → 1 to 65")],
        [(IMAGE, "vcpus", NARROWS, "vCPUs 1 to 65 → 1 to 64")],
    ),
    (
        "vCPU types, which count by signature",
        member("image", "vcpu_types", ["EPYC-v3", "EPYC-Milan-v1", "EPYC-Genoa"]),
        [
            (IMAGE, "vcpu_types", WIDENS, "vCPU type EPYC-Genoa added"),
            (IMAGE, "vcpu_types", NEITHER, "vCPU type EPYC-Milan removed"),
            (IMAGE, "vcpu_types", NEITHER, "vCPU type EPYC-Milan-v1 added"),
            (IMAGE, "vcpu_types", NEITHER, "vCPU type EPYC-v3 added"),
            (IMAGE, "vcpu_types", NEITHER, "vCPU type EPYC-v4 removed"),
        ],
        [
            (IMAGE, "vcpu_types", NARROWS, "vCPU type EPYC-Genoa removed"),
            (IMAGE, "vcpu_types", NEITHER, "vCPU type EPYC-Milan added"),
            (IMAGE, "vcpu_types", NEITHER, "vCPU type EPYC-Milan-v1 removed"),
            (IMAGE, "vcpu_types", NEITHER, "vCPU type EPYC-v3 removed"),
            (IMAGE, "vcpu_types", NEITHER, "vCPU type EPYC-v4 added"),
        ],
    ),
    (
        "guest features",
        member("image", "guest_features", ["0x1", "0x21"]),
        [(IMAGE, "guest_features", WIDENS, "guest features 0x21 added")],
        [(IMAGE, "guest_features", NARROWS, "guest features 0x21 removed")],
    ),
    (
        "what an image enforces",
        member("image", "enforces", ["host-data", "dstack-mr-config"]),
        [(IMAGE, "enforces", WIDENS, "enforced binding dstack-mr-config added")],
        [(IMAGE, "enforces", NARROWS, "enforced binding dstack-mr-config removed")],
    ),
    (
        "an image that nobody lists",
        add(second("image", "demo-os-2")),
        [("image demo-os-2", None, NEITHER, "added")],
        [("image demo-os-2", None, NEITHER, "removed")],
    ),
    (
        "minimum microcode",
        product("milan", {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 213}),
        [(TCB, "products", WIDENS, "minimum microcode of milan 219 → 213")],
        [(TCB, "products", NARROWS, "minimum microcode of milan 213 → 219")],
    ),
    (
        "a product",
        product("turin", None),
        [(TCB, "products", NARROWS, "turin removed: fmc 1, bootloader 1, tee 1, snp 4, microcode 81")],
        [(TCB, "products", WIDENS, "turin added: fmc 1, bootloader 1, tee 1, snp 4, microcode 81")],
    ),
    (
        "an exact model that is lower than its line",
        product("genoa/0xa0", None),
        [
            (
                TCB,
                "products",
                NARROWS,
                f"genoa/0xa0 removed: {GENOA_TEXT[:-2]}25; as genoa now: {GENOA_TEXT}",
            )
        ],
        [(TCB, "products", WIDENS, f"genoa/0xa0 added: {GENOA_TEXT[:-2]}25")],
    ),
    (
        "an exact model that is not lower than its line",
        product("genoa/0x11", {**GENOA, "snp": 24}),
        [(TCB, "products", NARROWS, "genoa/0x11 added: bootloader 10, tee 0, snp 24, microcode 84")],
        [
            (
                TCB,
                "products",
                WIDENS,
                f"genoa/0x11 removed: bootloader 10, tee 0, snp 24, microcode 84; as genoa now: {GENOA_TEXT}",
            )
        ],
    ),
    (
        "a line above its models, which reports of version 2 had to reach",
        product("genoa", None),
        [
            (TCB, "products", NARROWS, f"genoa removed: {GENOA_TEXT}"),
            (TCB, "products", WIDENS, "minimum microcode of genoa in reports of version 2 84 → 25"),
        ],
        [(TCB, "products", WIDENS, f"genoa added: {GENOA_TEXT}")],
    ),
    (
        "checks of TCB versions",
        member("tcb", "check", ["reported", "launch"]),
        [
            (TCB, "check", WIDENS, "check of committed removed"),
            (TCB, "check", NARROWS, "check of launch added"),
        ],
        [
            (TCB, "check", NARROWS, "check of committed added"),
            (TCB, "check", WIDENS, "check of launch removed"),
        ],
    ),
    (
        "provisional firmware",
        member("tcb", "provisional_firmware", "allow"),
        [(TCB, "provisional_firmware", WIDENS, "provisional firmware: forbid → allow")],
        [(TCB, "provisional_firmware", NARROWS, "provisional firmware: allow → forbid")],
    ),
    (
        "platform bits",
        member("tcb", "platform", {"require": [], "forbid": ["smt"]}),
        [
            (TCB, "platform", NARROWS, "forbidden platform bit smt added"),
            (TCB, "platform", WIDENS, "required platform bit alias-check-complete removed"),
        ],
        [
            (TCB, "platform", WIDENS, "forbidden platform bit smt removed"),
            (TCB, "platform", NARROWS, "required platform bit alias-check-complete added"),
        ],
    ),
    (
        "mitigations",
        member("tcb", "mitigations", {"launch": "0x3", "current": "0x1"}),
        [
            (TCB, "mitigations", NARROWS, "current mitigations 0x0 → 0x1"),
            (TCB, "mitigations", NARROWS, "launch mitigations 0x0 → 0x3"),
        ],
        [
            (TCB, "mitigations", WIDENS, "current mitigations 0x1 → 0x0"),
            (TCB, "mitigations", WIDENS, "launch mitigations 0x3 → 0x0"),
        ],
    ),
    (
        "lists of a guest document",
        both(
            member("guest", "vmpl", [0, 1]),
            member("guest", "report_versions", [3, 4, 5]),
            member("guest", "signers", ["vcek", "vlek"]),
            member("guest", "csp", ["example-cloud"]),
        ),
        [
            (GUEST, "csp", WIDENS, "provider example-cloud added"),
            (GUEST, "report_versions", NARROWS, "report version 2 removed"),
            (GUEST, "signers", WIDENS, "signer vlek added"),
            (GUEST, "vmpl", WIDENS, "VMPL 1 added"),
        ],
        [
            (GUEST, "csp", NARROWS, "provider example-cloud removed"),
            (GUEST, "report_versions", WIDENS, "report version 2 added"),
            (GUEST, "signers", NARROWS, "signer vlek removed"),
            (GUEST, "vmpl", NARROWS, "VMPL 1 removed"),
        ],
    ),
    (
        "debug, which outside development mode denies whoever relies on it",
        member("guest", "debug", "allow"),
        [(GUEST, "debug", WIDENS, "guests in debug mode: forbid → allow")],
        [
            (
                GUEST,
                "debug",
                WIDENS,
                "guests in debug mode (outside development mode, `allow` denies everybody): allow → forbid",
            )
        ],
    ),
    (
        "bits of the guest's policy",
        both(member("guest", "smt", "forbid"), member("guest", "single_socket", "require")),
        [
            (GUEST, "single_socket", NARROWS, "single_socket: any → require"),
            (GUEST, "smt", NARROWS, "smt: allow → forbid"),
        ],
        [
            (GUEST, "single_socket", WIDENS, "single_socket: require → any"),
            (GUEST, "smt", WIDENS, "smt: forbid → allow"),
        ],
    ),
    (
        "firmware, which is one version number",
        member("guest", "firmware_minimum", "2.0.7"),
        [(GUEST, "firmware_minimum", NARROWS, "minimum firmware 1.51 → 2.0.7")],
        [(GUEST, "firmware_minimum", WIDENS, "minimum firmware 2.0.7 → 1.51")],
    ),
    (
        "key digests and SVN",
        both(member("guest", "author_key_digests", ["1d" * 48]), member("guest", "guest_svn_minimum", 4)),
        [
            (GUEST, "author_key_digests", NARROWS, "author keys: any → listed only"),
            (GUEST, "guest_svn_minimum", NARROWS, "minimum guest SVN 0 → 4"),
        ],
        [
            (GUEST, "author_key_digests", WIDENS, "author keys: listed only → any"),
            (GUEST, "guest_svn_minimum", WIDENS, "minimum guest SVN 4 → 0"),
        ],
    ),
    (
        "revocations",
        both(
            member("revoked", "chips", [OTHER_CHIP]),
            member("revoked", "images", ["demo-os-1", HASH_ALONE.hex()]),
            member("revoked", "products", ["milan"]),
            member("revoked", "apps", ["5a" * 20]),
            member("revoked", "compose", ["c5" * 32]),
            member("revoked", "measurements", ["3e" * 48]),
        ),
        [
            (REVOKED, "apps", NARROWS, f"app {'5a' * 20} revoked"),
            (REVOKED, "chips", NARROWS, "chip 38d138d138d138d1… revoked"),
            (REVOKED, "compose", NARROWS, "compose c5c5c5c5c5c5c5c5… revoked"),
            (REVOKED, "images", NARROWS, "image demo-os-1 revoked"),
            (REVOKED, "images", NARROWS, f"image {HASH_ALONE_TEXT} revoked"),
            (REVOKED, "measurements", NARROWS, "measurement 3e3e3e3e3e3e3e3e… revoked"),
            (REVOKED, "products", NARROWS, "product milan revoked"),
        ],
        [
            (REVOKED, "apps", WIDENS, f"app {'5a' * 20} no longer revoked"),
            (REVOKED, "chips", WIDENS, "chip 38d138d138d138d1… no longer revoked"),
            (REVOKED, "compose", WIDENS, "compose c5c5c5c5c5c5c5c5… no longer revoked"),
            (REVOKED, "images", WIDENS, "image demo-os-1 no longer revoked"),
            (REVOKED, "images", WIDENS, f"image {HASH_ALONE_TEXT} no longer revoked"),
            (REVOKED, "measurements", WIDENS, "measurement 3e3e3e3e3e3e3e3e… no longer revoked"),
            (REVOKED, "products", WIDENS, "product milan no longer revoked"),
        ],
    ),
    (
        "an app",
        add({**second("app", "payouts"), "id": "5a" * 20}),
        [("app payouts", None, WIDENS, f"added, id {'5a' * 20}")],
        [("app payouts", None, NARROWS, f"removed, id {'5a' * 20}")],
    ),
    (
        "another id under an app's name",
        member("app", "id", "5a" * 20),
        [
            (APP, None, WIDENS, f"added, id {'5a' * 20}"),
            (APP, None, NARROWS, "removed, id 86e59625be93207bc2351c4d1bba20037cec8e16"),
        ],
        [
            (APP, None, WIDENS, "added, id 86e59625be93207bc2351c4d1bba20037cec8e16"),
            (APP, None, NARROWS, f"removed, id {'5a' * 20}"),
        ],
    ),
]


@pytest.mark.parametrize(("edit", "there", "back"), [row[1:] for row in EDITS], ids=[row[0] for row in EDITS])
def test_an_edit_is_told_in_the_words_of_the_domain(edit: Edit, there: list[Told], back: list[Told]) -> None:
    old, new = documents(), documents()
    edit(new)
    assert told(old, new) == sorted(there, key=_place)
    assert told(new, old) == sorted(back, key=_place)


def _place(each: Told) -> tuple[str, str, str]:
    document, name, _, text = each
    return document, name or "", text


def test_nothing_is_told_of_the_same_documents_in_another_order_and_with_defaults_written_out() -> None:
    values = documents()
    values["app"]["compose"] = ["2f" * 32, "1f" * 32]
    other = dict(reversed(values.items()))
    other["app"] = {**values["app"], "compose": ["1f" * 32, "2f" * 32]}
    other["guest"] = {"kind": "guest", "name": "standard"}
    assert told(values, other) == []
    assert intent_of(()) is Intent.NARROW


def test_before_the_first_revision_nothing_is_allowed() -> None:
    assert told(None, documents()) == [
        (APP, None, WIDENS, "added, id 86e59625be93207bc2351c4d1bba20037cec8e16"),
        (CHIPS, None, NEITHER, "added"),
        (GUEST, None, NEITHER, "added"),
        (IMAGE, None, NEITHER, "added"),
        (REVOKED, None, NEITHER, "added"),
        (TCB, None, NEITHER, "added"),
    ]
    values = documents()
    revocations = {"revoked": {**values["revoked"], "chips": [OTHER_CHIP]}}
    assert told(None, revocations) == [
        (REVOKED, None, NEITHER, "added"),
        (REVOKED, "chips", NARROWS, "chip 38d138d138d138d1… revoked"),
    ]


def test_a_change_widens_if_any_of_its_differences_does() -> None:
    def difference(effect: Effect) -> Difference:
        return Difference(APP, None, effect, "as it may be")

    narrows, neither, widens = (difference(each) for each in (Effect.NARROWS, Effect.NEITHER, Effect.WIDENS))
    assert intent_of([narrows, neither]) is Intent.NARROW
    assert intent_of([neither]) is Intent.NARROW
    assert intent_of(iter([narrows, widens, narrows])) is Intent.WIDEN


def test_the_json_of_a_difference() -> None:
    assert Difference(APP, "chips", Effect.WIDENS, "chip 38d1… added").to_json() == {
        "document": "app payments",
        "member": "chips",
        "effect": "widens",
        "text": "chip 38d1… added",
    }


def test_a_revocation_that_another_document_says_too_is_neither() -> None:
    old, new = documents(), documents()
    old["revoked"] |= {"chips": [OTHER_CHIP], "images": ["demo-os-1"]}
    new["now"] = {"kind": "revoked", "name": "now", "chips": [OTHER_CHIP], "images": [IMAGE_HASH.hex()]}
    assert told(old, new) == [
        (REVOKED, "chips", NEITHER, "chip 38d138d138d138d1… removed, and still revoked"),
        (REVOKED, "images", NEITHER, "image demo-os-1 removed, and still revoked"),
        ("revoked now", None, NEITHER, "added"),
        ("revoked now", "chips", NEITHER, "chip 38d138d138d138d1… added, and revoked already"),
        ("revoked now", "images", NEITHER, f"image {HASH} added, and revoked already"),
    ]


def test_the_name_of_a_revoked_image_given_to_another_launch_brings_the_old_one_back() -> None:
    old, new = documents(), documents()
    for values in (old, new):
        values["revoked"]["images"] = ["demo-os-1"]
    new["image"] = relaunched("demo-os-1", cmdline="quiet")
    new_hash = new["image"]["os_image_hash"][:16] + "…"
    assert told(old, new) == [(IMAGE, "launch", WIDENS, f"launch {HASH} → {new_hash}")]


def test_a_revoked_image_by_its_hash_alone_says_nothing_of_what_measures_alike() -> None:
    old = documents()
    old["image"] = relaunched("demo-os-1", cmdline="app={app_id} compose={compose_hash}")
    old["filled"] = relaunched("demo-os-2", cmdline=f"app={'5a' * 20} compose={'c5' * 32}")
    old["revoked"]["images"] = [old["image"]["os_image_hash"]]
    old["app"]["images"] = ["demo-os-2", HASH_ALONE.hex()]
    new = {name: document for name, document in old.items() if name != "image"}
    by_hash = "is revoked by its hash alone now: no image that a guest describes is compared with it"
    assert told(old, new) == [
        (IMAGE, None, WIDENS, f"{by_hash} (app payments)"),
        (IMAGE, None, NEITHER, "removed"),
        (
            "image demo-os-2",
            None,
            WIDENS,
            "may measure as a revoked image does, which now is revoked by its hash alone",
        ),
    ]


def test_an_image_that_was_allowed_by_hash_alone_is_described_and_is_not() -> None:
    old, new = documents(), documents()
    for values in (old, new):
        values["app"]["images"] = [IMAGE_HASH.hex()]
    del old["image"]
    described = f"describes {HASH}, until now allowed by hash alone (app payments)"
    assert (IMAGE, None, WIDENS, described) in told(old, new)
    not_described = f"no longer describes {HASH}, now allowed by hash alone on any machine (app payments)"
    assert (IMAGE, None, WIDENS, not_described) in told(new, old)
    for values in (old, new):
        values["revoked"]["images"] = [IMAGE_HASH.hex()]
    assert told(old, new) == [(IMAGE, None, NEITHER, "added")]
    assert told(new, old) == [(IMAGE, None, NEITHER, "removed")]


def test_another_document_of_a_launch_allows_more_and_its_apps_are_counted() -> None:
    old = documents()
    old["more"] = second("image", "demo-os-1-large", vcpus={"min": 1, "max": 128})
    old["app"]["images"] = ["demo-os-1-large", "demo-os-1"]
    for number in range(3):
        old[f"app {number}"] = {**old["app"], "name": f"app-{number}", "id": f"{number + 1:02x}" * 20}
    new = json.loads(json.dumps(old))
    for each in new.values():
        if each["kind"] == "app":
            each["images"] = ["demo-os-1-large"]
    found = told(old, new)
    assert found[:4] == [
        (f"app {name}", "images", NEITHER, "image demo-os-1 removed")
        for name in ("app-0", "app-1", "app-2", "payments")
    ]
    why = f"describes {HASH} in place of another document, and allows more"
    assert found[4:] == [("image demo-os-1-large", None, WIDENS, f"{why} (app app-0 and 3 more)")]


@pytest.mark.parametrize(
    ("other", "widens"),
    [
        ({"expires_at": "2027-01-01T00:00:00Z"}, False),
        ({"expires_at": "2029-01-01T00:00:00Z"}, True),
        ({}, True),
        ({"expires_at": "2027-01-01T00:00:00Z", "vcpus": {"min": 2, "max": 64}}, False),
        ({"expires_at": "2027-01-01T00:00:00Z", "vcpu_types": ["EPYC-v4", "EPYC-Genoa"]}, True),
        ({"expires_at": "2027-01-01T00:00:00Z", "guest_features": ["0x1", "0x21"]}, True),
        ({"expires_at": "2027-01-01T00:00:00Z", "enforces": ["host-data", "dstack-mr-config"]}, False),
        ({"expires_at": "2027-01-01T00:00:00Z", "enforces": ["host-data", "cmdline"]}, True),
    ],
)
def test_a_document_that_judges_in_place_of_another(other: Document, widens: bool) -> None:
    """A guest on `demo-os-1` is judged by the other document of its launch once this one is delisted."""
    template = relaunched("demo-os-1", cmdline="app={app_id} compose={compose_hash}")
    old, new = documents(), documents()
    for values in (old, new):
        values["image"] = {**template, "expires_at": "2028-01-01T00:00:00Z"}
        values["other"] = {**template, "name": "demo-os-2", **other}
        values["app"]["images"] = ["demo-os-1", "demo-os-2"]
    new["app"]["images"] = ["demo-os-2"]
    found = {document for document, _, effect, _ in told(old, new) if effect == WIDENS}
    unguarded = "cmdline" in other.get("enforces", ())
    assert found == ({"image demo-os-2"} if widens else set()) | ({IMAGE} if unguarded else set())


def test_what_one_image_held_another_to() -> None:
    old = documents()
    old["more"] = second("image", "demo-os-2", enforces=["host-data", "dstack-mr-config"])
    old["app"] |= {"images": ["demo-os-1", "demo-os-2"], "binding": ["host-data", "dstack-mr-config"]}
    new = json.loads(json.dumps(old))
    new["app"]["images"] = ["demo-os-2"]
    held = (
        IMAGE,
        None,
        WIDENS,
        "no longer holds images that may measure alike to what it enforces (app payments)",
    )
    assert held in told(old, new)
    # Of another launch it held nothing.
    for values in (old, new):
        values["more"] = relaunched("demo-os-2", cmdline="quiet") | {
            "enforces": ["host-data", "dstack-mr-config"]
        }
    assert told(old, new) == [(APP, "images", NARROWS, "image demo-os-1 removed")]


def test_other_bits_of_mitigations_are_not_more_of_them() -> None:
    old, new = documents(), documents()
    old["tcb"]["mitigations"], new["tcb"]["mitigations"] = {"launch": "0x3"}, {"launch": "0x4"}
    assert told(old, new) == [(TCB, "mitigations", WIDENS, "launch mitigations 0x3 → 0x4")]


def test_a_document_that_no_app_names_is_told_by_its_own_nature() -> None:
    old, new = documents(), documents()
    for values in (old, new):
        values["spare"] = {"kind": "tcb", "name": "spare", "products": {"genoa": GENOA}}
    new["spare"]["products"] = {"genoa": {**GENOA, "microcode": 83}}
    assert told(old, new) == [("tcb spare", "products", WIDENS, "minimum microcode of genoa 84 → 83")]
