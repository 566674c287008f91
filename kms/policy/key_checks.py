"""Checks of what the guest asks for: each key, and what its scope needs to be proven."""

from collections.abc import Iterator

from kms.boot_info import BootInfo
from kms.checks import Check
from kms.keys.names import KeyKind, KeyRequest, Scope
from kms.policy.checking import check
from kms.policy.documents import AppDocument
from kms.policy.question import Ask
from kms.snp.flags import Signer


def key_checks(app: AppDocument, boot_info: BootInfo, ask: Ask) -> Iterator[Check]:
    """Check every requested key, and that there is one."""
    yield check("keys-asked", bool(ask.keys), f"{len(ask.keys)} key(s) asked for", "no-key-asked")
    for request in ask.keys:
        yield from _key_checks(app, boot_info, request)


def _key_checks(app: AppDocument, boot_info: BootInfo, request: KeyRequest) -> Iterator[Check]:
    shown = f"{request.name}@{request.scope}"
    yield check("key-allowed", _allowed(app, request), shown, "key-not-allowed")
    if request.scope is Scope.INSTANCE:
        bound = boot_info.instance_id is not None
        yield check("key-instance", bound, f"{shown} needs a bound instance_id", "instance-unbound")
    if request.scope is Scope.CHIP:
        bound = boot_info.signer is Signer.VCEK and boot_info.chip_id is not None
        yield check("key-chip", bound, f"{shown} needs a chip that a VCEK proves", "chip-unbound")
    if request.name.kind is KeyKind.TLS:
        detail = "the app has no `tls`" if app.tls is None else "the app's `tls` says what to certify"
        yield check("key-tls", app.tls is not None, detail, "tls-not-configured")


def _allowed(app: AppDocument, request: KeyRequest) -> bool:
    for pattern in app.keys:  # noqa: SIM110 - a loop is half the time of any() here, once for each key
        if pattern.allows(request):
            return True
    return False
