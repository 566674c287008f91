"""The operators' routes: all of an `Office`, for whoever the authentication knows."""

from datetime import timedelta
from typing import Final

from kms.administration.office import Json, Office, OperatorWork
from kms.http import operator_schemas as shapes
from kms.http.entry_routes import add_entry_routes
from kms.http.key_routes import add_key_routes
from kms.http.operator_endpoint import Asked, Authenticate, OperatorRoutes
from kms.http.operator_parameters import AFTER, BEFORE_ID, LIMIT, OPERATOR, printable, word_of
from kms.http.policy_routes import add_policy_routes
from kms.http.record_routes import add_image_routes, add_record_routes
from kms.operators import Role

_LONGEST_LIFE: Final = 100 * 365 * 86_400  # seconds; `OperatorWork.add` takes far less


def operator_routes(office: Office, authenticate: Authenticate) -> OperatorRoutes:
    """Make the routes that only operators may ask."""
    routes = OperatorRoutes(authenticate)
    add_policy_routes(routes, office.policies)
    add_record_routes(routes, office.records)
    add_image_routes(routes, office.images)
    add_key_routes(routes, office.keys)
    add_entry_routes(routes, office.ledger)
    _add_account_routes(routes, office.operators)
    return routes


def _add_account_routes(routes: OperatorRoutes, operators: OperatorWork) -> None:
    @routes.route(
        "GET",
        "/v1/operators",
        shapes.OperatorsAnswer,
        summary="Operators, by name",
        parameters=(LIMIT, AFTER),
    )
    async def listed(asked: Asked) -> Json:
        return await operators.operators(asked.actor, after=asked[AFTER], limit=asked[LIMIT])

    @routes.route(
        "POST",
        "/v1/operators",
        shapes.NewOperatorAnswer,
        status=201,
        summary="Add an operator",
        description="The token is shown this once.",
        body=shapes.NewOperatorBody,
        refusals=("operator-exists",),
    )
    async def add(asked: Asked) -> Json:
        body = await asked.body()
        name = body.convert("name", body.text("name"), printable)
        role = body.convert("role", body.text("role"), word_of(Role))
        life, subject = None, None
        if body.has("life_seconds"):
            life = timedelta(seconds=body.integer("life_seconds", minimum=1, maximum=_LONGEST_LIFE))
        if body.has("subject"):
            subject = body.convert("subject", body.text("subject"), printable)
        body.end()
        return await operators.add(asked.actor, name, role, life=life, subject=subject)

    @routes.route(
        "DELETE",
        "/v1/operators/{name}",
        shapes.OperatorAnswer,
        summary="End an operator's access, for ever",
        parameters=(OPERATOR,),
    )
    async def revoke(asked: Asked) -> Json:
        return await operators.revoke(asked.actor, asked[OPERATOR])

    @routes.route(
        "GET",
        "/v1/operators/actions",
        shapes.ActionsAnswer,
        summary="What operators did, newest first",
        parameters=(LIMIT, BEFORE_ID),
    )
    async def actions(asked: Asked) -> Json:
        return await operators.actions(asked.actor, before=asked[BEFORE_ID], limit=asked[LIMIT])
