"""The files of a policy as they were written, packed for the database: zlib over JSON, name to text.

They are for people: what a policy says is in its documents, whose digest is its name. So whatever cannot be
unpacked is as if it were not there.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Final

_MOST: Final = 256 << 20  # bytes unpacked; a folder has at most 128 MiB


def packed(files: Mapping[str, bytes]) -> bytes:
    """Pack files whose contents are UTF-8, as those of every valid policy are."""
    texts = {name: content.decode("utf-8") for name, content in files.items()}
    return zlib.compress(json.dumps(texts, ensure_ascii=False, sort_keys=True).encode("utf-8"), 6)


def unpacked(data: object) -> dict[str, bytes] | None:
    """Give the files back; None for anything but packed files, a few bytes that unpack to gigabytes too."""
    if not isinstance(data, bytes):
        return None
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, _MOST)
        if not unpacker.eof:
            return None
        texts = json.loads(text)
    except (zlib.error, ValueError, RecursionError, TypeError):
        return None
    if not isinstance(texts, dict) or not all(isinstance(each, str) for each in texts.values()):
        return None
    return {name: content.encode("utf-8", "surrogatepass") for name, content in texts.items()}
