"""What can go wrong, as types. Nothing here carries text that a stranger may read.

::

    KmsError
    ├── Malformed                 the bytes are not what the format says          400
    │   ├── MalformedRequest
    │   └── MalformedEvidence
    ├── TooLarge                  more bytes than the protocol allows             413
    ├── ChallengeInvalid                                                          400
    ├── ChallengeExpired                                                          410
    ├── ChallengeUsed                                                             409
    ├── Unavailable               we could not get what we need; try again        503
    │   ├── CollateralUnavailable
    │   ├── RootKeyUnavailable
    │   └── LedgerUnavailable
    ├── OperatorRefusal           an operator's request cannot be met; it says why, with values
    │   ├── Unauthenticated                                                       401
    │   ├── Forbidden                                                             403
    │   ├── NotFound                                                              404
    │   ├── PolicyConflict, PolicyGated, OperatorExists, KeysConflict, EpochInUse  409
    │   └── PolicyRefused                                                         422
    └── ConfigurationError        the operator must change something; start-up and commands only

A refusal (untrusted evidence, unknown measurement, a policy's "no") is not an exception: it is a value
that carries every reason (`kms.checks.Check`).
"""

from collections.abc import Mapping
from typing import ClassVar


class KmsError(Exception):
    """Base of everything the project raises on purpose.

    `detail` is for operators: it may name offsets, lengths and expectations, never a secret. A guest is
    told only `code` and `reason`.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, *, reason: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.reason = reason or self.code


class Malformed(KmsError):
    """Input that is not of its format. Raised before anything expensive happens."""


class MalformedRequest(Malformed):
    """The release request, or the JSON around it, is not as the protocol says."""

    code = "malformed-request"


class MalformedEvidence(Malformed):
    """The evidence is not as the protocol or the SNP ABI says."""

    code = "malformed-evidence"


class TooLarge(KmsError):
    """The body, the request or the app document is longer than the protocol allows."""

    code = "too-large"


class ChallengeInvalid(KmsError):
    """The challenge was not made by this KMS."""

    code = "challenge-invalid"


class ChallengeExpired(KmsError):
    """The challenge is genuine and too old."""

    code = "challenge-expired"


class ChallengeUsed(KmsError):
    """The challenge was already spent by an authentic request."""

    code = "challenge-used"


class Unavailable(KmsError):
    """Something we depend on did not answer. The guest starts again with a new challenge.

    `retry_after` is in whole seconds.
    """

    def __init__(self, detail: str, *, reason: str | None = None, retry_after: int = 2) -> None:
        super().__init__(detail, reason=reason)
        self.retry_after = retry_after


class CollateralUnavailable(Unavailable):
    """An endorsement certificate or CRL could not be had, and nothing says that it does not exist."""

    code = "collateral-unavailable"


class NobodyToAsk(CollateralUnavailable):
    """No key distribution service is configured: only an operator can bring what is missing."""


class CollateralUnknown(KmsError):
    """AMD's key distribution service says that there is no such certificate or list (404)."""

    code = "evidence-untrusted"


class RootKeyUnavailable(Unavailable):
    """The root key provider did not answer, or answered wrongly."""

    code = "root-key-unavailable"


class LedgerUnavailable(Unavailable):
    """The decision could not be made durable, so no key may leave."""

    code = "ledger-unavailable"


class RateLimited(Unavailable):
    """Somebody asks too often; `reason` says by what they were counted."""

    code = "rate-limited"


class OperatorRefusal(KmsError):
    """A request of an operator that cannot be met.

    `details` are JSON members with values, for the operator's own eyes: guests never meet this error.
    """

    def __init__(
        self, detail: str, *, reason: str | None = None, details: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(detail, reason=reason)
        self.details = dict(details or {})


class Unauthenticated(OperatorRefusal):
    """Nobody that this KMS knows: no token or certificate, or one that does not count (any more)."""

    code = "unauthenticated"


class Forbidden(OperatorRefusal):
    """The operator's role does not include this."""

    code = "forbidden"


class NotFound(OperatorRefusal):
    """There is no such revision, release, image or operator."""

    code = "not-found"


class PolicyConflict(OperatorRefusal):
    """Another revision is in force than the operator thought; `details` say which, and what changed."""

    code = "policy-conflict"


class PolicyGated(OperatorRefusal):
    """The change would newly refuse guests that were seen lately; `details` name them."""

    code = "policy-gated"


class PolicyRefused(OperatorRefusal):
    """A policy with errors (`details` hold the findings), or a change that cannot be made or signed."""

    code = "policy-invalid"


class OperatorExists(OperatorRefusal):
    """There is an operator of this name, or with this certificate."""

    code = "operator-exists"


class KeysConflict(OperatorRefusal):
    """Somebody else changed the epochs, or the identity, just now; or the change makes no sense as it is."""

    code = "keys-conflict"


class EpochInUse(OperatorRefusal):
    """Guests that were seen lately did not move on to a newer epoch; `details` name them."""

    code = "epoch-in-use"


class ConfigurationError(KmsError):
    """The operator must change something. `remedy` says what, in a sentence."""

    code = "configuration"

    def __init__(self, detail: str, *, remedy: str = "") -> None:
        super().__init__(detail)
        self.remedy = remedy
