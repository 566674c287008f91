"""What a KMS publishes, read by whoever trusts no network: its hand-overs, and an app's env key."""

from datetime import datetime
from typing import Final

from kms.guest.errors import AnswerRejected, Refused
from kms.guest.patience import Patience
from kms.identifiers import AppId
from kms.keys.env_key import EnvKey, EnvKeyRejected, read_env_key
from kms.keys.envelope import EnvelopeRejected
from kms.keys.hand_over import MAX_HAND_OVERS, follow
from kms.keys.signed import Signed
from kms.strict_json import Fields, JsonError

_IDENTITY: Final = "/v1/identity"


def fetch_hand_overs(server: Patience) -> tuple[Signed, ...]:
    """Fetch the KMS's hand-overs, oldest first, nothing verified; none where the server has no such route.

    Raises:
        AnswerRejected: the answer is not of its form.

    """
    try:
        answer = server.get(_IDENTITY)
    except Refused:
        return ()
    try:
        fields = Fields(answer.json(), "identity")
        items = fields.array("previous", at_most=MAX_HAND_OVERS)
        return tuple(Signed.read(Fields(item, "hand-over")) for item in items)
    except JsonError as error:
        raise AnswerRejected(str(error), reason="answer-malformed") from None


def follow_identity(server: Patience, pinned: bytes, claimed: bytes) -> None:
    """Check that an identity that signed (32 bytes) is the pinned one, or that hand-overs lead there from it.

    Raises:
        AnswerRejected: neither; reason ``identity-mismatch``.

    """
    if claimed == pinned:
        return  # and nothing need be asked
    try:
        follow(pinned, fetch_hand_overs(server), claimed)
    except EnvelopeRejected as error:
        raise AnswerRejected(error.detail, reason=error.reason) from None


def fetch_env_key(
    server: Patience, app_id: AppId, epoch: int | None, *, pinned: bytes | None, now: datetime
) -> EnvKey:
    """Fetch the public key to seal an app's environment to; of `epoch`, or of the one that its guests get.

    `pinned` is the KMS's identity; None takes the key of any KMS behind the CA.

    Raises:
        Refused: the server's "no": it does not publish such a key.
        AnswerRejected: not this app's key, not of this epoch, old, or by another KMS.

    """
    query = "" if epoch is None else f"?epoch={epoch}"
    answer = server.get(f"/v1/apps/{app_id.hex()}/env-key{query}")
    try:
        signed = Signed.read(Fields(answer.json(), "env-key"))
    except JsonError as error:
        raise AnswerRejected(str(error), reason="answer-malformed") from None
    try:
        key = read_env_key(signed, app_id=app_id, epoch=epoch, now=now)
    except EnvKeyRejected as error:
        raise AnswerRejected(error.detail, reason=error.reason) from None
    if pinned is not None:
        follow_identity(server, pinned, key.identity)
    return key
