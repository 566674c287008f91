"""A guest that fetches keys without a KMS, for tests of the services that hand them out."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from kms.identifiers import AppId
from kms.keys.envelope import Payload
from kms.keys.names import DSTACK_KINDS, KeyRequest
from kms.keys.released import ReleasedKey

EPOCH = 7


def value(key: KeyRequest) -> bytes:
    """Give the value of a key; another question has another."""
    return sha256(f"{key.name}@{key.scope}#{key.epoch}".encode()).digest()


@dataclass
class Machine:
    """Fetches keys, of `EPOCH` unless another is asked for, or fails; neither while `held` is not set."""

    asked: list[KeyRequest] = field(default_factory=list)
    failure: Exception | None = None
    held: threading.Event | None = None

    def fetch(self, keys: Sequence[KeyRequest]) -> Payload:
        [key] = keys
        self.asked.append(key)
        if self.held is not None:
            assert self.held.wait(60)
        if self.failure is not None:
            raise self.failure
        epoch = None if key.name.kind in DSTACK_KINDS else key.epoch or EPOCH
        released = ReleasedKey(name=key.name, scope=key.scope, epoch=epoch, value=value(key))
        return Payload(release_id="r", app_id=AppId(b"a" * 20), keys=(released,), identity=b"i" * 32)
