"""The ledger as anybody may follow it: checkpoint, tiles, key and proofs, from a server that is not believed.

What comes is only as good as what it is checked against: a key that was pinned, or a checkpoint from before.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kms.errors import KmsError
from kms.guest.errors import AnswerRejected, Refused, ServerUnreachable
from kms.guest.patience import Patience
from kms.guest.published import follow_identity
from kms.guest.transport import Answer
from kms.keys.identity import SignatureInvalid
from kms.keys.signed import Signed
from kms.ledger.checkpoint import Checkpoint, open_checkpoint
from kms.ledger.ledger_key import LedgerKey
from kms.ledger.merkle import (
    HASH_LENGTH,
    consistency_proof,
    consistency_subtrees,
    verify_consistency,
)
from kms.ledger.proofs import InclusionProof
from kms.ledger.tiles import (
    DATA_LEVEL,
    TileInvalid,
    TileName,
    entry_bundle,
    hashes_from_tiles,
    tiles_needed,
)
from kms.ledger_publishing import NOT_YET
from kms.strict_json import Fields, JsonError

_PREFIX = HASH_LENGTH.to_bytes(2, "big")  # of each entry in a bundle


class NotAppendOnly(KmsError):
    """The ledger is not what it was: an alarm, whatever the server says of it.

    Reasons: ``ledger-cut`` (it has fewer entries than were seen), ``ledger-forked`` (what was seen is not its
    beginning). `note` is the checkpoint that shows it, empty where the server says that there is none:
    together with the one from before, signed by the same key, it proves to anybody what happened.
    """

    code = "not-append-only"

    def __init__(self, detail: str, *, reason: str, note: str) -> None:
        super().__init__(detail, reason=reason)
        self.note = note


class NotShown(KmsError):
    """There is a newer checkpoint, and nobody answers for the tiles that would prove what it continues.

    Once that is an outage. A server that forked, and wants to be waited for, looks the same.
    """

    code = "not-shown"


@dataclass(frozen=True, slots=True)
class PublishedLedger:
    """A server's ledger. `patience` gives the deadline for one answer, tries included."""

    patience: Callable[[], Patience]

    def checkpoint(self) -> str:
        """Fetch the newest checkpoint, a signed note; nothing is verified.

        Raises:
            Refused: the server's "no": it has none, say.
            ServerUnreachable, ServerUntrusted, AnswerRejected: as `KeyClient.fetch`.

        """
        try:
            return self._get("/ledger/checkpoint").body.decode("utf-8")
        except UnicodeDecodeError:
            raise AnswerRejected("the checkpoint is not text", reason="answer-malformed") from None

    def tile(self, name: TileName) -> bytes:
        """Fetch a tile: `name.width` hashes, or digests, of 32 bytes, not verified. Raises as above."""
        body = self._get(f"/ledger/{name.path()}").body
        if name.level == DATA_LEVEL:
            step = len(_PREFIX) + HASH_LENGTH
            bundle = body
            body = b"".join(body[start + len(_PREFIX) : start + step] for start in range(0, len(body), step))
            if entry_bundle(body) != bundle:
                raise AnswerRejected(f"{name.path()} is no bundle of digests", reason="answer-malformed")
        if len(body) != name.width * HASH_LENGTH:
            raise AnswerRejected(f"{name.path()} has another length", reason="answer-malformed")
        return body

    def key(self, pinned: bytes) -> LedgerKey:
        """Fetch the ledger's key, for which the pinned KMS identity (32 bytes), or a later one, vouches.

        Raises:
            AnswerRejected: it does not; or as above.

        """
        try:
            fields = Fields(self._get("/v1/ledger").json(), "ledger")
            for known in ("origin", "key", "size"):
                fields.take(known)
            signed = Signed.read(fields)
            key = LedgerKey.verify(signed)
        except SignatureInvalid as error:
            raise AnswerRejected(error.detail, reason=error.reason) from None
        except JsonError as error:
            raise AnswerRejected(str(error), reason="answer-malformed") from None
        server = self.patience()
        server.persist(lambda: follow_identity(server, pinned, signed.identity))
        return key

    def proof(self, release_id: str) -> InclusionProof:
        """Fetch the proof that a release is in the ledger; nothing is verified.

        Raises:
            Refused: nothing of this id is in the ledger, or not yet; or as above.
            ProofInvalid: the answer is no proof.

        """
        return InclusionProof.read(self._get(f"/v1/ledger/proofs/{release_id}").json())

    def advance(self, seen: Checkpoint | None, key: str) -> tuple[str, Checkpoint]:
        """Fetch the newest checkpoint, and make sure that it continues the one that was seen.

        Raises:
            CheckpointInvalid: the ledger's key did not sign it.
            NotAppendOnly: it does not continue what was seen.
            NotShown: whether it does cannot be told now.
            Refused, ServerUnreachable, ServerUntrusted, AnswerRejected: as above.

        """
        try:
            note = self.checkpoint()
        except Refused as refusal:
            if seen is None or NOT_YET not in refusal.problem.reasons:
                raise
            raise NotAppendOnly(
                f"the server says that there is no checkpoint, and there was one of {seen.size} entries",
                reason="ledger-cut",
                note="",
            ) from None
        now = open_checkpoint(note, key)
        if seen is not None:
            self._require_continued(seen, now, note)
        return note, now

    def _require_continued(self, seen: Checkpoint, now: Checkpoint, note: str) -> None:
        if now.size < seen.size:
            raise NotAppendOnly(
                f"the ledger has {now.size} entries, and had {seen.size}", reason="ledger-cut", note=note
            )
        tiles: dict[tuple[int, int], bytes] = {}
        try:
            for name in tiles_needed(consistency_subtrees(seen.size, now.size), now.size):
                tiles[name.level, name.number] = self.tile(name)
            hashes = hashes_from_tiles(lambda level, number: tiles[level, number])
            proof = consistency_proof(seen.size, now.size, hashes)
        except (Refused, TileInvalid) as error:
            # A server that cannot show that it only added is no better than one that did not.
            raise NotAppendOnly(
                f"the server does not show that its {now.size} entries continue the {seen.size} that were"
                f" seen: {error.detail}",
                reason="ledger-forked",
                note=note,
            ) from None
        except ServerUnreachable as error:
            raise NotShown(
                f"there is a checkpoint of {now.size} entries, and no answer that shows that it continues the"
                f" {seen.size} that were seen: {error.detail}"
            ) from None
        if not verify_consistency(seen.size, seen.root, now.size, now.root, proof):
            raise NotAppendOnly(
                f"the {seen.size} entries that were seen are not the first of the {now.size} of now",
                reason="ledger-forked",
                note=note,
            )

    def _get(self, path: str) -> Answer:
        server = self.patience()
        return server.persist(lambda: server.get(path))
