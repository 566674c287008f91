"""The fleet that the conformance tests play with: authorities, chips, images, apps, a guest, a policy."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conformance.own_authority import GENOA, MILAN, TURIN, Authority, Chip, new_chip, rsa_keys
from tests.conformance.own_certificate import pem
from tests.conformance.own_encoding import b64
from tests.conformance.own_image import Image, build_image
from tests.conformance.own_platform import BytesEdit, report_on, sign

CSP_ID = "CN=conformance.example"
GOOD_COMPOSE = hashlib.sha256(b"compose").hexdigest()
WITHDRAWN_COMPOSE = hashlib.sha256(b"withdrawn compose").hexdigest()


@dataclass(frozen=True, slots=True)
class App:
    """An app as a guest names it."""

    name: str
    id: str
    compose: str = GOOD_COMPOSE


def _no_edit(data: bytearray) -> None:
    """Leave the bytes as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One running guest, and whatever is wrong with it; make variants with `dataclasses.replace`."""

    chip: Chip
    image: Image
    app: App
    binding: str = "host-data"
    instance_id: str | None = None
    vcpus: int = 2
    vcpu_type: str = "EPYC-v4"
    features: int = 1
    measurement: bytes | None = None  # instead of the image's
    document_fields: Mapping[str, object] = field(default_factory=dict)
    document: bytes | None = None  # instead of the binding's
    report: Mapping[str, object] = field(default_factory=dict)  # fields to change before signing
    edit_body: BytesEdit = _no_edit  # before signing
    edit_signed: BytesEdit = _no_edit  # after signing
    chain: tuple[bytes, ...] | None = None  # DER certificates instead of the genuine VCEK and ASK
    evidence_fields: Mapping[str, object] = field(default_factory=dict)  # None leaves a field out
    launch: Mapping[str, object] | None = None

    def app_document(self) -> bytes | None:
        """Return the document that HOST_DATA binds, if this guest's binding has one."""
        if self.document is not None:
            return self.document
        fields: dict[str, object] = {"app_id": self.app.id, "compose_hash": self.app.compose}
        if self.instance_id is not None:
            fields["instance_id"] = self.instance_id
        if self.binding == "host-data":
            return json.dumps({"version": 1, **fields, **self.document_fields}).encode()
        if self.binding == "dstack-mr-config":
            fields |= {"key_provider": "kms", "version": 3, **self.document_fields}
            return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        return None

    def host_data(self) -> bytes:
        document = self.app_document()
        if document is None:
            return bytes(32)
        prefix = b"dstack-mr-config-v3:\x00" if self.binding == "dstack-mr-config" else b""
        return hashlib.sha256(prefix + document).digest()

    def launch_measurement(self) -> bytes:
        if self.measurement is not None:
            return self.measurement
        return self.image.measurement(
            self.vcpus, self.vcpu_type, self.features, self.app.id, self.app.compose
        )

    def sign_report(self, report_data: bytes) -> bytes:
        """Return the 1184 bytes that this guest gets from its hardware."""
        fields = {
            "report_data": report_data,
            "measurement": self.launch_measurement(),
            "host_data": self.host_data(),
            **self.report,
        }
        body = report_on(self.chip, **fields).body()
        self.edit_body(body)
        signed = bytearray(sign(bytes(body), self.chip.key))
        self.edit_signed(signed)
        return bytes(signed)

    def evidence(self, request: bytes) -> dict[str, Any]:
        """Return the evidence for exactly these request bytes."""
        digest = hashlib.sha512(b"attested-kms/v1/request\x00" + request).digest()
        chain = self.chain if self.chain is not None else (self.chip.genuine_vcek, self.chip.authority.ask)
        evidence: dict[str, Any] = {
            "tee": "sev-snp",
            "report": b64(self.sign_report(digest)),
            "certificates": [b64(certificate) for certificate in chain],
        }
        if not chain:
            del evidence["certificates"]
        document = self.app_document()
        if document is not None:
            evidence["app_document"] = b64(document)
        if self.launch is not None:
            evidence["launch"] = dict(self.launch)
        evidence.update(self.evidence_fields)
        return {name: value for name, value in evidence.items() if value is not None}


APP_NAMES = (
    "payments",
    "orders",
    "measured",
    "racked",
    "relaxed",
    "unenforced",
    "described",
    "lapsed",
    "lapsed-tcb",
    "withdrawn",
    "frugal",
    "mitigated",
    "no-smt",
    "single-socket",
    "new-firmware",
    "version-5",
    "signed-svn",
    "other-image",
)
MILAN_CHIPS = ("first", "second", "listed", "in-rack", "stolen", "fetched", "stale", "unknown", "stranded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Everything that exists outside the server; made once."""

    milan: Authority
    genoa: Authority
    turin: Authority
    impostor: Authority  # has Milan's names and nobody's trust
    chips: Mapping[str, Chip]
    images: Mapping[str, Image]
    apps: Mapping[str, App]

    @property
    def roots(self) -> str:
        """The PEM file of development roots."""
        return "".join(pem(authority.ark) for authority in (self.milan, self.genoa, self.turin))

    def guest(
        self, app: str = "payments", chip: str = "first", image: str = "demo-os", **changes: Any
    ) -> Guest:
        """Return an ordinary guest of a named app, or one with something changed."""
        return Guest(chip=self.chips[chip], image=self.images[image], app=self.apps[app], **changes)

    def measured_guest(self, **changes: Any) -> Guest:
        """Return a guest whose app is bound by its measured command line."""
        return self.guest("measured", image="measured-os", binding="cmdline", **changes)


def build_fleet(key_folder: Path, folder: Path) -> Fleet:
    """Make keys, certificates, chips, images and apps."""
    products = {"milan": MILAN, "genoa": GENOA, "turin": TURIN, "impostor": MILAN}
    names = [f"{name}-{role}" for name in products for role in ("ark", "ask")] + ["milan-asvk"]
    keys = rsa_keys(key_folder, names)
    authorities = {
        name: Authority(
            product=product,
            ark_key=keys[f"{name}-ark"],
            ask_key=keys[f"{name}-ask"],
            asvk_key=keys["milan-asvk"],  # only Milan's is used
        )
        for name, product in products.items()
    }
    chips = {name: new_chip(authorities["milan"]) for name in MILAN_CHIPS}
    chips |= {name: new_chip(authorities[name]) for name in ("genoa", "turin", "impostor")}
    cmdlines = {
        "demo-os": ("console=ttyS0 quiet", ("host-data", "dstack-mr-config")),
        "measured-os": ("console=ttyS0 app={app_id} compose={compose_hash} x={}", ("cmdline",)),
        "bare-os": ("console=ttyS0 bare", ("dstack-mr-config",)),
        "described-os": ("console=ttyS0 described", ("host-data", "dstack-mr-config")),
        "withdrawn-os": ("console=ttyS0 withdrawn", ("host-data",)),
        "unlisted-os": ("console=ttyS0 unlisted", ("host-data",)),
        "nobodys-os": ("console=ttyS0 nobody's", ("host-data",)),
    }
    return Fleet(
        milan=authorities["milan"],
        genoa=authorities["genoa"],
        turin=authorities["turin"],
        impostor=authorities["impostor"],
        chips=chips,
        images={
            name: build_image(folder, name, cmdline, enforces)
            for name, (cmdline, enforces) in cmdlines.items()
        },
        apps={name: App(name, os.urandom(32 if name == "orders" else 20).hex()) for name in APP_NAMES},
    )
