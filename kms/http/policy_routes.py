"""`/v1/policy`: what is in force, its history, and changing it."""

from typing import Final

from kms.administration.office import Json, PolicyWork
from kms.http import candidate_schemas as candidates
from kms.http import policy_schemas as shapes
from kms.http.operator_endpoint import Asked, OperatorRoutes
from kms.http.operator_parameters import BEFORE_CHANGE, FROM, LIMIT, REVISION, TO
from kms.http.policy_bodies import (
    candidate,
    expected,
    lifts_revocations,
    line_in,
    optional_revision_in,
    policy_files,
    prose_in,
    revision_in,
    signature_in,
    span_in,
)

_CHANGES: Final = ("policy-conflict", "policy-invalid")


def add_policy_routes(routes: OperatorRoutes, policies: PolicyWork) -> None:
    """Register what reads policies, and what changes them."""
    _add_reading(routes, policies)
    _add_changing(routes, policies)
    _add_signing(routes, policies)


def _add_reading(routes: OperatorRoutes, policies: PolicyWork) -> None:
    @routes.route("GET", "/v1/policy", shapes.StatusAnswer, summary="What is in force")
    async def status(asked: Asked) -> Json:
        return await policies.status(asked.actor)

    @routes.route(
        "GET",
        "/v1/policy/changes",
        shapes.HistoryAnswer,
        summary="Every change of policy, newest first",
        parameters=(LIMIT, BEFORE_CHANGE),
    )
    async def history(asked: Asked) -> Json:
        return await policies.history(asked.actor, before=asked[BEFORE_CHANGE], limit=asked[LIMIT])

    @routes.route(
        "GET",
        "/v1/policy/revisions/{revision}",
        shapes.RevisionAnswer,
        summary="A revision's documents and files",
        parameters=(REVISION,),
    )
    async def show(asked: Asked) -> Json:
        return await policies.revision(asked.actor, asked[REVISION])

    @routes.route(
        "GET",
        "/v1/policy/diff",
        shapes.DiffAnswer,
        summary="What one revision changes of another",
        parameters=(FROM, TO),
        refusals=("not-found",),
    )
    async def diff(asked: Asked) -> Json:
        return await policies.diff(asked.actor, old=asked[FROM], new=asked[TO])

    @routes.route(
        "POST",
        "/v1/policy/diff",
        shapes.DiffAnswer,
        summary="What a policy would change",
        body=candidates.DiffBody,
        refusals=("not-found", "policy-invalid"),
    )
    async def diff_files(asked: Asked) -> Json:
        async with asked.long_body() as body:
            files = policy_files(body)
            old = optional_revision_in(body, "from")
            body.end()
            return await policies.diff(asked.actor, old=old, new=files)

    @routes.route(
        "POST",
        "/v1/policy/lint",
        candidates.LintAnswer,
        summary="What is wrong with a policy",
        body=candidates.PolicyFilesBody,
    )
    async def lint(asked: Asked) -> Json:
        async with asked.long_body() as body:
            files = policy_files(body)
            body.end()
            return await policies.lint(asked.actor, files)

    @routes.route(
        "POST",
        "/v1/policy/what-if",
        candidates.WhatIfAnswer,
        summary="Which recorded guests a policy would newly refuse or allow",
        body=candidates.WhatIfBody,
        refusals=("not-found", "policy-invalid"),
    )
    async def what_if(asked: Asked) -> Json:
        async with asked.long_body() as body:
            new = candidate(body)
            since = span_in(body, "since_seconds")
            body.end()
            return await policies.what_if(asked.actor, new, since=since)


def _add_changing(routes: OperatorRoutes, policies: PolicyWork) -> None:
    @routes.route(
        "POST",
        "/v1/policy/apply",
        shapes.OutcomeAnswer,
        summary="Put a policy in force",
        description="Where signatures are needed and not all there, the change becomes a proposal.",
        body=candidates.ApplyBody,
        refusals=("not-found", *_CHANGES, "policy-gated"),
    )
    async def apply(asked: Asked) -> Json:
        async with asked.long_body() as body:
            new, message = candidate(body), prose_in(body, "message")
            lift = lifts_revocations(body)
            expect = expected(body)
            gate = span_in(body, "gate_seconds") if body.has("gate_seconds") else None
            body.end()
            return await policies.apply(
                asked.actor, new, message=message, expect=expect, gate=gate, lift_revocations=lift
            )

    @routes.route(
        "POST",
        "/v1/policy/rollback",
        shapes.OutcomeAnswer,
        summary="Put an earlier revision in force again",
        description="What is revoked now stays revoked.",
        body=shapes.RollbackBody,
        refusals=("not-found", *_CHANGES),
    )
    async def rollback(asked: Asked) -> Json:
        body = await asked.body()
        target, message = revision_in(body, "revision"), prose_in(body, "message")
        expect = expected(body)
        body.end()
        return await policies.rollback(asked.actor, target, message=message, expect=expect)

    @routes.route(
        "POST",
        "/v1/policy/revocations",
        shapes.OutcomeAnswer,
        summary="Revoke one thing",
        body=shapes.RevocationBody,
        refusals=_CHANGES,
    )
    async def revoke(asked: Asked) -> Json:
        body = await asked.body()
        kind, value = line_in(body, "kind"), line_in(body, "value")
        reason = prose_in(body, "reason")
        body.end()
        return await policies.revoke(asked.actor, kind, value, reason=reason)


def _add_signing(routes: OperatorRoutes, policies: PolicyWork) -> None:
    @routes.route("GET", "/v1/policy/proposals", shapes.ProposalsAnswer, summary="What waits for signatures")
    async def proposals(asked: Asked) -> Json:
        return await policies.proposals(asked.actor)

    @routes.route(
        "POST",
        "/v1/policy/proposals",
        shapes.ProposalAnswer,
        summary="Propose a policy for signing",
        body=candidates.ProposeBody,
        refusals=("not-found", *_CHANGES),
    )
    async def propose(asked: Asked) -> Json:
        async with asked.long_body() as body:
            new, message = candidate(body), prose_in(body, "message")
            lift = lifts_revocations(body)
            body.end()
            return await policies.propose(asked.actor, new, message=message, lift_revocations=lift)

    @routes.route(
        "GET",
        "/v1/policy/proposals/{revision}",
        shapes.ProposalAnswer,
        summary="The current proposal of a revision, with the statement to sign",
        parameters=(REVISION,),
    )
    async def proposal(asked: Asked) -> Json:
        return await policies.proposal(asked.actor, asked[REVISION])

    @routes.route(
        "POST",
        "/v1/policy/proposals/{revision}/signatures",
        shapes.ProposalAnswer,
        summary="Add a signature to a proposal",
        parameters=(REVISION,),
        body=shapes.NewSignatureBody,
        refusals=("policy-invalid",),
    )
    async def sign(asked: Asked) -> Json:
        body = await asked.body()
        signature = signature_in(body)
        body.end()
        return await policies.sign(asked.actor, asked[REVISION], signature)
