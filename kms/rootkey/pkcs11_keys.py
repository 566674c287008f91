"""The keys of one root on a token, by blocking calls: for the library's thread only.

One HMAC key for each epoch: CKA_LABEL is the root's name, CKA_ID the epoch as 8 bytes, big-endian. A key has
64 bytes, as many as the hash gives: RFC 2104 section 3 discourages shorter ones, and SoftHSM refuses them.
"""

from collections.abc import Mapping, Sequence
from typing import Final, cast

import structlog
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, Object, ObjectClass, SecretKey, Session
from pkcs11.exceptions import (
    AttributeReadOnly,
    AttributeSensitive,
    AttributeTypeInvalid,
    AttributeValueInvalid,
    FunctionNotSupported,
    KeySizeRange,
    MechanismInvalid,
    TemplateIncomplete,
    TemplateInconsistent,
    TokenWriteProtected,
    UserNotLoggedIn,
)
from pkcs11.types import SignMixin

from kms.errors import ConfigurationError, KmsError, RootKeyUnavailable
from kms.keys.root_messages import FOUNDING_EPOCH, integer
from kms.rootkey.pkcs11_library import Library
from kms.rootkey.pkcs11_session import OpenSession, TokenSession
from kms.rootkey.pkcs11_uri import Pkcs11Uri
from kms.rootkey.provider import RootKeyMissing

_log = structlog.get_logger("kms.root-key")

_KEY_BITS: Final = 512
_MUST_BE: Final[Mapping[Attribute, bool]] = {
    Attribute.PRIVATE: True,  # else it answers without a PIN
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
    # A key that others can be derived from can be had piece by piece: Clulow, "On the Security of PKCS #11",
    # CHES 2003.
    Attribute.DERIVE: False,
}
_MAKES_NO_SUCH_KEYS: Final = (
    AttributeReadOnly,
    AttributeTypeInvalid,
    AttributeValueInvalid,
    FunctionNotSupported,
    KeySizeRange,
    MechanismInvalid,
    TemplateIncomplete,
    TemplateInconsistent,
    TokenWriteProtected,
)


class BeingMade(Exception):
    """Somebody else is making an epoch of this root, or was killed at it."""


class TokenKeys:
    """The keys that a URI names. Whatever it does may raise what `TokenSession.do` raises."""

    def __init__(self, library: Library, uri: Pkcs11Uri) -> None:
        self._token = TokenSession(library, uri)
        self._label = uri.object
        self.claim_label = f"{uri.object} (being made)"

    def sign(self, epoch: int, messages: Sequence[bytes]) -> tuple[bytes, ...]:
        """Give HMAC-SHA-512 of each message under the key of `epoch`.

        Raises:
            RootKeyUnavailable: reason ``root-epoch-missing``.
            ConfigurationError: as `versions`.

        """

        def job(opened: OpenSession) -> tuple[bytes, ...]:
            key = opened.keys.get(epoch) or self._look(opened).get(epoch)
            if key is None:
                raise RootKeyUnavailable(f"the token has no epoch {epoch}", reason="root-epoch-missing")
            return tuple(key.sign(each, mechanism=Mechanism.SHA512_HMAC) for each in messages)

        return self._token.do(job)

    def versions(self) -> tuple[int, ...]:
        """Look which epochs are there now, oldest first.

        Raises:
            RootKeyMissing: none.
            ConfigurationError: two keys of one epoch, a gap, or a key that may be taken out of the token.

        """
        return tuple(self._token.do(self._look))

    def make(self, epoch: int, mark: bytes) -> bool:
        """Make the key of `epoch`; say False if it is there already. `mark` is random, and new in each call.

        A token has no way to make a key only where there is none like it: two servers that look, and then
        make, make two. So each first makes another key, its claim. Who sees somebody else's too takes its own
        back and comes again; who sees only its own knows that whoever comes later sees it too.

        CKA_ID of a claim is that of the key and then the mark, so that our own is known in a new session too.

        Raises:
            BeingMade: there is another claim, or another process of this machine is at it.
            ConfigurationError: the token makes no such keys; or as `versions`.

        """
        claim, made = integer(epoch) + mark, False

        def job(opened: OpenSession) -> bool:
            nonlocal made
            # Done again in a new session, it finds what it made in the old one.
            made = self._make(opened, epoch, claim) or made
            self._look(opened)
            return made

        try:
            with self._token.alone_on_this_machine():
                try:
                    return self._token.do(job)
                finally:
                    self._take_back(claim)
        except BlockingIOError:
            raise BeingMade from None

    def close(self) -> None:
        """Close the session."""
        self._token.close()

    def _make(self, opened: OpenSession, epoch: int, claim: bytes) -> bool:
        session = opened.session
        if epoch in _usable(_find(session, self._label)):
            return False
        _generate(session, self.claim_label, claim)
        if {each.id for each in _find(session, self.claim_label)} != {claim}:
            raise BeingMade
        if epoch in _usable(_find(session, self._label)):
            return False
        _generate(session, self._label, integer(epoch))
        return True

    def _take_back(self, claim: bytes) -> None:
        """Destroy our claim, in a job of its own: a key that was made is made, whatever becomes of it."""

        def job(opened: OpenSession) -> None:
            if not opened.began_now:
                _require_logged_in(opened)
            for each in _find(opened.session, self.claim_label):
                if each.id == claim:
                    each.destroy()

        try:
            self._token.do(job)
        except KmsError as error:
            _log.warning("root-key-claim-left", label=self.claim_label, reason=error.reason)

    def _look(self, opened: OpenSession) -> dict[int, SignMixin]:
        if not opened.began_now:
            _require_logged_in(opened)
        found = _find(opened.session, self._label)
        if not found:
            raise RootKeyMissing(
                "the token has no key of this root",
                remedy="Restore the token from its backup; a new key would open no existing disk.",
            )
        opened.keys = _usable(found)
        return opened.keys


