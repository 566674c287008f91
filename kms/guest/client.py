"""The guest's client: challenge, request, evidence, keys, and every binding of the answer checked.

::

    source = evidence_source(EvidenceOptions())
    client = KeyClient("https://kms:8443", ca_file=ca, identity=pin, source=source)
    payload = client.fetch([KeyRequest.parse("disk", "app")], app_document=document)

The identity is pinned because TLS says only which server answers: an impostor who hands out a disk key
that it knows reads the disk (field lesson 29). The pin belongs in the measured image or command line.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx2

from kms.encoding import b64url
from kms.errors import ConfigurationError
from kms.evidence.app_document import AppIdentity
from kms.guest.errors import AnswerRejected, AppDocumentRefused
from kms.guest.evidence import EvidenceSource, check_app_document, read_report
from kms.guest.patience import Patience
from kms.guest.published import fetch_hand_overs, follow_identity
from kms.guest.request import build_request
from kms.guest.transport import Answer, Connection
from kms.https_client import https_url
from kms.identifiers import AppId
from kms.keys.envelope import EnvelopeRejected, Payload, open_envelope
from kms.keys.hand_over import leads
from kms.keys.names import KeyRequest
from kms.keys.opening import CannotOpen, RecipientKey
from kms.keys.released import ReleasedKey
from kms.keys.sealing import Suite
from kms.keys.signed import Signed
from kms.policy.question import AppClaim
from kms.request import ReleaseRequest
from kms.strict_json import Fields, JsonError, parse

IDENTITY_LENGTH: Final = 32  # Ed25519
_MAX_CHALLENGE: Final = 256
_MAX_SEALED: Final = 1 << 20
_random = random.SystemRandom()


class BaseClient:
    """What `KeyClient` and `kms.guest.async_client.AsyncKeyClient` are made of: the whole protocol, once.

    `identity` is the pinned 32-byte KMS identity; None takes keys from any KMS behind the CA. `deadline`
    is for all that a `fetch` asks the server, `timeout` for one exchange, both in seconds; both hold
    whatever the server does. A report that the hardware is making when they end is waited for: some
    milliseconds, and up to the source's patience (10 s) where a host keeps its hardware busy. `transport`,
    `clock`, `sleep` and `jitter` (0 to 1) are for tests.

    Raises:
        ConfigurationError: the address, the identity or a time is none.

    A client holds no connection and nothing that changes: it may be used by many threads and tasks at once.
    """

    def __init__(
        self,
        server_url: str,
        *,
        ca_file: Path | None,
        identity: bytes | None,
        source: EvidenceSource,
        suite: Suite = Suite.HPKE_MLKEM768X25519,
        deadline: float = 60.0,
        timeout: float = 15.0,
        transport: httpx2.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        jitter: Callable[[], float] = _random.random,
    ) -> None:
        https_url(server_url)
        if identity is not None and len(identity) != IDENTITY_LENGTH:
            raise ConfigurationError(f"a KMS identity is {IDENTITY_LENGTH} bytes")
        if not all(math.isfinite(value) and value > 0 for value in (deadline, timeout)):
            # No time is ever later than NaN: the guest would try for ever.
            raise ConfigurationError("a deadline or timeout is not a time in seconds, more than 0")
        self._server_url = server_url
        self._ca_file = ca_file
        self._identity = identity
        self._source = source
        self._suite = suite
        self._deadline = deadline
        self._timeout = timeout
        self._transport = transport
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter

    def _fetch(
        self,
        keys: Sequence[KeyRequest],
        app_document: bytes | None,
        app: AppClaim | None,
        csr: bytes | None,
        stop: threading.Event | None = None,
    ) -> Payload:
        """Do what `KeyClient.fetch` says; when another thread sets `stop`, end as at the deadline."""
        with Connection(
            self._server_url, ca_file=self._ca_file, timeout=self._timeout, transport=self._transport
        ) as connection:
            server = Patience(
                connection,
                deadline=self._deadline,
                clock=self._clock,
                sleep=self._sleep if stop is None else stop.wait,
                jitter=self._jitter,
                stopped=(lambda: False) if stop is None else stop.is_set,
            )
            return server.persist(
                lambda: self._attempt(
                    server,
                    lambda challenge, recipient: build_request(challenge, recipient, keys, app, csr=csr),
                    app_document,
                    None if app is None else app.app_id,
                )
            )

    def _attempt(
        self,
        server: Patience,
        write_request: Callable[[bytes, RecipientKey], ReleaseRequest],
        app_document: bytes | None,
        known: AppId | None,
    ) -> Payload:
        """Go the whole way once: after a lost answer a challenge may be spent, so each try has its own."""
        challenge = _read_challenge(server.post("/v1/challenges", {}, expected=201))
        recipient = RecipientKey.generate(self._suite)
        request = write_request(challenge, recipient)
        evidence = self._source.evidence(request.report_data)
        report = read_report(evidence, request.report_data)
        if app_document is not None:
            bound = check_app_document(app_document, report)
            self._check_kms_of(bound, server)
            known = bound.app_id
            evidence["app_document"] = b64url(app_document)
        answer = server.post(
            "/v1/releases", {"request": b64url(request.raw), "evidence": evidence}, expected=200
        )
        return self._open(answer, server, recipient, request, known)

    def _check_kms_of(self, document: AppIdentity, server: Patience) -> None:
        """Refuse an app document for another KMS than the pinned one, whichever generation it names."""
        named, pinned = document.kms_identity, self._identity
        if named is None or pinned is None or named == pinned:
            return
        hand_overs = fetch_hand_overs(server)
        if not (leads(pinned, hand_overs, named) or leads(named, hand_overs, pinned)):
            raise AppDocumentRefused("the app document names another KMS", reason="kms-identity-differs")

    def _open(
        self,
        answer: Answer,
        server: Patience,
        recipient: RecipientKey,
        request: ReleaseRequest,
        known: AppId | None,
    ) -> Payload:
        """Open an answer and check everything that binds it to what was asked."""
        try:
            fields = Fields(answer.json(), "answer")
            release_id, suite = fields.text("release_id", at_most=128), fields.text("suite", at_most=128)
            sealed = fields.base64("sealed", at_most=_MAX_SEALED)
            receipt = fields.take("receipt") if fields.has("receipt") else None
        except JsonError as error:
            raise AnswerRejected(str(error), reason="answer-malformed") from None
        if suite != recipient.suite:
            raise AnswerRejected("sealed with another suite than asked", reason="suite-mismatch")
        try:
            payload = self._verify(recipient.open(sealed, request.digest), server, request)
        except (CannotOpen, EnvelopeRejected) as error:
            raise AnswerRejected(error.detail, reason=error.reason) from None
        if payload.release_id != release_id:
            raise AnswerRejected("the signed release id is another", reason="release-mismatch")
        if known is not None and payload.app_id != known:
            raise AnswerRejected("keys of another app", reason="app-mismatch")
        asked = request.ask.keys
        if len(payload.keys) != len(asked) or not all(map(_answers, payload.keys, asked)):
            raise AnswerRejected("other keys than those asked for", reason="keys-mismatch")
        return replace(payload, receipt=receipt)

    def _verify(self, envelope: bytes, server: Patience, request: ReleaseRequest) -> Payload:
        """Open an envelope of the pinned KMS, or of an identity that the pinned one handed over to."""
        pinned, digest = self._identity, request.digest
        try:
            return open_envelope(envelope, pinned_identity=pinned, request_sha512=digest)
        except EnvelopeRejected as error:
            if pinned is None or error.reason != "identity-mismatch":
                raise
        signer = Signed.read(Fields(parse(envelope), "envelope")).identity
        follow_identity(server, pinned, signer)
        return open_envelope(envelope, pinned_identity=signer, request_sha512=digest)


class KeyClient(BaseClient):
    """Fetches keys from one server."""

    def fetch(
        self,
        keys: Sequence[KeyRequest],
        *,
        app_document: bytes | None = None,
        app: AppClaim | None = None,
        csr: bytes | None = None,
    ) -> Payload:
        """Prove what this machine is, and give the verified keys in the order asked.

        `app` is needed when a measured command line names the app, instead of an app document. With `csr`, a
        certificate request (PKCS#10, DER) of this machine's own P-256 key, a ``tls`` key comes as
        certificates alone.

        Raises:
            EvidenceError: the hardware gave no evidence.
            AppDocumentRefused: the document is not this machine's; nothing was asked.
            Refused: the server's "no". It is not asked again.
            ServerUnreachable: no answer before the deadline, or none that would come before it.
            ServerUntrusted, AnswerRejected: not the server that was meant, or not the answer to this request.
            MalformedRequest, ConfigurationError: what was asked, or with what, makes no sense.

        """
        return self._fetch(keys, app_document, app, csr)


def _answers(key: ReleasedKey, wanted: KeyRequest) -> bool:
    """Say whether a key is the one that was asked for; of a certificate, whether it is for the right key."""
    if (key.name, key.scope) != (wanted.name, wanted.scope) or wanted.epoch not in {None, key.epoch}:
        return False
    if wanted.certificate_for is None:
        return key.value is not None
    return key.value is None and key.public_key == wanted.certificate_for


def _read_challenge(answer: Answer) -> bytes:
    try:
        return Fields(answer.json(), "challenge").base64("challenge", at_most=_MAX_CHALLENGE)
    except JsonError as error:
        raise AnswerRejected(str(error), reason="answer-malformed") from None
