"""Checks of what the guest asks for: each key, and what its scope needs to be proven."""

from collections.abc import Iterator

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.keys.derivation import obstacle
from kms.keys.dstack import dstack_obstacle
from kms.keys.names import DSTACK_KINDS, KeyKind, KeyRequest
from kms.policy.documents import DSTACK, AppDocument
from kms.policy.question import Ask
from kms.snp.flags import Signer


def key_checks(app: AppDocument, boot_info: BootInfo, ask: Ask) -> Iterator[Check]:
    """Check every requested key, and that there is one."""
    yield Check("keys-asked", bool(ask.keys), f"{len(ask.keys)} key(s) asked for", "no-key-asked")
    for request in ask.keys:
        yield from _key_checks(app, boot_info, request)


def _key_checks(app: AppDocument, boot_info: BootInfo, request: KeyRequest) -> Iterator[Check]:
    shown = f"{request.name}@{request.scope}"
    yield Check("key-allowed", _allowed(app, request), shown, "key-not-allowed")
    reason = _obstacle(app, boot_info, request)
    detail = f"{shown} can be derived for this guest" if reason is None else f"{shown}: {reason}"
    # A check that passed has a code as well, of those that it could have failed with.
    yield Check("key-derivable", reason is None, detail, reason or "instance-unbound")


def _allowed(app: AppDocument, request: KeyRequest) -> bool:
    for pattern in app.keys:  # noqa: SIM110 - a loop is half the time of any() here, once for each key
        if pattern.allows(request):
            return True
    return False


def _obstacle(app: AppDocument, boot_info: BootInfo, request: KeyRequest) -> str | None:
    if request.name.kind in DSTACK_KINDS:
        if app.compat != DSTACK:
            return "dstack-not-enabled"
        return dstack_obstacle(request, app_id=app.id, instance_id=boot_info.instance_id)
    if request.name.kind is KeyKind.TLS and (app.tls is None or not app.tls.names):
        return "tls-unnamed"
    # A VLEK report's CHIP_ID is the host's word: only a VCEK proves a chip.
    chip_id = boot_info.chip_id if boot_info.signer is Signer.VCEK else None
    return obstacle(request, instance_id=boot_info.instance_id, chip_id=chip_id)