def _require_logged_in(opened: OpenSession) -> None:
    # A search by who is logged out finds no private key, and nothing says why. But a handle of one is invalid
    # for ever after a logout (PKCS#11 v2.40 section 5.6), and with a lost session.
    if not opened.keys:
        raise UserNotLoggedIn
    _told(next(iter(opened.keys.values())), Attribute.PRIVATE)


def _find(session: Session, label: str) -> list[SecretKey]:
    template = {Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.TOKEN: True, Attribute.LABEL: label}
    return [each for each in session.get_objects(template) if isinstance(each, SecretKey)]


def _generate(session: Session, label: str, key_id: bytes) -> None:
    try:
        session.generate_key(
            KeyType.GENERIC_SECRET,
            _KEY_BITS,
            id=key_id,
            label=label,
            store=True,
            capabilities=MechanismFlag.SIGN,
            template={
                Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
                Attribute.MODIFIABLE: False,
            },
        )
    except _MAKES_NO_SUCH_KEYS as error:
        raise ConfigurationError(
            f"the token makes no such key as a root's ({type(error).__name__})",
            remedy="Make it with the HSM's own program, as the operator's guide says.",
        ) from None


def _usable(found: Sequence[SecretKey]) -> dict[int, SignMixin]:
    """Give the keys by epoch, oldest first."""
    by_id = sorted(((key.id, key) for key in found), key=lambda pair: pair[0])
    epochs = range(FOUNDING_EPOCH, FOUNDING_EPOCH + len(by_id))
    if len({each for each, _ in by_id}) != len(by_id):
        raise _unusable("has two keys of one epoch", "Destroy the one that was never used.")
    if [each for each, _ in by_id] != [integer(epoch) for epoch in epochs]:
        raise _unusable(
            "has keys whose CKA_ID are not the epochs 1, 2, … (8 bytes, big-endian) without a gap"
        )
    for epoch, (_, key) in zip(epochs, by_id, strict=True):
        for attribute, wanted in _MUST_BE.items():
            if _told(key, attribute) is not wanted:
                raise _unusable(f"has a key of epoch {epoch} whose CKA_{attribute.name} is not {wanted}")
    return {epoch: cast("SignMixin", key) for epoch, (_, key) in zip(epochs, by_id, strict=True)}


def _told(key: Object, attribute: Attribute) -> bool | None:
    try:
        return bool(key[attribute])
    except (AttributeSensitive, AttributeTypeInvalid):
        return None  # what the token does not say does not count


def _unusable(what: str, remedy: str = "") -> ConfigurationError:
    return ConfigurationError(f"the token {what} (of this root's CKA_LABEL)", remedy=remedy)
