"""What commands read before they begin: settings, and policies to judge or to look something up by."""

import sys
from pathlib import Path

from kms.cli.output import read_file
from kms.errors import ConfigurationError
from kms.policy.findings import PolicyInvalid
from kms.policy.revision import Revision
from kms.policy_folder.reading import read_folder
from kms.settings import Settings, load_settings

_MAX_FILE = 1 << 20  # bytes


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
