"""What a restore works with before the root is back: its place, and the database by the copy's own key."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from kms.administration.permission import Journal
from kms.administration.restoring import RootRestoring, require_mode
from kms.database.actions import ActionStore
from kms.database.keys import KeyStore
from kms.database.recording import Recorder
from kms.keys.root_copy import RootCopy
from kms.keys.row_seal import RowSeal
from kms.ledger.sealed_entry import EntrySeal
from kms.preflight import check_settings
from kms.root_place import ConfiguredRoot
from kms.settings import Settings
from kms.wiring.stores import new_id, open_stores, utc_now


@asynccontextmanager
async def open_restoring(settings: Settings, root: RootCopy) -> AsyncIterator[RootRestoring]:
    """Open the settings' database, which may be a new one, to put a root back; no root is opened or made.

    Raises:
        ConfigurationError: the operator must change something; it says what.

    """
    checked = check_settings(settings, serving=False)
    require_mode(root, checked.root_access.mode)
    recorder = Recorder(EntrySeal(root.entries_prf()), settings.server_name)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(checked.anchor.close)
        stores = await stack.enter_async_context(open_stores(settings))
        yield RootRestoring(
            place=ConfiguredRoot(checked.root_key_uri, checked.root_access, utc_now),
            values=stores.installation,
            register=KeyStore(
                stores.engine, utc_now, RowSeal(root.rows_prf()), anchor=checked.anchor, recorder=recorder
            ),
            journal=Journal(actions=ActionStore(stores.engine, recorder), clock=utc_now, new_id=new_id),
            anchor=checked.anchor.place,
        )
