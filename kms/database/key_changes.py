"""What may be changed of epochs and generations, and how it is said that it may not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from kms.database.key_rows import EpochsUntrusted
from kms.errors import KeysConflict
from kms.keys.epochs import Epoch, KeyProgress
from kms.ledger.entries import timestamp
from kms.operator_ports import Generation

_log = structlog.get_logger("kms.keys")

_SAY_EVERY: Final = 600.0  # seconds


class Alarm:
    """Says in the log that something must not be used, once in a while. `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._said_at = float("-inf")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Report `EpochsUntrusted`, which goes on."""
        try:
            yield
        except EpochsUntrusted as error:
            now = self._monotonic()
            if now - self._said_at >= _SAY_EVERY:
                self._said_at = now
                _log.error("epochs-untrusted", cause=error.detail)
            raise


def require_progress(progress: KeyProgress, seen: KeyProgress) -> None:
    """Go on only if nothing of what was `seen` is missing. Raises `EpochsUntrusted`."""
    if progress.includes(seen):
        return
    detail = f"the database says {progress}, and this server has seen {seen}: an older copy of the database"
    if replace(progress, in_use=seen.in_use).includes(seen):
        detail += ", or a clock that was set back. If it is the clock: `kms keys rotate`"
    raise EpochsUntrusted(detail)


def require_newest(progress: KeyProgress, seen: KeyProgress) -> None:
    """Let a backup be restored only if it knows every epoch, retirement and generation that there was.

    Which epoch was in use is left out: one that waits by the backup is used when its time comes, or by
    ``kms keys rotate``.

    Raises:
        KeysConflict: it does not.

    """
    unknown = [f"the retirement of epoch {each}" for each in sorted(seen.retired - progress.retired)]
    if seen.epochs > progress.epochs:
        unknown.append(f"epoch {seen.epochs}")
    if seen.generations > progress.generations:
        unknown.append(f"generation {seen.generations} of the identity")
    if unknown:
        raise KeysConflict(f"the backup does not know {', '.join(unknown)}; nothing was changed")


def taken(what: str, there: Epoch | Generation) -> KeysConflict:
    """Say that somebody else made an epoch or generation (`what`) of this number."""
    made_at = timestamp(there.made_at)
    return KeysConflict(
        f"{there.made_by} made {what} {there.number} at {made_at}; nothing was changed",
        details={what: there.number, "made_by": there.made_by, "made_at": made_at},
    )


def require_unchanged(old: Epoch, found: Epoch | None) -> None:
    """Go on only if an epoch is as it was when somebody decided on it. Raises `KeysConflict`."""
    if found is not None and found.retired_at is not None and old.retired_at is None:
        raise KeysConflict(
            f"{found.retired_by} retired epoch {old.number} at {timestamp(found.retired_at)};"
            " nothing was changed"
        )
    if found != old:
        raise KeysConflict(f"somebody else changed epoch {old.number} just now; nothing was changed")


def require_move(old: Epoch, new: Epoch, now: datetime) -> None:
    """Let an epoch get another time while it waits for it.

    Raises:
        KeysConflict: its time has come.
        ValueError: `new` differs in anything else.

    """
    if new != replace(old, active_from=new.active_from):
        raise ValueError("only the time of an epoch is moved")
    if old.active_from <= now:
        raise KeysConflict(f"the time of epoch {old.number} has come; nothing was changed")


def require_retirement(old: Epoch, new: Epoch) -> None:
    """Let an epoch end, once. Raises `ValueError`: it had ended, does not, or differs in anything else."""
    ended = replace(old, retired_at=new.retired_at, retired_by=new.retired_by)
    if old.retired_at is not None or new.retired_at is None or new != ended:
        raise ValueError("an epoch ends once, and nothing else of it changes then")
