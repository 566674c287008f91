"""Policy work on a server."""

from datetime import timedelta
from urllib.parse import quote

from kms.administration.office import Files, Json
from kms.encoding import b64url
from kms.errors import MalformedRequest
from kms.operators import Actor
from kms.policy.history import PolicySignature, SignatureFormat
from kms.policy.sshsig import armored
from kms.remote_office.connection import Connection
from kms.strict_json import JsonValue


class RemotePolicies:
    """Implements `kms.administration.office.PolicyWork`; see there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def status(self, _: Actor) -> Json:
        """Give what is in force."""
        return await self._connection.get("/v1/policy")

    async def history(self, _: Actor, *, before: int | None, limit: int) -> Json:
        """Give changes, newest first."""
        return await self._connection.get("/v1/policy/changes", {"before": before, "limit": limit})

    async def revision(self, _: Actor, revision: str) -> Json:
        """Give a revision."""
        return await self._connection.get(f"/v1/policy/revisions/{quote(revision, safe='')}")

    async def diff(self, _: Actor, *, old: str | None, new: str | Files) -> Json:
        """Say what `new` changes."""
        if isinstance(new, str):
            return await self._connection.get("/v1/policy/diff", {"from": old, "to": new})
        return await self._connection.post("/v1/policy/diff", {"files": _texts(new), "from": old})

    async def lint(self, _: Actor, files: Files) -> Json:
        """Find what is wrong with a policy."""
        return await self._connection.post("/v1/policy/lint", {"files": _texts(files)})

    async def what_if(self, _: Actor, new: str | Files, *, since: timedelta) -> Json:
        """Judge recorded guests by a candidate."""
        body = {**_candidate(new), "since_seconds": whole_seconds(since)}
        return await self._connection.post("/v1/policy/what-if", body)

    async def apply(
        self,
        _: Actor,
        new: str | Files,
        *,
        message: str,
        expect: str | None,
        gate: timedelta | None = None,
        lift_revocations: bool = False,
    ) -> Json:
        """Put a policy in force, or propose it."""
        body = {
            **_candidate(new),
            "message": message,
            "expect": expect,
            "gate_seconds": None if gate is None else whole_seconds(gate),
            "lift_revocations": lift_revocations,
        }
        return await self._connection.post("/v1/policy/apply", body)

    async def rollback(self, _: Actor, revision: str, *, message: str, expect: str | None) -> Json:
        """Put an earlier revision in force again."""
        body = {"revision": revision, "message": message, "expect": expect}
        return await self._connection.post("/v1/policy/rollback", body)

    async def revoke(self, _: Actor, kind: str, value: str, *, reason: str) -> Json:
        """Revoke one thing."""
        body = {"kind": kind, "value": value, "reason": reason}
        return await self._connection.post("/v1/policy/revocations", body)

    async def proposals(self, _: Actor) -> Json:
        """Give what waits for signatures."""
        return await self._connection.get("/v1/policy/proposals")

    async def proposal(self, _: Actor, revision: str) -> Json:
        """Give the current proposal of a revision."""
        return await self._connection.get(f"/v1/policy/proposals/{quote(revision, safe='')}")

    async def propose(
        self, _: Actor, new: str | Files, *, message: str, lift_revocations: bool = False
    ) -> Json:
        """Propose a policy for signing."""
        body = {**_candidate(new), "message": message, "lift_revocations": lift_revocations}
        return await self._connection.post("/v1/policy/proposals", body)

    async def sign(self, _: Actor, revision: str, signature: PolicySignature) -> Json:
        """Add a signature to the current proposal of a revision."""
        body: dict[str, JsonValue] = {"format": signature.format.value}
        if signature.format is SignatureFormat.SSHSIG:
            body["signature"] = armored(signature)
        else:
            body["public_key"] = b64url(signature.public_key)
            body["signature"] = b64url(signature.signature)
        return await self._connection.post(
            f"/v1/policy/proposals/{quote(revision, safe='')}/signatures", body
        )


def whole_seconds(span: timedelta) -> int:
    """Give a span as routes take it: begun seconds count."""
    return -(-span // timedelta(seconds=1))


def _candidate(new: str | Files) -> dict[str, JsonValue]:
    return {"revision": new} if isinstance(new, str) else {"files": _texts(new)}


def _texts(files: Files) -> dict[str, JsonValue]:
    texts: dict[str, JsonValue] = {}
    for name, content in files.items():
        try:
            texts[name] = content.decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedRequest(f"{name}: not UTF-8, which a policy is written in") from None
    return texts
