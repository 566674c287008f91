"""What a plain YAML scalar is: the YAML 1.2 core schema, and nothing that only YAML 1.1 knows.

``no``, ``12:30:45``, ``1_000``, ``0b1`` and ``2026-01-01`` are the strings that were written. A number
that the two versions read differently (``012``) is a fault. Source: YAML 1.2.2, section 10.3.2.
"""

import re
from typing import Final

from kms.policy.nodes import ScalarValue

_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE"})
_FALSE: Final = frozenset({"false", "False", "FALSE"})
_DECIMAL: Final = re.compile(r"[-+]?[0-9]+")
_LEADING_ZERO: Final = re.compile(r"[-+]?0[0-9]+")
_OCTAL: Final = re.compile(r"0o[0-7]+")
_HEXADECIMAL: Final = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_NUMBER: Final = re.compile("|".join(each.pattern for each in (_OCTAL, _HEXADECIMAL, _FLOAT, _NOT_FINITE)))

_MAX_EXACT_INTEGER: Final = 2**53 - 1  # RFC 7493 (I-JSON) section 2.2: the revision is JSON
_MAX_DIGITS: Final = 18


class AmbiguousScalar(ValueError):
    """A plain scalar that must be written otherwise; the message says how."""


def resolve(text: str) -> ScalarValue:
    """Give the value of a plain scalar.

    Raises:
        AmbiguousScalar: a number that other readers read differently, or that JSON cannot hold.

    """
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    first = text[0]
    if not (first.isdigit() or first in "+-.") or not _NUMBER.fullmatch(text):
        return text  # most scalars: names, words and digests
    if _DECIMAL.fullmatch(text):
        return _decimal(text)
    if _OCTAL.fullmatch(text):
        return _bounded(text, text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return _bounded(text, text[2:], 16)
    if _NOT_FINITE.fullmatch(text):
        raise AmbiguousScalar(f"`{text}` is no number that a policy can hold: quote it if it is text")
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise AmbiguousScalar(f"YAML reads `{text}` as a number without end: quote it")
    return value


def _decimal(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise AmbiguousScalar(f"YAML reads these {len(text)} digits as a number: quote them")
    if _LEADING_ZERO.fullmatch(text):
        raise AmbiguousScalar(
            f"`{text}` is {int(text)} to YAML 1.2 and something else to YAML 1.1:"
            " quote it if it is text, leave out the zero if it is a number"
        )
    return _bounded(text, text, 10)


def _bounded(text: str, digits: str, base: int) -> int:
    if len(digits) <= _MAX_DIGITS:
        value = int(digits, base)
        if abs(value) <= _MAX_EXACT_INTEGER:
            return value
    raise AmbiguousScalar(f"`{text[:40]}` is beyond 2^53 - 1, the greatest exact number: quote it")
