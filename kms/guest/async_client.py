"""The guest's client for programs that run on asyncio.

Asking is little work and much that blocks where asyncio cannot help: the hardware's report is a read of a
file in configfs, or an ioctl. So each fetch is `KeyClient`'s, in a thread of its own, and the event loop only
waits. There is one protocol to review, and its deadline is what ends a fetch that nobody waits for any more:
cancelled, it has no time left.
"""

from collections.abc import Sequence

from kms.guest.client import BaseClient
from kms.guest.threads import unblocked
from kms.keys.envelope import Payload
from kms.keys.names import KeyRequest
from kms.policy.question import AppClaim


class AsyncKeyClient(BaseClient):
    """Fetches keys from one server, for asyncio; made as `KeyClient` is."""

    async def fetch(
        self,
        keys: Sequence[KeyRequest],
        *,
        app_document: bytes | None = None,
        app: AppClaim | None = None,
        csr: bytes | None = None,
    ) -> Payload:
        """Do as `KeyClient.fetch` does, and raise what it raises, without blocking the event loop.

        Cancelled, it leaves the server within a fraction of a second. A report that the hardware is making is
        waited for, so that its entry in configfs is removed: some milliseconds, and up to the source's
        patience (10 s) where a host keeps its hardware busy. When the cancellation comes out of here, nothing
        goes on.
        """
        return await unblocked(
            lambda stop: self._fetch(keys, app_document, app, csr, stop), name="attested-kms-fetch"
        )
