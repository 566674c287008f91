"""`/v1/keys`: the epochs of the root and the generations of the identity. No secret passes here."""

from typing import Final

from kms.administration.office import Json, KeyWork
from kms.http import key_schemas as shapes
from kms.http.operator_endpoint import Asked, OperatorRoutes
from kms.http.operator_parameters import APP, EPOCH, SINCE_SECONDS, moment
from kms.http.policy_bodies import span_in
from kms.keys.epochs import LATELY

_CHANGES: Final = ("keys-conflict", "root-key-unavailable")


def add_key_routes(routes: OperatorRoutes, keys: KeyWork) -> None:
    """Register what reads epochs, and what changes them."""

    @routes.route(
        "GET",
        "/v1/keys",
        shapes.KeysAnswer,
        summary="Epochs, and generations of the identity",
        description="The epochs also while the root does not answer.",
    )
    async def listed(asked: Asked) -> Json:
        return await keys.keys(asked.actor)

    @routes.route(
        "POST",
        "/v1/keys/rotate",
        shapes.EpochAnswer,
        summary="Make the next epoch",
        description="It is current now, or from `at` on. An epoch that waits for its time gets this one.",
        body=shapes.RotateBody,
        refusals=_CHANGES,
    )
    async def rotate(asked: Asked) -> Json:
        body = await asked.body()
        at = body.convert("at", body.text("at"), moment) if body.has("at") else None
        body.end()
        return await keys.rotate(asked.actor, at=at)

    @routes.route(
        "POST",
        "/v1/keys/epochs/{epoch}/retire",
        shapes.RetiredAnswer,
        summary="Give keys of an epoch to nobody any more",
        description="Refused while a guest that was seen lately is still of it or older, unless forced.",
        parameters=(EPOCH,),
        body=shapes.RetireBody,
        refusals=("keys-conflict", "epoch-in-use"),
    )
    async def retire(asked: Asked) -> Json:
        body = await asked.body()
        seen_within = span_in(body, "seen_within_seconds") if body.has("seen_within_seconds") else LATELY
        force = body.boolean("force") if body.has("force") else False
        body.end()
        return await keys.retire(asked.actor, asked[EPOCH], seen_within=seen_within, force=force)

    @routes.route(
        "GET",
        "/v1/keys/rotation",
        shapes.RotationAnswer,
        summary="Which epochs guests took",
        parameters=(APP, SINCE_SECONDS),
    )
    async def rotation(asked: Asked) -> Json:
        return await keys.rotation(asked.actor, app=asked[APP], since=asked[SINCE_SECONDS])

    # A body all the same: a web page can send a request without one in the name of an operator whose browser
    # holds a client certificate.
    @routes.route(
        "POST",
        "/v1/keys/identity",
        shapes.NewGenerationAnswer,
        summary="Make the next generation of the KMS identity",
        description="Servers use it once they were started again; the old one signs who follows it.",
        body=shapes.RotateIdentityBody,
        refusals=_CHANGES,
    )
    async def rotate_identity(asked: Asked) -> Json:
        (await asked.body()).end()
        return await keys.rotate_identity(asked.actor)
