"""Revisions from an office, believed for what they are: documents must give the digest that was asked for.

A server, or whoever owns its database, may answer with anything. Nothing is shown, signed or written that
this machine did not compute the name of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

import rfc8785

from kms.background import collector_at_rest
from kms.cli.output import Unreadable
from kms.cli.saying import MOST, AnswerUnreadable, fields
from kms.policy.findings import PolicyInvalid
from kms.policy.revision import Revision, documents_of, written
from kms.strict_json import JsonValue

if TYPE_CHECKING:
    from kms.administration.office import Office
    from kms.operators import Actor

_SUFFIXES: Final = frozenset({".yaml", ".yml"})
_ALL_IN_ONE: Final = "policy.yaml"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A revision, and files that give it: those it was written as, where they are known, else one file."""

    revision: Revision
    files: Mapping[str, bytes]

    def to_json(self) -> dict[str, JsonValue]:
        """Give the revision as the route does."""
        files: dict[str, JsonValue] = {name: data.decode("utf-8") for name, data in self.files.items()}
        documents: list[JsonValue] = [*documents_of(self.revision)]
        return {"revision": self.revision.digest, "documents": documents, "files": files}

    def write(self, folder: Path) -> None:
        """Write the files into a new or empty folder.

        Raises:
            Unreadable: there is something in it, or it cannot be written.

        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise Unreadable(f"{folder}: not empty; files are only written into a new folder")
            for name, content in self.files.items():
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        except OSError as error:
            raise Unreadable(f"{error.filename or folder}: {error.strerror}") from error


async def fetch_revision(office: "Office", actor: "Actor", digest: str) -> Fetched:
    """Fetch a revision, and compute its name here.

    Raises:
        NotFound: there is no such revision.
        AnswerUnreadable: other documents than the digest names, or files that lead out of their folder.

    """
    answer = fields(await office.policies.revision(actor, digest), "revision")
    documents, files = answer.array("documents", at_most=MOST), _files(answer.take("files"))
    with collector_at_rest():
        try:
            revision = Revision.from_canonical(rfc8785.dumps(documents), digest=digest)
        except (PolicyInvalid, rfc8785.CanonicalizationError):
            raise AnswerUnreadable(f"the documents are not those that {digest} names") from None
        if not _gives(files, digest):
            files = {_ALL_IN_ONE: written(documents_of(revision))}
    return Fetched(revision, files)


def _gives(files: Mapping[str, bytes], digest: str) -> bool:
    """Say whether files are the revision: they are kept for people, and nothing vouches for them."""
    try:
        # What only development mode allows is judged by whoever decides by the policy.
        return Revision.from_files(files, development=True).digest == digest
    except PolicyInvalid:
        return False


def _files(value: JsonValue) -> dict[str, bytes]:
    files = {}
    for name, text in (value or {}).items() if isinstance(value, dict | None) else ():
        if not isinstance(text, str) or not _stays_inside(name):
            raise AnswerUnreadable("a file of the revision has a name that no policy file has")
        files[name] = text.encode("utf-8")
    return files


def _stays_inside(name: str) -> bool:
    """Say whether a name is one that `read_folder` gives: below the folder, and nothing hidden.

    A server that could choose the name `../.ssh/authorized_keys` would own whoever asks for a revision.
    """
    path = PurePosixPath(name)
    parts_are_plain = all(part.isprintable() and not part.startswith(".") for part in path.parts)
    return (
        str(path) == name
        and not path.is_absolute()
        and parts_are_plain
        and "\\" not in name
        and path.suffix in _SUFFIXES
    )
