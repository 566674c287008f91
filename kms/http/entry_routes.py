"""`/v1/ledger/entries`: the ledger's entries, for auditors."""

from kms.administration.office import Json, LedgerWork
from kms.http import ledger_schemas as shapes
from kms.http.operator_endpoint import Asked, OperatorRoutes
from kms.http.operator_parameters import ENTRY, FROM_INDEX, KIND, LIMIT


def add_entry_routes(routes: OperatorRoutes, ledger: LedgerWork) -> None:
    """Register what reads the ledger's entries."""

    @routes.route(
        "GET",
        "/v1/ledger/entries",
        shapes.LedgerEntriesAnswer,
        summary="Entries of the ledger, by index",
        description="Of one kind there may be fewer on a page than `limit`, or none; `next` goes on.",
        parameters=(FROM_INDEX, LIMIT, KIND),
    )
    async def entries(asked: Asked) -> Json:
        return await ledger.entries(
            asked.actor, start=asked[FROM_INDEX], limit=asked[LIMIT], kind=asked[KIND]
        )

    @routes.route(
        "GET",
        "/v1/ledger/entries/{entry}",
        shapes.LedgerEntryAnswer,
        summary="One entry of the ledger, by its index or id",
        parameters=(ENTRY,),
    )
    async def entry(asked: Asked) -> Json:
        return await ledger.entry(asked.actor, asked[ENTRY])
