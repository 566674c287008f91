"""Keys as people write them: ``NAME[@SCOPE][#EPOCH]``."""

from kms.keys.names import DSTACK_KINDS, KeyName, KeyRequest, Scope


def parse_key(text: str, epoch: int | None = None) -> KeyRequest:
    """Read ``disk``, ``disk@chip``, ``custom:db/main@instance#2``; without ``@SCOPE`` the scope is app.

    `epoch` is that of a text that names none; dstack's keys have none.

    Raises:
        ValueError: no such key, scope or epoch; the message does not repeat the text.

    """
    words, numbered, number = text.partition("#")
    name_text, scoped, scope_text = words.partition("@")
    name, scope = KeyName.parse(name_text), Scope.parse(scope_text) if scoped else Scope.APP
    if not numbered:
        return KeyRequest(name, scope, None if name.kind in DSTACK_KINDS else epoch)
    try:
        asked = int(number, 0)
    except ValueError:
        raise ValueError("an epoch is a number, 1 or more") from None
    return KeyRequest(name, scope, asked)


def key_text(key: KeyRequest) -> str:
    """Give ``NAME@SCOPE``, without the epoch: what the tokens in our LUKS headers call a key."""
    return f"{key.name}@{key.scope}"
