"""The shapes of `/v1/releases`, `/v1/verifications` and `/v1/images`, for the OpenAPI document."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from kms.http import examples
from kms.http.schemas import EvidenceBody, Shape


class SummaryBody(Shape):
    """A decision in short."""

    release_id: str = Field(description="also the request id that the guest was told")
    decided_at: str
    outcome: Literal["released", "refused", "unreadable"] = Field(
        description="unreadable: somebody damaged the record, and nothing else is known"
    )
    code: str | None = Field(description="of a refusal")
    reasons: list[str]
    app_id: str | None
    image: str | None
    chip_id: str | None
    policy_revision: str | None
    client: str | None = Field(description="its address; null where the record is unreadable")

    example: ClassVar[dict[str, Any]] = {
        "release_id": examples.ID,
        "decided_at": examples.AT,
        "outcome": "refused",
        "code": "policy-denied",
        "reasons": ["chip-not-listed"],
        "app_id": examples.APP_ID,
        "image": examples.IMAGE,
        "chip_id": examples.CHIP,
        "policy_revision": examples.REVISION,
        "client": examples.CLIENT,
    }


class ReleasesAnswer(Shape):
    """Decisions, newest first."""

    releases: list[SummaryBody]
    next: str | None = Field(description="`before` of the next page; null where there is none")

    example: ClassVar[dict[str, Any]] = {"releases": [SummaryBody.example], "next": examples.ID}


class EntryAnswer(Shape):
    """A recorded decision, as it was written down."""

    kind: Literal["decision"]
    release_id: str
    decided_at: str
    outcome: Literal["released", "refused"]
    code: str | None
    reasons: list[str]
    checks: list[dict[str, Any]]
    boot_info: dict[str, Any] | None = Field(description="what was proven; null where nothing was")
    document: dict[str, Any] | None = Field(description="what a bound app document states")
    claim: dict[str, Any] | None = Field(description="the `app` of the request")
    keys: list[dict[str, Any]]
    epochs: list[int]
    policy_revision: str | None
    challenge: str | None = Field(description="SHA-256 of the challenge that was spent, hex")
    client: str
    development: bool

    example: ClassVar[dict[str, Any]] = {
        "kind": "decision",
        "release_id": examples.ID,
        "decided_at": examples.AT,
        "outcome": "refused",
        "code": "policy-denied",
        "reasons": ["chip-not-listed"],
        "checks": [
            {
                "name": "chip-listed",
                "passed": False,
                "detail": f"chip {examples.CHIP} is not listed",
                "reason": "chip-not-listed",
            }
        ],
        "boot_info": {
            "tee": "sev-snp",
            "product": "milan",
            "image": examples.IMAGE,
            "chip_id": examples.CHIP,
        },
        "document": {
            "app_id": examples.APP_ID,
            "compose_hash": "5b" * 32,
            "instance_id": None,
            "binding": "host-data",
            "kms_identity": None,
        },
        "claim": None,
        "keys": [{"name": "disk", "scope": "app", "epoch": None}],
        "epochs": [],
        "policy_revision": examples.REVISION,
        "challenge": "e0" * 32,
        "client": examples.CLIENT,
        "development": False,
    }


class PlaceBody(Shape):
    """Where a policy says what was wanted."""

    document: str
    member: str | None
    file: str | None
    line: int | None
    column: int | None


class ExplainedCheckBody(Shape):
    """A check: what was seen, what was wanted, and who says so."""

    name: str
    passed: bool
    detail: str
    reason: str
    wanted: str | None
    says: PlaceBody | None


class ExplanationAnswer(Shape):
    """A decision, explained."""

    release_id: str | None = Field(None, description="null for evidence that was not recorded")
    decided_at: str
    decision: Literal["allow", "deny"]
    code: str | None
    policy_revision: str | None
    checks: list[ExplainedCheckBody]
    nearest: str | None = Field(description="of an unknown measurement: the image that comes nearest")
    boot_info: dict[str, Any] | None

    example: ClassVar[dict[str, Any]] = {
        "release_id": examples.ID,
        "decided_at": examples.AT,
        "decision": "deny",
        "code": "policy-denied",
        "policy_revision": examples.REVISION,
        "checks": [
            {
                "name": "chip-listed",
                "passed": False,
                "detail": f"chip {examples.CHIP} is not listed",
                "reason": "chip-not-listed",
                "wanted": "one of 12 chips",
                "says": {
                    "document": "app payments",
                    "member": "chips",
                    "file": "payments.yaml",
                    "line": 6,
                    "column": 8,
                },
            }
        ],
        "nearest": None,
        "boot_info": EntryAnswer.example["boot_info"],
    }


class VerificationBody(Shape):
    """Evidence to judge. Nothing is spent, and no key is derived."""

    evidence: EvidenceBody
    request: str | None = Field(None, description="exact bytes of the request, base64url; at most 64 KiB")
    at: str | None = Field(None, description="RFC 3339, UTC: judge as of then", examples=[examples.AT])

    example: ClassVar[dict[str, Any]] = {
        "evidence": {"tee": "sev-snp", "report": "AgAAAA…"},
        "at": examples.AT,
    }


class ImageBody(Shape):
    """An image of the policy in force."""

    name: str
    os_image_hash: str
    vmm: str
    enforces: list[str]
    vcpu_types: list[str]
    vcpus: dict[str, int]
    guest_features: list[str]
    apps: list[str] = Field(description="names of the apps that list it")
    revoked: bool
    expires_at: str | None

    example: ClassVar[dict[str, Any]] = {
        "name": examples.IMAGE,
        "os_image_hash": examples.IMAGE_HASH,
        "vmm": "qemu",
        "enforces": ["host-data"],
        "vcpu_types": ["EPYC-v4"],
        "vcpus": {"min": 1, "max": 64},
        "guest_features": ["0x1"],
        "apps": ["payments"],
        "revoked": False,
        "expires_at": None,
    }


class ImagesAnswer(Shape):
    """Images, by name."""

    images: list[ImageBody]
    next: str | None = Field(description="`after` of the next page; null where there is none")

    example: ClassVar[dict[str, Any]] = {"images": [ImageBody.example], "next": None}


class MeasurementBody(Shape):
    """A measurement that an image may show, and with which app where the command line names one."""

    app: str | None = None
    compose_hash: str | None = None
    vcpus: int
    vcpu_type: str
    guest_features: str
    measurement: str


class MeasurementsAnswer(Shape):
    """Every measurement that an image may show, in order."""

    image: str
    os_image_hash: str
    measurements: list[MeasurementBody]
    note: str | None = Field(None, description="what the list cannot hold")
    next: str | None = Field(description="`after` of the next page; null where there is none")

    example: ClassVar[dict[str, Any]] = {
        "image": examples.IMAGE,
        "os_image_hash": examples.IMAGE_HASH,
        "measurements": [
            {"vcpus": 1, "vcpu_type": "EPYC-v4", "guest_features": "0x1", "measurement": examples.MEASUREMENT}
        ],
        "next": "1",
    }
