"""The shapes of candidates, policies that operators send, and of what is said of them."""

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from kms.http import examples
from kms.http.policy_schemas import Revision
from kms.http.schemas import Shape

Files: TypeAlias = Annotated[
    dict[str, str],
    Field(
        description="file names of the policy folder, `/` between folders, to contents",
        examples=[examples.FILES],
    ),
]


class FindingBody(Shape):
    """What is wrong, and where."""

    file: str
    line: int
    column: int
    severity: Literal["error", "warning"]
    message: str


class LintAnswer(Shape):
    """Everything that is wrong with a policy."""

    valid: bool
    revision: str | None = Field(description="what the policy would be; null with errors")
    documents: int
    errors: int
    warnings: int
    findings: list[FindingBody]

    example: ClassVar[dict[str, Any]] = {
        "valid": False,
        "revision": None,
        "documents": 2,
        "errors": 1,
        "warnings": 0,
        "findings": [
            {
                "file": "payments.yaml",
                "line": 4,
                "column": 9,
                "severity": "error",
                "message": "no document of kind `image` is named `demo-os-2`: known: demo-os-1",
            }
        ],
    }


class GuestsBody(Shape):
    """Guests that a candidate would treat alike."""

    app_id: str | None
    app: str | None = Field(description="the app's name")
    image: str | None
    chip_id: str | None
    reasons: list[str] = Field(description="why they would be refused, or were")
    guests: int
    records: int
    last_seen: str
    example_: str = Field(alias="example", description="a release id, to explain")


class WhatIfAnswer(Shape):
    """Whom a candidate would treat otherwise, of all that were recorded."""

    revision: Revision
    since: str
    judged: int
    unjudged: int = Field(description="records that cannot be judged again: nothing was proven")
    newly_refused: list[GuestsBody]
    newly_allowed: list[GuestsBody]
    still_refused: int
    still_allowed: int
    complete: bool = Field(description="false: there are more records than are judged at once")

    example: ClassVar[dict[str, Any]] = {
        "revision": examples.REVISION,
        "since": "2026-10-23T12:00:00.000000Z",
        "judged": 412,
        "unjudged": 3,
        "newly_refused": [
            {
                "app_id": "86e59625be93207bc2351c4d1bba20037cec8e16",
                "app": "payments",
                "image": "demo-os-1",
                "chip_id": examples.CHIP,
                "reasons": ["chip-not-listed"],
                "guests": 1,
                "records": 14,
                "last_seen": examples.AT,
                "example": "019abfc2a1e77c3e8d5f00112233aabb",
            }
        ],
        "newly_allowed": [],
        "still_refused": 8,
        "still_allowed": 390,
        "complete": True,
    }


class PolicyFilesBody(Shape):
    """A policy."""

    files: Files

    example: ClassVar[dict[str, Any]] = {"files": examples.FILES}


class DiffBody(PolicyFilesBody):
    """A policy, and the revision to compare it with."""

    from_: str | None = Field(None, alias="from", description="a revision; absent: what is in force")


class CandidateBody(Shape):
    """A policy: `files`, or a `revision` that the server has. Exactly one of them."""

    files: Files | None = None
    revision: str | None = Field(None, description="a revision that the server has")


class WhatIfBody(CandidateBody):
    """A candidate, and how far to look back."""

    since_seconds: int = Field(ge=1)

    example: ClassVar[dict[str, Any]] = {"revision": examples.REVISION, "since_seconds": 2_592_000}


class ProposeBody(CandidateBody):
    """A change to propose."""

    message: str = Field(max_length=4096)
    lift_revocations: bool | None = Field(
        None, description="true: the policy may lack revocations that stand; it is refused otherwise"
    )

    example: ClassVar[dict[str, Any]] = {"revision": examples.REVISION, "message": examples.MESSAGE}


class ApplyBody(ProposeBody):
    """A change to make."""

    expect: str | None = Field(None, description="the revision that must be in force, or `none`")
    gate_seconds: int | None = Field(
        None, ge=1, description="refuse what would newly refuse guests seen that lately"
    )

    example: ClassVar[dict[str, Any]] = {
        "files": examples.FILES,
        "message": examples.MESSAGE,
        "expect": examples.OLD_REVISION,
        "gate_seconds": 2_592_000,
    }
