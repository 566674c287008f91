"""A watched policy folder: the simple way to live with policies.

An edited folder becomes a revision if it is valid; while it is not, the revision in force stays in force
and `/readyz` and the log say what is wrong.
"""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from kms.errors import ConfigurationError, LedgerUnavailable
from kms.policy.findings import PolicyInvalid
from kms.policy.revision import Revision
from kms.policy_folder.reading import read_folder
from kms.ports import PolicyRevisions

_log = structlog.get_logger("kms.policy")

_LOOK_EVERY: Final = 0.5  # seconds; an edit is in force within 2 s
_AUTHOR: Final = "KMS_POLICY_DIR"


class FolderWatcher:
    """Applies a folder whenever its digest differs from the folder digest that was applied last.

    So a folder that nobody edited does not undo what was applied by command since.
    """

    def __init__(self, folder: Path, store: PolicyRevisions, *, development: bool) -> None:
        self._folder = folder
        self._store = store
        self._development = development
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[str, bytes] | None = None
        self.failing = False

    async def apply_at_start(self) -> None:
        """Apply the folder before the server serves.

        Raises:
            ConfigurationError: it cannot be read, or has errors: a server does not start on a broken policy.

        """
        try:
            await self._apply(read_folder(self._folder))
        except PolicyInvalid as error:
            raise ConfigurationError(
                f"the policy in {self._folder} has errors: {error}",
                remedy=f"kms policy lint {self._folder} explains each",
            ) from error

    def start(self) -> None:
        """Start watching in the running event loop."""
        self._task = asyncio.create_task(self._watch(), name="policy-folder")

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _apply(self, files: dict[str, bytes]) -> None:
        revision = await asyncio.to_thread(Revision.from_files, files, development=self._development)
        if revision.digest != await self._store.folder_revision():
            await self._store.apply(
                revision, author=_AUTHOR, message="the watched folder changed", from_folder=True
            )
            _log.info("policy-folder-applied", revision=revision.digest)
        self._seen = files

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                files = await asyncio.to_thread(read_folder, self._folder)
                if files == self._seen:
                    continue
                self._seen = files
                await self._apply(files)
                self.failing = False
            except (PolicyInvalid, ConfigurationError) as error:
                if not self.failing:
                    _log.error("policy-folder-invalid", folder=str(self._folder), cause=str(error))
                self.failing = True
            except LedgerUnavailable as error:
                self._seen = None
                _log.error("policy-folder-not-applied", cause=error.detail)
