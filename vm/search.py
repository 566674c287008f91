"""Looking for a secret in everything that a demo left on a disk: raw, in hex and in base64."""

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CHUNK: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What was looked through, and where a secret was found, as `FILE: SECRET in FORM`."""

    files: int
    bytes: int
    found: tuple[str, ...]


def forms(secret: bytes) -> Mapping[str, bytes]:
    """Give how a secret may be written down: raw, hex, and base64 at each place in three bytes."""
    written = {"raw": secret, "hex": secret.hex().encode(), "hex, upper": secret.hex().upper().encode()}
    for before in range(3):
        encoded = b64encode(bytes(before) + secret)
        # At both ends a digit depends on the neighbouring bytes as well.
        inner = encoded[(before * 8 + 5) // 6 : (before + len(secret)) * 8 // 6]
        written[f"base64, {before}"] = inner
        written[f"base64url, {before}"] = inner.translate(bytes.maketrans(b"+/", b"-_"))
    return written


def search(folder: Path, secrets: Mapping[str, bytes]) -> Searched:
    """Look for named secrets in every regular file below a folder."""
    needles = [(name, form, text) for name, secret in secrets.items() for form, text in forms(secret).items()]
    overlap = max(len(text) for _, _, text in needles) - 1
    files, size, found = 0, 0, []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        files += 1
        left = list(needles)
        for chunk in _chunks(path, overlap):
            size += len(chunk)
            hits = [each for each in left if each[2] in chunk]
            found += [f"{path.relative_to(folder)}: {name} in {form}" for name, form, _ in hits]
            left = [each for each in left if each not in hits]
    return Searched(files=files, bytes=size, found=tuple(found))


def _chunks(path: Path, overlap: int) -> Iterator[bytes]:
    """Give a file in pieces that overlap, so that nothing is missed between two of them."""
    before = b""
    with path.open("rb") as file:
        while data := file.read(_CHUNK):
            yield before + data
            before = data[-overlap:]
