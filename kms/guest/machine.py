"""This machine as a guest: what its configuration says, checked before it asks, and keys fetched with it."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from kms.errors import ConfigurationError, KmsError
from kms.guest import hardware
from kms.guest.client import KeyClient
from kms.guest.config import GuestConfig
from kms.guest.errors import AppDocumentRefused
from kms.guest.patience import Patience
from kms.guest.transport import Connection
from kms.guest.workload import check_workload, compose_hash_of, copy_workload
from kms.keys.envelope import Payload
from kms.keys.names import KeyRequest
from kms.strict_json import Fields, JsonError

_log: Final = logging.getLogger(__name__)

MAX_DOCUMENT: Final = 64 << 10  # bytes; the protocol, section 1
_MAX_EPOCHS: Final = 4096
_HINT_WITHIN: Final = 10.0  # seconds; a boot must not wait longer for what it can do without
_EXCHANGE: Final = 5.0


class GuestMachine:
    """Fetches keys as `config` says. `transport` is for tests.

    It keeps no key, and reads the app document and the workload anew each time.
    """

    def __init__(self, config: GuestConfig, *, transport: httpx2.BaseTransport | None = None) -> None:
        self._config = config
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
        config = self._config
        document = None if config.app_document is None else _read_document(config.app_document)
        self._check_workload(document)
        options: dict[str, Any] = {} if config.suite is None else {"suite": config.suite}
        client = KeyClient(
            config.server,
            ca_file=config.ca,
            identity=config.identity,
            source=hardware.evidence_source(config.evidence, launch=config.launch),
            deadline=config.deadline,
            transport=self._transport,
            **options,
        )
        return client.fetch(keys, app_document=document, app=config.app, csr=csr)

    def newest_epoch(self) -> int | None:
        """Give the epoch that the server says is current: a hint, as nothing but TLS says whose it is.

        None where it says none that can be understood, or does not answer within 10 seconds.
        """
        config = self._config
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

    def _check_workload(self, document: bytes | None) -> None:
        workload, copy, claim = self._config.workload, self._config.workload_copy, self._config.app
        if workload is None:
            if copy is not None:
                raise ConfigurationError("a place for a copy of the workload, and no workload")
            return
        if document is not None:
            wanted = compose_hash_of(document)
        elif claim is not None and claim.compose_hash is not None:
            wanted = claim.compose_hash
        else:
            raise ConfigurationError(
                "a workload, and nothing that says which it must be",
                remedy="name the app document, or the compose hash of the measured command line",
            )
        if copy is None:
            check_workload(workload, wanted)
        else:
            copy_workload(workload, copy, wanted)


def _read_document(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            document = file.read(MAX_DOCUMENT + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from error
    if len(document) > MAX_DOCUMENT:
        raise AppDocumentRefused(
            f"{path} is longer than {MAX_DOCUMENT} bytes", reason="app-document-unreadable"
        )
    return document
