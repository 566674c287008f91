"""Folders that stand at the top of the source tree and travel inside the wheel: migrations, policies."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def packaged_folder(name: str) -> Path:
    """Give the folder `migrations` or `policies`, wherever this installation has it."""
    inside = _PACKAGE / "_packaged" / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
