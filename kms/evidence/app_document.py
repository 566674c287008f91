"""The app document: JSON whose exact bytes HOST_DATA commits to.

The host chooses HOST_DATA, so a document proves an app only under an image that itself refuses to run
anything else (protocol section 3): that is policy's question, and `kms.policy` asks it.
"""

from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from kms.errors import MalformedEvidence
from kms.identifiers import AppId, ComposeHash, InstanceId
from kms.measurement.images import Binding
from kms.strict_json import Fields, JsonError, parse_object

# dstack's MrConfigV3 (dstack-types): HOST_DATA = SHA-256("dstack-mr-config-v3:" || 0x00 || document).
_DSTACK_PREFIX: Final = b"dstack-mr-config-v3:\x00"
_IDENTITY_LENGTH: Final = 32
_DSTACK_KEY_PROVIDERS: Final = ("none", "local", "kms", "tpm")
_MAX_INIT_SCRIPTS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class AppIdentity:
    """Who the app is, and what binds that to the report.

    `kms_identity` is the 32-byte identity that the document wants its keys from, where it names one.
    """

    app_id: AppId
    compose_hash: ComposeHash
    instance_id: InstanceId | None
    binding: Binding
    kms_identity: bytes | None = None


def host_data_of(document: bytes, binding: Binding) -> bytes:
    """Give the HOST_DATA (32 bytes) that commits to a document under a binding.

    Raises:
        ValueError: the binding does not use HOST_DATA.

    """
    if binding is Binding.HOST_DATA:
        return sha256(document).digest()
    if binding is Binding.DSTACK_MR_CONFIG:
        return sha256(_DSTACK_PREFIX + document).digest()
    raise ValueError("this binding does not use HOST_DATA")


def bind_document(document: bytes, host_data: bytes) -> AppIdentity | None:
    """Give the identity that a document states, if HOST_DATA commits to its exact bytes; else None.

    The hash decides which kind of document it is; only then is it parsed.

    Raises:
        MalformedEvidence: HOST_DATA commits to it, and it is not a document of its kind.

    """
    for binding, parse in ((Binding.HOST_DATA, _parse_own), (Binding.DSTACK_MR_CONFIG, _parse_dstack)):
        if compare_digest(host_data_of(document, binding), host_data):
            try:
                return parse(Fields(parse_object(document), "app_document"))
            except JsonError as error:
                raise MalformedEvidence(f"app document: {error}", reason="app-document-unreadable") from error
    return None


def _parse_own(fields: Fields) -> AppIdentity:
    fields.integer("version", minimum=1, maximum=1)
    identity = AppIdentity(
        app_id=fields.hex("app_id", AppId),
        compose_hash=fields.hex("compose_hash", ComposeHash),
        instance_id=fields.hex("instance_id", InstanceId) if fields.has("instance_id") else None,
        kms_identity=_key(fields) if fields.has("kms_identity") else None,
        binding=Binding.HOST_DATA,
    )
    fields.end()
    return identity


def _parse_dstack(fields: Fields) -> AppIdentity:
    """Read MrConfigV3 (dstack-types/src/mr_config.rs). What we do not use is still checked for shape."""
    if fields.has("version"):
        fields.integer("version", minimum=3, maximum=3)
    identity = AppIdentity(
        app_id=fields.hex("app_id", AppId),
        compose_hash=fields.hex("compose_hash", ComposeHash),
        instance_id=fields.hex("instance_id", InstanceId) if fields.has("instance_id") else None,
        binding=Binding.DSTACK_MR_CONFIG,
    )
    if fields.has("gpu_policy_hash"):
        fields.hex("gpu_policy_hash", ComposeHash)
    if fields.has("key_provider") and fields.text("key_provider", at_most=16) not in _DSTACK_KEY_PROVIDERS:
        fields.fail("`key_provider` is not one of dstack's")
    if fields.has("key_provider_id"):
        fields.hex("key_provider_id", bytes)
    if fields.has("init_script_hashes"):
        fields.texts("init_script_hashes", at_most=_MAX_INIT_SCRIPTS)
    fields.end()
    return identity


def _key(fields: Fields) -> bytes:
    key = fields.base64("kms_identity", at_most=_IDENTITY_LENGTH)
    if len(key) != _IDENTITY_LENGTH:
        fields.fail(f"`kms_identity` must be {_IDENTITY_LENGTH} bytes")
    return key
