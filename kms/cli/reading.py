"""What commands read before they begin: settings, and policies to judge or to look something up by."""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from kms.background import collector_at_rest
from kms.cli.output import WrongUse, read_file
from kms.errors import ConfigurationError
from kms.policy.findings import PolicyInvalid
from kms.policy.revision import Revision
from kms.policy_folder.reading import read_folder
from kms.settings import Settings, load_settings

_MAX_FILE = 1 << 20  # bytes
_REVISION = re.compile(r"sha256:[0-9a-f]{64}")
_NAMED = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_ALGORITHM = "sha256:"


def read_settings(config: Path | None) -> Settings:
    """Read the settings; a `KMS_…` variable that is none is said on standard error, whatever the command.

    Raises:
        ConfigurationError: they cannot be read, or make no sense.

    """
    settings, warnings = load_settings(config)
    for warning in warnings:
        sys.stderr.write(f"kms: warning: {warning}\n")
    return settings


def read_policy(path: Path, *, development: bool) -> Revision:
    """Read a policy folder, or one policy file.

    Raises:
        ConfigurationError: it holds errors, or cannot be read.
        Unreadable: the file cannot be read.

    """
    files = read_folder(path) if path.is_dir() else {path.name: read_file(path, at_most=_MAX_FILE)}
    try:
        return Revision.from_files(files, development=development)
    except PolicyInvalid as error:
        raise ConfigurationError(
            f"{path}: {error}", remedy="`kms policy lint` on the folder explains each"
        ) from error


def revision(text: str) -> str:
    """Read the name of a revision, whole: of a part, whoever answers chooses what it names.

    So is named what is signed, and what must be in force.
    """
    if not is_revision(text):
        raise argparse.ArgumentTypeError("takes a revision whole: sha256: and 64 hex digits")
    return text


def revision_name(text: str) -> str:
    """Read the name of a revision, or the beginning of one, with or without its `sha256:`; give it with that.

    `kms.cli.policy_history.whole_name` finds what a beginning names.
    """
    named = _NAMED.fullmatch(text)
    if named is None:
        raise argparse.ArgumentTypeError(
            "takes a revision: sha256: and 64 hex digits, or at least the first 12 of them"
        )
    return f"{_ALGORITHM}{named[1]}"


def is_revision(text: str) -> bool:
    """Say whether this names a revision whole."""
    return _REVISION.fullmatch(text) is not None


def read_candidate(text: str) -> str | dict[str, bytes]:
    """Give a policy: the revision that is named (`revision_name`), or the files of the folder.

    Digits without `sha256:` are a folder where there is one of that name.

    Raises:
        WrongUse: what begins as a revision's name is none.
        ConfigurationError: no such folder, or it cannot be read.

    """
    if text.startswith(_ALGORITHM) or (_NAMED.fullmatch(text) and not Path(text).exists()):
        try:
            return revision_name(text)
        except argparse.ArgumentTypeError as error:
            raise WrongUse(f"{text} {error}") from None
    return read_folder(Path(text))


def read_revision(files: Mapping[str, bytes]) -> Revision:
    """Give the revision that files are, computed here; what only development mode allows is not judged.

    Raises:
        PolicyRefused: they hold errors; the findings are in its details.

    """
    from kms.administration.policy_desk import refused

    with collector_at_rest():
        try:
            return Revision.from_files(files, development=True)
        except PolicyInvalid as error:
            raise refused(error) from None
