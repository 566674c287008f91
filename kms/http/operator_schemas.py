"""The shapes of `/v1/operators`, and the problem documents of operators, for the OpenAPI document."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from kms.http import examples
from kms.http.problems import problem_members
from kms.http.schemas import ProblemBody, Shape

_Role = Literal["viewer", "operator", "auditor", "admin"]


class OperatorProblem(ProblemBody):
    """RFC 9457. `detail` and `details` are for operators that are known: never with a 401."""

    detail: str | None = Field(None, description="a sentence, with values")
    details: dict[str, Any] | None = Field(
        None, description="what belongs to the code: findings, what is in force, who would be refused"
    )

    @classmethod
    def of(cls, code: str) -> dict[str, Any]:
        """Give the example of a code of `kms.http.problems.KINDS`."""
        return problem_members(code, examples.ID)


class OperatorBody(Shape):
    """An operator. What was written by hand has a name and no other values."""

    name: str
    role: _Role | None
    kind: Literal["token", "certificate"] | None
    token_id: str | None = Field(description="names the token in the audit log; it is no secret")
    subject: str | None = Field(description="the client certificate's subject, RFC 4514")
    created_at: str | None
    created_by: str | None
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    standing: Literal["active", "expired", "revoked", "not-authentic"]

    example: ClassVar[dict[str, Any]] = {
        "name": "alice",
        "role": "operator",
        "kind": "token",
        "token_id": examples.TOKEN_ID,
        "subject": None,
        "created_at": examples.AT,
        "created_by": "root",
        "expires_at": "2027-02-20T12:00:00.000000Z",
        "revoked_at": None,
        "last_used_at": None,
        "standing": "active",
    }


class OperatorsAnswer(Shape):
    """Operators, by name."""

    operators: list[OperatorBody]
    next: str | None = Field(description="`after` of the next page; null where there is none")

    example: ClassVar[dict[str, Any]] = {"operators": [OperatorBody.example], "next": None}


class OperatorAnswer(Shape):
    """An operator."""

    operator: OperatorBody

    example: ClassVar[dict[str, Any]] = {
        "operator": {**OperatorBody.example, "revoked_at": examples.AT, "standing": "revoked"}
    }


class NewOperatorAnswer(OperatorAnswer):
    """A new operator."""

    token: str | None = Field(description="shown this once; null for a certificate")

    example: ClassVar[dict[str, Any]] = {"operator": OperatorBody.example, "token": "…"}


class NewOperatorBody(Shape):
    """An operator to add: with a token, or with the `subject` of a client certificate."""

    name: str = Field(description="1 to 128 letters, digits and characters of ._@-")
    role: _Role
    life_seconds: int | None = Field(None, ge=1, description="by default 90 days for a token")
    subject: str | None = Field(None, description="the client certificate's subject, RFC 4514")

    example: ClassVar[dict[str, Any]] = {"name": "alice", "role": "operator", "life_seconds": 2_592_000}


class ActionBody(Shape):
    """What an operator did. A row that is no entry any more has only its `kind` and `action_id`."""

    kind: Literal["action", "unreadable"]
    action_id: str
    at: str | None = None
    operator: str | None = None
    role: _Role | None = None
    proof: Literal["command-line", "token", "certificate", "oidc", "watched-folder"] | None = None
    proof_id: str | None = None
    client: str | None = Field(None, description="the address that it came from")
    action: str | None = Field(None, examples=["policy-apply"])
    target: str | None = None
    outcome: str | None = Field(None, description="`done`, or the code of the refusal")
    details: dict[str, Any] | None = None

    example: ClassVar[dict[str, Any]] = {
        "kind": "action",
        "action_id": examples.ID,
        "at": examples.AT,
        "operator": "alice",
        "role": "operator",
        "proof": "token",
        "proof_id": examples.TOKEN_ID,
        "client": examples.CLIENT,
        "action": "policy-apply",
        "target": examples.REVISION,
        "outcome": "done",
        "details": {"message": examples.MESSAGE},
    }


class ActionsAnswer(Shape):
    """What operators did, newest first."""

    actions: list[ActionBody]
    next: str | None = Field(description="`before` of the next page; null where there is none")

    example: ClassVar[dict[str, Any]] = {"actions": [ActionBody.example], "next": examples.ID}
