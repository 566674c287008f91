"""A watched policy folder: the simple way to live with policies.

An edited folder becomes a revision if it is valid; while it is not, the revision in force stays in force
and `/readyz` and the log say what is wrong.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from kms.background import Background, collector_at_rest
from kms.errors import ConfigurationError, LedgerUnavailable
from kms.policy.findings import PolicyInvalid
from kms.policy.revision import Revision
from kms.policy_folder.reading import read_folder
from kms.ports import PolicyRevisions

_log = structlog.get_logger("kms.policy")

# Two looks must see the same, and the server follows at once: an edit is in force within 2 s.
_LOOK_EVERY: Final = 0.5  # seconds
_LOOKS_AT_START: Final = 20

Files = dict[str, bytes]


def read_policy(folder: Path, *, development: bool) -> tuple[Files, Revision]:
    """Read a policy folder and judge it.

    Raises:
        ConfigurationError: it cannot be read, or has errors: a server does not start on a broken policy.

    """
    files = read_folder(folder)
    try:
        return files, _judge(files, development=development)
    except PolicyInvalid as error:
        raise ConfigurationError(
            f"the policy in {folder} has errors: {error}",
            remedy=f"kms policy lint {folder} explains each",
        ) from error


def _judge(files: Files, *, development: bool) -> Revision:
    with collector_at_rest():
        return Revision.from_files(files, development=development)


class FolderWatcher:
    """Applies a folder whenever its digest differs from the folder digest that was applied last.

    So a folder that nobody edited does not undo what was applied by command since. Only what two looks in a
    row saw is applied: a folder that is being copied may be a valid policy before its `revoked` document is
    there. `applied` is called after a change, so that this server follows at once.
    """

    def __init__(
        self,
        folder: Path,
        store: PolicyRevisions,
        *,
        development: bool,
        applied: Callable[[], Awaitable[None]],
    ) -> None:
        self._folder = folder
        self._store = store
        self._development = development
        self._applied = applied
        self._last: Files | None = None  # what the last look saw
        self._judged: Files | None = None  # what is applied, or known to be invalid
        self._watcher = Background("policy-folder", self.look, pause=_LOOK_EVERY)
        self._ready: tuple[Files, Revision] | None = None  # judged, and still to be applied
        self._unsigned: str | None = None
        self._said: str | None = None
        self.failing = False

    @property
    def unsigned(self) -> bool:
        """Whether the folder, as it is, waits for operators' signatures."""
        return self._unsigned is not None

    @property
    def alive(self) -> bool:
        """Whether the folder is being watched."""
        return self._watcher.alive

    async def apply_at_start(self, first: Files) -> None:
        """Apply the folder before the server serves; `first` is what an earlier look saw.

        Raises:
            ConfigurationError: it cannot be read, has errors, or does not come to rest.
            LedgerUnavailable: it could not be written.

        """
        seen: Files | None = first
        for _ in range(_LOOKS_AT_START):
            files, revision = await asyncio.to_thread(
                read_policy, self._folder, development=self._development
            )
            if files == seen:
                self._last = files
                await self._apply(files, revision)
                return
            seen = files
            await asyncio.sleep(_LOOK_EVERY)
        raise ConfigurationError(
            f"the policy in {self._folder} keeps changing", remedy="start the server when it is complete"
        )

    def start(self) -> None:
        """Start watching in the running event loop."""
        self._watcher.start()

    async def stop(self) -> None:
        """Stop watching."""
        await self._watcher.stop()

    async def look(self) -> None:
        """Look once, and apply what is new and at rest."""
        try:
            files = await asyncio.to_thread(read_folder, self._folder)
        except ConfigurationError as error:
            # Nothing is known about the content: whatever is readable next is judged anew.
            self._last = self._judged = None
            self._fail(error)
            return
        at_rest = files == self._last
        self._last = files
        if not at_rest or files == self._judged:
            await self._look_for_signatures()
            return
        try:
            if self._ready is None or self._ready[0] != files:
                self._ready = files, await asyncio.to_thread(_judge, files, development=self._development)
            await self._apply(files, self._ready[1])
            self._ready = self._said = None
            self.failing = False
        except PolicyInvalid as error:
            self._judged = files
            self._fail(error)
        except LedgerUnavailable as error:
            self._not_applied(error)

    async def _look_for_signatures(self) -> None:
        try:
            if self._unsigned is not None and self._unsigned == await self._store.folder_revision():
                self._unsigned = None
        except LedgerUnavailable as error:
            self._not_applied(error)

    def _not_applied(self, error: LedgerUnavailable) -> None:
        """Say why the folder has to wait, once: it is tried again at every look."""
        if self._said != error.detail:
            self._said = error.detail
            _log.error("policy-folder-not-applied", cause=error.detail, reason=error.reason)

    async def _apply(self, files: Files, revision: Revision) -> None:
        if revision.digest != await self._store.folder_revision():
            applied = await self._store.apply(revision, files)
            self._judged = files
            if not applied:
                # The operators who sign say when: `kms policy approve`, then `kms policy apply`.
                self._unsigned = revision.digest
                _log.warning("policy-folder-waits-for-signatures", revision=revision.digest)
                return
            _log.info("policy-folder-applied", revision=revision.digest)
            await self._applied()
        self._judged = files
        self._unsigned = None

    def _fail(self, error: Exception) -> None:
        if not self.failing:
            _log.error("policy-folder-invalid", folder=str(self._folder), cause=str(error))
        self.failing = True
