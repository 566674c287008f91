"""Reads an environment file as compose does, as far as ours go: NAME=VALUE lines, comments, no quotes."""

from pathlib import Path


def read_environment(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in path.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            assert name not in found, line
            # Compose would take these for itself.
            assert not set(value) & set("\"'$#"), line
            found[name] = value
    return found
