"""What travels inside the wheel: the folders of the source tree's top, and the data of advisories."""

from functools import cache
from pathlib import Path

from kms.errors import ConfigurationError
from kms.snp.advisories import Advisories
from kms.snp.advisory_file import AdvisoriesInvalid, parse_advisories

_PACKAGE = Path(__file__).parent
_ADVISORIES = _PACKAGE / "snp" / "advisories.toml"


def packaged_folder(name: str) -> Path:
    """Give the folder `migrations` or `policies`, wherever this installation has it."""
    inside = _PACKAGE / "_packaged" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


@cache
def load_advisories() -> Advisories:
    """Give AMD's bulletins as this version knows them; read once.

    Raises:
        ConfigurationError: the installation is damaged.

    """
    try:
        return parse_advisories(_ADVISORIES.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, AdvisoriesInvalid) as error:
        raise ConfigurationError(
            f"the data of AMD's bulletins cannot be read: {error}", remedy="install this version again"
        ) from error
