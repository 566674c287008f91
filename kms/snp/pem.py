"""PEM (RFC 7468): the DER of the blocks of one kind in a text. What stands between blocks is ignored."""

import binascii
from typing import Final

MOST_BLOCKS: Final = 64  # a chain has three certificates; each block is parsed, and strangers send them


class PemError(ValueError):
    """The text has no block of this kind, too many, or one that is not base64. It repeats no input."""


def pem_blocks(data: bytes, label: str) -> tuple[bytes, ...]:
    """Give the content of each block with this label, in order. The work is linear. Raises `PemError`."""
    begin, end = (f"-----{word} {label}-----".encode("ascii") for word in ("BEGIN", "END"))
    blocks: list[bytes] = []
    position = 0
    while (found := data.find(begin, position)) >= 0:
        start = found + len(begin)
        stop = data.find(end, start)
        if stop < 0 or len(blocks) == MOST_BLOCKS:
            raise PemError("a block without an end" if stop < 0 else f"more than {MOST_BLOCKS} blocks")
        blocks.append(_decode(data[start:stop]))
        position = stop + len(end)
    if not blocks:
        raise PemError(f"no {label} block")
    return tuple(blocks)


def _decode(body: bytes) -> bytes:
    try:
        decoded = binascii.a2b_base64(b"".join(body.split()), strict_mode=True)
    except ValueError as error:
        raise PemError("a block is not base64") from error
    if not decoded:
        raise PemError("an empty block")
    return decoded
