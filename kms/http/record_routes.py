"""`/v1/releases` as operators read it, `/v1/verifications` and `/v1/images`."""

from kms.administration.office import ImageWork, Json, RecordWork
from kms.http import record_schemas as shapes
from kms.http.operator_endpoint import Asked, OperatorRoutes
from kms.http.operator_parameters import (
    AFTER,
    APP,
    BEFORE_ID,
    CHIP,
    CODE,
    IMAGE,
    LIMIT,
    OF_IMAGE,
    OUTCOME,
    RELEASE_ID,
    SINCE,
    UNTIL,
    moment,
)
from kms.operator_ports import RecordFilter
from kms.request import MAX_REQUEST


def add_record_routes(routes: OperatorRoutes, records: RecordWork) -> None:
    """Register what reads the record of decisions, and what judges evidence."""

    @routes.route(
        "GET",
        "/v1/releases",
        shapes.ReleasesAnswer,
        summary="Releases and refusals, newest first",
        parameters=(LIMIT, BEFORE_ID, SINCE, UNTIL, APP, OF_IMAGE, CHIP, OUTCOME, CODE),
        refusals=("not-found",),
    )
    async def releases(asked: Asked) -> Json:
        wanted = RecordFilter(
            since=asked[SINCE],
            until=asked[UNTIL],
            app=asked[APP],
            image=asked[OF_IMAGE],
            chip=asked[CHIP],
            outcome=asked[OUTCOME],
            code=asked[CODE],
            before=asked[BEFORE_ID],
        )
        return await records.releases(asked.actor, wanted, limit=asked[LIMIT])

    @routes.route(
        "GET",
        "/v1/releases/{release_id}",
        shapes.EntryAnswer,
        summary="A recorded decision whole",
        parameters=(RELEASE_ID,),
    )
    async def release(asked: Asked) -> Json:
        return await records.release(asked.actor, asked[RELEASE_ID])

    @routes.route(
        "GET",
        "/v1/releases/{release_id}/explanation",
        shapes.ExplanationAnswer,
        summary="Why: every check, what was wanted, and which document and line says so",
        parameters=(RELEASE_ID,),
    )
    async def explanation(asked: Asked) -> Json:
        return await records.explain(asked.actor, asked[RELEASE_ID])

    @routes.route(
        "POST",
        "/v1/verifications",
        shapes.ExplanationAnswer,
        summary="Judge evidence: nothing is spent, no keys",
        body=shapes.VerificationBody,
        refusals=("malformed-evidence",),
    )
    async def verifications(asked: Asked) -> Json:
        body = await asked.body()
        evidence = body.take("evidence")
        request = body.base64("request", at_most=MAX_REQUEST) if body.has("request") else None
        at = body.convert("at", body.text("at"), moment) if body.has("at") else None
        body.end()
        return await records.verify(asked.actor, evidence, request=request, at=at)


def add_image_routes(routes: OperatorRoutes, images: ImageWork) -> None:
    """Register what reads the images of the policy in force."""

    @routes.route(
        "GET",
        "/v1/images",
        shapes.ImagesAnswer,
        summary="The images of the policy in force, by name",
        parameters=(LIMIT, AFTER),
    )
    async def listed(asked: Asked) -> Json:
        return await images.images(asked.actor, after=asked[AFTER], limit=asked[LIMIT])

    # Names of images may hold slashes.
    @routes.route(
        "GET",
        "/v1/images/{image:path}/measurements",
        shapes.MeasurementsAnswer,
        summary="Every measurement that an image may show",
        parameters=(IMAGE, LIMIT, AFTER),
    )
    async def measurements(asked: Asked) -> Json:
        return await images.measurements(asked.actor, asked[IMAGE], after=asked[AFTER], limit=asked[LIMIT])
