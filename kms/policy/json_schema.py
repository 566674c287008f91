"""The JSON Schema of one policy document, for editors: made of the readers that lint uses.

What the schema refuses, lint refuses. Lint refuses more: what members and documents mean for each other,
hashes that do not match, days that no calendar has, `debug: allow` outside development mode.
"""

from collections.abc import Mapping
from typing import Final

from kms.policy.lint import readers_of_kinds
from kms.policy.parser import Schema
from kms.policy.reader import schema_of
from kms.strict_json import JsonValue

_EVERY_KIND: Final = {
    "name": "What other documents and reports call it. Unique among the documents of its kind.",
    "description": "For people.",
    "owner": "Whom to ask. For people.",
    "expires_at": "From then on the document denies whatever relies on it. RFC 3339 in UTC.",
}
# What an editor shows beside a member; the reference is docs/reference/policy.md.
_ABOUT: Final[Mapping[str, Mapping[str, str]]] = {
    "app": {
        "id": "App id: 20 or 32 bytes, hex. Unique.",
        "compose": "SHA-256 of what the app may run, or `any`.",
        "images": "Guest images that it may run on: names of `image` documents, or os_image_hashes.",
        "chips": "Machines: CHIP_IDs and names of `chips` documents, or `any`.",
        "tcb": "The name of the `tcb` document that its machines must satisfy.",
        "guest": "The name of the `guest` document; left out, the built-in `strict`.",
        "binding": "How the app's identity may be bound to a report.",
        "keys": "Keys that it gets, with `@instance` or `@chip` for those of another scope than the app.",
        "forbid_advisories": "AMD bulletins that a report must show to be fixed.",
        "epoch": "Pins the key epoch.",
        "tls": "What its certificates say; needed for the key `tls`.",
        "compat": "Lets `keys` list those of a dstack KMS whose roots an operator imported.",
    },
    "image": {
        "launch": "Everything that is measured, as hashes. Written by `kms image describe`.",
        "os_image_hash": "SHA-256 of the launch block's RFC 8785 form.",
        "enforces": "Bindings that the measured image itself checks before it runs a workload.",
        "vcpu_types": "vCPU types of QEMU that it may run with; left out, every known one.",
        "vcpus": "How many vCPUs it may have; left out, 1 to 512.",
        "guest_features": "SEV_FEATURES that it may run with; left out, only SNPActive.",
    },
    "tcb": {
        "products": "Minimum levels for each product line, or exact CPU model of one (`genoa/0xa0`).",
        "check": "TCB versions that must reach the minimum; left out, reported and committed.",
        "provisional_firmware": "Firmware that the host can still roll back; left out, forbidden.",
        "platform": "Bits of PLATFORM_INFO: how the host is configured.",
        "mitigations": "Mitigation vectors, as masks of bits that must be set.",
    },
    "guest": {
        "vmpl": "Privilege levels that may ask.",
        "report_versions": "Versions of attestation reports.",
        "signers": "Endorsement keys: of the chip (`vcek`) or of a cloud provider (`vlek`).",
        "csp": "Providers whose VLEKs count.",
        "debug": "Guests whose memory the host may read. `allow` only in development mode.",
        "migration_agent": "Guests that a migration agent may move.",
        "smt": "Guests that may run on hosts with SMT.",
        "single_socket": "Guests that run on one socket only.",
        "cxl": "Guests that may use CXL memory.",
        "ciphertext_hiding": "Guests that run only with ciphertext hiding.",
        "aes_256_xts": "Guests that run only with AES-256-XTS.",
        "rapl_disabled": "Guests that run only with RAPL switched off.",
        "page_swap_disabled": "Guests whose pages the host cannot swap.",
        "firmware_minimum": 'Lowest SEV firmware, current and committed, as text: "1.55" or "1.55.22".',
        "guest_svn_minimum": "Lowest guest SVN; only with id_key_digests or author_key_digests.",
        "id_key_digests": "SHA-384 of ID keys that may have signed the launch, or `any`.",
        "author_key_digests": "SHA-384 of author keys that may have signed ID keys, or `any`.",
    },
    "chips": {"chips": "CHIP_IDs: 64 bytes, hex. Turin's 8 bytes are followed by 56 zero bytes."},
    "revoked": {
        "chips": "CHIP_IDs that get nothing.",
        "measurements": "Launch measurements that get nothing.",
        "images": "Images, by name or os_image_hash, that get nothing.",
        "apps": "App ids that get nothing.",
        "compose": "Compose hashes that get nothing.",
        "products": "Product lines that get nothing.",
    },
}


def policy_schema() -> dict[str, JsonValue]:
    """Give the schema (draft 2020-12) of one YAML document of a policy, of whatever kind."""
    readers = readers_of_kinds(development=True)
    kinds: list[JsonValue] = [*readers]
    definitions: Schema = {kind: _described(kind, schema_of(read)) for kind, read in readers.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A policy document of Attested KMS",
        "type": "object",
        "properties": {"kind": {"enum": kinds, "description": "What the document is."}},
        "required": ["kind"],
        # Not `oneOf`, under which an editor cannot tell which of six schemas was meant.
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/{kind}"},
            }
            for kind in readers
        ],
        "$defs": definitions,
    }


def _described(kind: str, schema: Schema) -> Schema:
    about = {**_EVERY_KIND, **_ABOUT[kind]}
    members = schema["properties"]
    if not isinstance(members, dict):
        raise TypeError("a reader's schema is one of members")
    properties: Schema = {"kind": {"const": kind}}
    for name, member in members.items():
        if isinstance(member, dict):
            properties[name] = {"description": about[name], **member}
    return {**schema, "properties": properties}
