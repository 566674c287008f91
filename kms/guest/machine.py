"""This machine as a guest: what its configuration says, checked before it asks, and keys fetched with it."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx2

from kms.errors import ConfigurationError, KmsError
from kms.guest import hardware
from kms.guest.async_client import AsyncKeyClient
from kms.guest.client import BaseClient, KeyClient
from kms.guest.collection import BUSY_PATIENCE
from kms.guest.config import GuestConfig
from kms.guest.errors import AppDocumentRefused
from kms.guest.host_files import TooLong, read_parts
from kms.guest.patience import Patience
from kms.guest.threads import unblocked
from kms.guest.transport import Connection
from kms.guest.workload import check_workload, compose_hash_of, workload_copied
from kms.https_client import client_context, https_url
from kms.identifiers import ComposeHash
from kms.keys.envelope import Payload
from kms.keys.names import KeyRequest
from kms.strict_json import Fields, JsonError

# `GuestMachine.fetch`, for keys alone.
Fetch = Callable[[Sequence[KeyRequest]], Payload]
C = TypeVar("C", bound=BaseClient)

_log: Final = logging.getLogger(__name__)

MAX_DOCUMENT: Final = 64 << 10  # bytes; the protocol, section 1
_MAX_EPOCHS: Final = 4096
_HINT_WITHIN: Final = 10.0  # seconds; a boot must not wait longer for what it can do without
_EXCHANGE: Final = 5.0


class GuestMachine:
    """Fetches keys as `config` says. `transport` is for tests.

    It keeps no key, and reads the app document and the workload anew each time. Like its clients it may be
    used by many threads and tasks at once.

    Raises:
        ConfigurationError: the server's address is none, or the CA cannot be used.

    """

    def __init__(self, config: GuestConfig, *, transport: httpx2.BaseTransport | None = None) -> None:
        # A service with a wrong configuration ends at its start, and not when the first one asks.
        https_url(config.server)
        client_context(config.ca)
        self.config: Final = config
        self._transport = transport

    def fetch(self, keys: Sequence[KeyRequest], *, csr: bytes | None = None) -> Payload:
        """Prove what this machine is and give the verified keys in the order asked.

        First the workload is held against the document, then the document against this machine's own report,
        and only then is anything asked of the server but a challenge.

        Raises:
            WorkloadRefused: the workload is another one than the document names.
            ConfigurationError: a file cannot be read, or there is nothing to hold the workload against.
            KmsError: all that `KeyClient.fetch` raises.

        """
        with ExitStack() as stack:
            document = self._document(stack)
            return self._client(KeyClient).fetch(keys, app_document=document, app=self.config.app, csr=csr)

    async def fetch_async(self, keys: Sequence[KeyRequest], *, csr: bytes | None = None) -> Payload:
        """Do as `fetch` does, and raise what it raises, without blocking the event loop.

        Cancelled, it ends as `AsyncKeyClient.fetch` does; a workload that is being read is read to its end.
        """
        with ExitStack() as stack:
            document = await unblocked(lambda _: self._document(stack), name="attested-kms-workload")
            client = self._client(AsyncKeyClient)
            return await client.fetch(keys, app_document=document, app=self.config.app, csr=csr)

    def newest_epoch(self) -> int | None:
        """Give the epoch that the server says is current: a hint, as nothing but TLS says whose it is.

        None where it says none that can be understood, or does not answer within 10 seconds.
        """
        config = self.config
        try:
            with Connection(
                config.server, ca_file=config.ca, timeout=_EXCHANGE, transport=self._transport
            ) as connection:
                server = Patience(connection, deadline=min(config.deadline, _HINT_WITHIN))
                answer = server.persist(lambda: server.get("/v1/identity"))
            epochs = Fields(answer.json(), "identity").array("epochs", at_least=1, at_most=_MAX_EPOCHS)
            newest = epochs[-1]
            if type(newest) is not int or newest < 1:
                raise JsonError("its newest epoch is none")
        except (KmsError, JsonError) as error:
            _log.warning("the server's current epoch is not known: %s", error)
            return None
        return newest

    def _client(self, kind: type[C]) -> C:
        config = self.config
        options: dict[str, Any] = {} if config.suite is None else {"suite": config.suite}
        source = hardware.evidence_source(
            config.evidence, launch=config.launch, patience=min(BUSY_PATIENCE, config.deadline)
        )
        return kind(
            config.server,
            ca_file=config.ca,
            identity=config.identity,
            source=source,
            deadline=config.deadline,
            transport=self._transport,
            **options,
        )

    def _document(self, stack: ExitStack) -> bytes | None:
        """Read the app document, if there is one, and hold the workload against it.

        A copy of the workload is there when `stack` ends without an error.
        """
        path = self.config.app_document
        document = None if path is None else read_document(path)
        workload, copy = self.config.workload, self.config.workload_copy
        if workload is None:
            if copy is not None:
                raise ConfigurationError("a place for a copy of the workload, and no workload")
        elif copy is None:
            check_workload(workload, self._compose_hash(document))
        else:
            stack.enter_context(workload_copied(workload, copy, self._compose_hash(document)))
        return document

    def _compose_hash(self, document: bytes | None) -> ComposeHash:
        claim = self.config.app
        if document is not None:
            return compose_hash_of(document)
        if claim is not None and claim.compose_hash is not None:
            return claim.compose_hash
        raise ConfigurationError(
            "a workload, and nothing that says which it must be",
            remedy="name the app document, or the compose hash of the measured command line",
        )


def read_document(path: Path) -> bytes:
    """Read an app document, which is not believed yet.

    Raises:
        AppDocumentRefused: it is longer than `MAX_DOCUMENT`.
        ConfigurationError: it cannot be read.

    """
    try:
        return b"".join(read_parts(path, at_most=MAX_DOCUMENT))
    except TooLong as error:
        raise AppDocumentRefused(error.detail, reason="app-document-unreadable") from None
