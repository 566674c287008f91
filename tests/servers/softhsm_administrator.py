"""What an HSM's administrator does to the keys of a root, in a process of its own."""

from collections.abc import Mapping

import pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass, SecretKey, Session

from kms.rootkey.pkcs11_uri import Pkcs11Uri

PROPER = {
    Attribute.CLASS: ObjectClass.SECRET_KEY,
    Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
    Attribute.TOKEN: True,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
    Attribute.DERIVE: False,
}


def show(uri: str, epoch: int, attributes: tuple[str, ...]) -> list[dict[str, object]]:
    where, session = _log_in(uri)
    with session:
        return [{name: key[Attribute[name]] for name in attributes} for key in _keys(session, where, epoch)]


def count(uri: str) -> int:
    where, session = _log_in(uri)
    with session:
        return len(list(session.get_objects({Attribute.LABEL: where.object})))


def put(uri: str, epoch: int, secret: bytes | None, attributes: Mapping[str, bool]) -> None:
    where, session = _log_in(uri)
    with session:
        different = {Attribute[name]: value for name, value in attributes.items()}
        value = secret or session.generate_random(512)
        session.create_object({**PROPER, **_named(where, epoch), **different, Attribute.VALUE: value})


def destroy(uri: str, epoch: int) -> None:
    where, session = _log_in(uri)
    with session:
        for key in _keys(session, where, epoch):
            key.destroy()


def _log_in(uri: str) -> tuple[Pkcs11Uri, Session]:
    where = Pkcs11Uri.parse(uri.removeprefix("pkcs11:"))
    token = pkcs11.lib(str(where.module)).get_token(token_label=where.token)
    return where, token.open(rw=True, user_pin=where.pin_file.read_text().rstrip("\n"))


def _named(where: Pkcs11Uri, epoch: int) -> dict[Attribute, object]:
    return {Attribute.LABEL: where.object, Attribute.ID: epoch.to_bytes(8, "big")}


def _keys(session: Session, where: Pkcs11Uri, epoch: int) -> list[SecretKey]:
    return [each for each in session.get_objects(_named(where, epoch)) if isinstance(each, SecretKey)]
