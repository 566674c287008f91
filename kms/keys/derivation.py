"""From an app's secret in an epoch to one released key.

::

    app secret = PRF(root of the epoch, label ROOT_APP || 0x00 || frame(app id))              64 bytes
    key        = HKDF-Expand-SHA-512(app secret, label APP_KEY || 0x00 || frame(fields), 32)
                 48 bytes for P-256, made a scalar by `kms.keys.p256`

HKDF-Extract is left out: the app secret is a PRF output, already uniform (RFC 5869 section 3.3). Each
field is framed by its length, so that no value slides into its neighbour (field lessons 27 and 31), and
the app id and epoch are fields again, so that a secret handed to the wrong call gives nobody's key.
"""

from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from kms.encoding import b64url
from kms.identifiers import AppId, ChipId, InstanceId
from kms.keys import p256
from kms.keys.identity import Identity
from kms.keys.names import DSTACK_KINDS, Algorithm, KeyKind, KeyRequest, Scope
from kms.keys.released import VALUE_LENGTH, ReleasedKey, public_half
from kms.keys.root_messages import integer, require_prf_output
from kms.keys.signed import Signed
from kms.labels import APP_KEY, SIGNING_STATEMENT, frame, labelled
from kms.strict_json import compact_json


def obstacle(request: KeyRequest, *, instance_id: InstanceId | None, chip_id: ChipId | None) -> str | None:
    """Give the reason code why a key cannot be derived, or None.

    ``instance-unbound`` (scope instance, and the bound identity has no instance id) or ``chip-unbound``
    (scope chip, and the report proves no chip). Policy makes a refusal of it before anything is derived.
    """
    if request.scope is Scope.INSTANCE and instance_id is None:
        return "instance-unbound"
    if request.scope is Scope.CHIP and chip_id is None:
        return "chip-unbound"
    return None


def derive(
    app_secret: bytes,
    request: KeyRequest,
    epoch: int,
    *,
    app_id: AppId,
    instance_id: InstanceId | None,
    chip_id: ChipId | None,
    identity: Identity,
) -> ReleasedKey:
    """Derive the key that the request names, in the epoch that was chosen for it.

    `app_secret` is the PRF's 64 bytes under that epoch for `root_messages.app_message`. The ids are the
    bound and proven ones, never the request's; each counts only for its own scope. `identity` signs the
    statement of a ``signing`` key. A ``tls`` key has no certificates yet (`kms.keys.certificates.certify`);
    where the guest wants one for a key of its own, no private key is derived.

    Raises:
        ValueError: `obstacle` has a reason against it (policy refuses such a request before), the app secret
            has another length, the request names another epoch, or a key of dstack's (`kms.keys.dstack`).

    """
    name = request.name
    if name.kind in DSTACK_KINDS:
        raise ValueError("a dstack key is not derived from an app's secret")
    reason = obstacle(request, instance_id=instance_id, chip_id=chip_id)
    if reason is not None:
        raise ValueError(f"asked to derive a key that policy should have refused: {reason}")
    if request.epoch not in {None, epoch}:
        raise ValueError("the request names another epoch")
    if request.certificate_for is not None:
        return ReleasedKey(
            name=name, scope=request.scope, epoch=epoch, value=None, public_key=request.certificate_for
        )
    scope_value = None
    if request.scope is not Scope.APP:
        scope_value = instance_id if request.scope is Scope.INSTANCE else chip_id
    fields = (
        app_id,
        integer(epoch),
        name.kind.encode("ascii"),
        name.path.encode("ascii"),
        request.scope.encode("ascii"),
        scope_value or b"",
        name.algorithm.encode("ascii"),
    )
    length = p256.MATERIAL_LENGTH if name.algorithm is Algorithm.P_256 else VALUE_LENGTH
    expand = HKDFExpand(SHA512(), length, labelled(APP_KEY, frame(*fields)))
    value = expand.derive(require_prf_output(app_secret))
    if name.algorithm is Algorithm.X25519:
        value = _clamp(value)
    elif name.algorithm is Algorithm.P_256:
        value = p256.to_pkcs8(p256.private_key(value))
    public_key = public_half(name.algorithm, value)
    statement = None
    if name.kind is KeyKind.SIGNING and public_key is not None:
        statement = Signed.by(identity, SIGNING_STATEMENT, signing_statement(app_id, epoch, public_key))
    return ReleasedKey(
        name=name,
        scope=request.scope,
        epoch=epoch,
        value=value,
        public_key=public_key,
        statement=statement,
    )


def signing_statement(app_id: AppId, epoch: int, public_key: bytes) -> bytes:
    """Give the JSON text by which the KMS identity vouches for an app's signing key (32 bytes)."""
    statement = {
        "app_id": app_id.hex(),
        "epoch": epoch,
        "algorithm": Algorithm.ED25519.value,
        "public_key": b64url(public_key),
    }
    return compact_json(statement)


def _clamp(scalar: bytes) -> bytes:
    """Clamp a private key as RFC 7748 section 5 decodes it, so that every library stores the same bytes."""
    return bytes([scalar[0] & 0xF8]) + scalar[1:31] + bytes([scalar[31] & 0x7F | 0x40])
