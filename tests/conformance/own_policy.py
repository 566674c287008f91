"""The policy that the conformance servers run under, and its revision, computed from the protocol page."""

import hashlib
from pathlib import Path
from typing import Any

import rfc8785
import yaml

from tests.conformance.own_fleet import CSP_ID, GOOD_COMPOSE, WITHDRAWN_COMPOSE, Fleet

MILAN_FLOOR = {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219}
GENOA_FLOOR = {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84}
TURIN_FLOOR = {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81}
LISTED_KEY_DIGEST = hashlib.sha384(b"an id key").hexdigest()
REVOKED_VCPUS = 7  # the demo image's measurement with this many vCPUs is revoked

Document = dict[str, Any]


def _app(fleet: Fleet, name: str, **changes: object) -> Document:
    return {
        "kind": "app",
        "id": fleet.apps[name].id,
        "name": name,
        "compose": [GOOD_COMPOSE],
        "images": ["demo-os"],
        "chips": "any",
        "tcb": "fleet",
        "binding": ["host-data", "dstack-mr-config"],
        "keys": ["disk"],
        **changes,
    }


def _tcb(name: str, products: object, **changes: object) -> Document:
    return {
        "kind": "tcb",
        "name": name,
        "products": products,
        "check": ["reported", "committed"],
        "provisional_firmware": "forbid",
        "platform": {"require": ["alias-check-complete"], "forbid": []},
        **changes,
    }


def _guest(name: str, **changes: object) -> Document:
    return {"kind": "guest", "name": name, **changes}


def documents(fleet: Fleet) -> list[Document]:
    """Return every document of the policy."""
    all_keys = ["disk", "env", "signing", "tls", "custom:db/*", "disk@instance", "disk@chip"]
    tls = {"names": ["payments.internal"], "days": 7}
    every = {"milan": MILAN_FLOOR, "genoa": GENOA_FLOOR, "turin": TURIN_FLOOR}
    demo = fleet.images["demo-os"]
    revoked_measurement = demo.measurement(REVOKED_VCPUS, "EPYC-v4", 1, "", "")
    rules: dict[str, Document] = {
        "no-smt": {"smt": "forbid"},
        "single-socket": {"single_socket": "require"},
        "new-firmware": {"firmware_minimum": "1.56"},
        "version-5": {"report_versions": [5]},
        "signed-svn": {"guest_svn_minimum": 2, "id_key_digests": [LISTED_KEY_DIGEST]},
    }
    return [
        _app(
            fleet,
            "payments",
            compose=[GOOD_COMPOSE, WITHDRAWN_COMPOSE],
            images=["demo-os", "withdrawn-os"],
            keys=all_keys,
            tls=tls,
        ),
        _app(fleet, "orders", keys=all_keys, tls={"names": ["orders.internal"], "days": 7}),
        _app(fleet, "measured", images=["measured-os"], binding=["cmdline"], keys=["disk", "env"]),
        _app(fleet, "racked", chips=["rack-1", fleet.chips["listed"].chip_id.hex()]),
        _app(fleet, "relaxed", guest="relaxed", keys=["disk", "disk@chip"]),
        _app(fleet, "unenforced", images=["bare-os"], binding=["host-data"]),
        _app(fleet, "described", images=[fleet.images["described-os"].os_image_hash()]),
        _app(fleet, "lapsed", expires_at="2026-01-01T00:00:00Z"),
        _app(fleet, "lapsed-tcb", tcb="lapsed"),
        _app(fleet, "withdrawn"),
        _app(fleet, "frugal"),
        _app(fleet, "mitigated", tcb="mitigated"),
        _app(fleet, "other-image", images=["unlisted-os"]),
        *(_app(fleet, name, guest=name) for name in rules),
        *(
            fleet.images[name].document()
            for name in ("demo-os", "measured-os", "bare-os", "withdrawn-os", "unlisted-os")
        ),
        _tcb("fleet", every),
        _tcb("lapsed", every, expires_at="2026-01-01T00:00:00Z"),
        _tcb("mitigated", {"turin": TURIN_FLOOR}, mitigations={"launch": "0x40", "current": "0x0"}),
        _guest("relaxed", vmpl=[0, 1], signers=["vcek", "vlek"], csp=[CSP_ID]),
        *(_guest(name, **rule) for name, rule in rules.items()),
        {"kind": "chips", "name": "rack-1", "chips": [fleet.chips["in-rack"].chip_id.hex()]},
        {
            "kind": "revoked",
            "name": "emergency",
            "chips": [fleet.chips["stolen"].chip_id.hex()],
            "measurements": [revoked_measurement.hex()],
            "images": ["withdrawn-os"],
            "apps": [fleet.apps["withdrawn"].id],
            "compose": [WITHDRAWN_COMPOSE],
            "products": [],
        },
    ]


def revision(policy: list[Document]) -> str:
    """Return the revision that section 4 defines."""
    ordered = sorted(policy, key=lambda document: (document["kind"], document.get("id") or document["name"]))
    return "sha256:" + hashlib.sha256(rfc8785.dumps(ordered)).hexdigest()


class _Quoted(yaml.SafeDumper):
    """Writes every string value in quotes, so that no reader takes a digest for a number."""


def _quoted_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')


_Quoted.add_representer(str, _quoted_text)
# The same list may occur in many documents; as an alias it would be refused.
_Quoted.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def write_policy(folder: Path, policy: list[Document]) -> None:
    """Write the apps in one file, and everything else in a folder below."""
    (folder / "shared").mkdir(parents=True)
    apps = [document for document in policy if document["kind"] == "app"]
    rest = [document for document in policy if document["kind"] != "app"]
    for path, part in ((folder / "apps.yaml", apps), (folder / "shared" / "rest.yaml", rest)):
        text = yaml.dump_all(part, Dumper=_Quoted, sort_keys=False, explicit_start=True)
        path.write_text(text, encoding="utf-8")
