"""The shapes of requests and answers, for the OpenAPI document and for what we send.

Requests are read by `kms.strict_json` (duplicate keys, exact bytes), not by these models; a test holds the
two to the same fields.
"""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """A JSON object without other members. `example` is one, where the document shows one."""

    example: ClassVar[dict[str, Any]]

    model_config = ConfigDict(extra="forbid")


class ChallengeAnswer(Shape):
    """A challenge, good once."""

    challenge: str = Field(description="opaque, base64url", examples=["AQIDBA"])
    expires_at: str = Field(description="RFC 3339, UTC", examples=["2026-11-22T12:05:00Z"])


class LaunchHintBody(Shape):
    """A hint where to look first; never a fact. One that does not fit is ignored."""

    image: str | None = None
    vcpus: int | None = None
    vcpu_type: str | None = None
    vcpu_signature: str | None = None
    guest_features: str | None = None
    description: dict[str, Any] | None = None


class EvidenceBody(Shape):
    """SEV-SNP evidence."""

    tee: str = Field(examples=["sev-snp"])
    report: str = Field(description="1184 bytes, base64url")
    certificate_table: str | None = Field(None, description="kernel auxblob, base64url")
    certificates: list[str] | None = Field(None, description="PEM, or base64 of one DER; at most 16")
    launch: LaunchHintBody | None = None
    app_document: str | None = Field(None, description="exact bytes, base64url; at most 64 KiB")


class ReleaseBody(Shape):
    """A release request and the evidence that signs it."""

    request: str = Field(description="exact bytes of the request, base64url; at most 64 KiB")
    evidence: EvidenceBody


class SignedBody(Shape):
    """A text signed by the KMS identity."""

    payload: str
    signature: str
    identity: str


class ReleaseAnswer(Shape):
    """Keys, sealed to the guest."""

    release_id: str
    suite: str
    sealed: str = Field(description="base64url; opens with the recipient's private key")
    boot_info: dict[str, Any] = Field(description="what the guest proved about itself")
    policy_revision: str
    receipt: SignedBody = Field(description="the KMS's promise that the release is in its record")
    development: bool


class IdentityAnswer(Shape):
    """Who this KMS is."""

    identity: str = Field(description="Ed25519 public key, base64url, 32 bytes")
    previous: list[SignedBody] = Field(description="identities' words for their successors, oldest first")
    tls_ca: str | None = Field(
        description="PEM of the server's own local CA, null when the operator brings a certificate"
    )
    epochs: list[int] = Field(description="those whose keys are given, oldest first; the last is current")
    version: str
    development: bool


class ReadyAnswer(Shape):
    """Ready to serve."""

    status: str
    development: bool


class ProblemBody(Shape):
    """RFC 9457."""

    type: str
    title: str
    status: int
    code: str
    request_id: str
    reasons: list[str] | None = None


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problem documents that a route of guests may answer with."""
    return {status: {"model": ProblemBody, "description": "RFC 9457 problem document"} for status in statuses}
