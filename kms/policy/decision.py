"""The decision: may this guest have these keys under this policy? Every check is made and told.

The answer is a value. A "no" carries every reason and not only the first, so that one round is enough to
find out what to change; a "yes" can be made here only, so holding one proves that every check passed.
"""

from dataclasses import InitVar, dataclass
from typing import Final, TypeAlias

from kms.boot_info import BootInfo
from kms.checks import Check, failures
from kms.policy.app_checks import app_checks, identity_checks, launch_checks
from kms.policy.compiled import Policy
from kms.policy.documents import AppDocument
from kms.policy.guest_checks import guest_checks
from kms.policy.key_checks import key_checks
from kms.policy.platform_checks import chip_checks, revocation_checks, tcb_checks
from kms.policy.question import AppClaim, Ask, Context

__all__ = ["Allowed", "AppClaim", "Ask", "Context", "Decision", "Denied", "decide"]

_HERE: Final = object()  # whoever has it is this module


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """A "yes", made by `decide` only: these keys, for this guest, under this revision (`sha256:<hex>`)."""

    boot_info: BootInfo
    app: AppDocument
    ask: Ask
    revision: str
    checks: tuple[Check, ...]
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _HERE:
            raise TypeError("only `decide` makes an Allowed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Denied:
    """A "no" under this revision. `checks` are all that were made, passed ones too."""

    boot_info: BootInfo
    ask: Ask
    revision: str
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reason codes for the guest, each once; never empty."""
        return failures(self.checks)


Decision: TypeAlias = Allowed | Denied


def decide(policy: Policy, boot_info: BootInfo, ask: Ask, context: Context) -> Decision:
    """Judge. It never raises: whatever cannot be told is a check that failed.

    An app that is not listed has no documents to be judged by; what is revoked is still said.
    """
    app = None if boot_info.app_id is None else policy.compiled_app(boot_info.app_id)
    checks = [
        *identity_checks(app, boot_info, ask, context),
        *revocation_checks(policy, boot_info),
    ]
    if app is not None:
        checks += app_checks(app, boot_info, context)
        checks += launch_checks(policy, app, boot_info, context)
        checks += chip_checks(policy, app, boot_info, context.now)
        checks += tcb_checks(app, boot_info, context.now)
        checks += guest_checks(app.guest, boot_info, context)
        checks += key_checks(app.document, boot_info, ask)
    if app is None or failures(checks):
        return Denied(boot_info=boot_info, ask=ask, revision=policy.revision, checks=tuple(checks))
    return Allowed(
        boot_info=boot_info,
        app=app.document,
        ask=ask,
        revision=policy.revision,
        checks=tuple(checks),
        made_by=_HERE,
    )
