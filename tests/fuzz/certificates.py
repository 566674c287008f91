"""Random mutations of certificates: what our reader of AMD's profile accepts, the library reads the same.

``python -m tests.fuzz.certificates --cases 100000``. A case is its number; the keys differ from run to run,
so a finding is printed whole as well. docs/decisions/0005 says what the two readers are.
"""

import argparse
import base64
import random
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from kms.snp.certificate import AMD_ARC, Certificate
from kms.snp.certificate_reader import read_certificate
from kms.snp.der import DerError
from kms.snp.endorsement import read_with_library
from kms.snp.product import Product
from tests.fuzz.simulated import collateral

_INTERESTING = bytes.fromhex("00010203040506070c13161718303132 7f8081828384a0a1a3ff")
_KINDS = 6

# The one difference: our reader does not look into extensions that nothing uses (key identifiers, the list's
# address), and the library refuses what it cannot read in them. 2.5.29.{14, 31, 35}; with an unknown last
# number the library does not look into them either.
_UNUSED = {b"\x06\x03\x55\x1d\x0e": b"d", b"\x06\x03\x55\x1d\x1f": b"e", b"\x06\x03\x55\x1d\x23": b"f"}


@dataclass
class Outcome:
    """What came of a run: read by both, by ours alone (see `_UNUSED`), by the library alone, by none."""

    both: int = 0
    ours_alone: int = 0
    library_alone: int = 0
    refused: int = 0


class ReadersDiffer(Exception):
    """The finding: our reader accepts what the library refuses, or reads it otherwise."""


@cache
def valid() -> tuple[bytes, ...]:
    """Give the certificates of two platforms, leaves and authorities."""
    return tuple(
        der for product in (Product.MILAN, Product.TURIN) for der in collateral(product).certificates.values()
    )


def mutated(case: int) -> bytes:
    """Give the certificate of a case: one to three changes, seldom in the signature."""
    rng = random.Random(case)
    data = bytearray(rng.choice(valid()))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(min(len(data), rng.choice((400, 900, len(data)))))
        kind = rng.randrange(_KINDS)
        if kind <= 1:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[at] = rng.randrange(256)
        elif kind == 3:
            data[at] = rng.choice(_INTERESTING)
        elif kind == 4:
            source, length = rng.randrange(len(data)), rng.randint(1, 8)
            data[at : at + length] = data[source : source + length]
        elif rng.random() < 0.2:
            data[at : at + rng.randrange(2)] = rng.randbytes(rng.randrange(2))
    return bytes(data)


def library(data: bytes) -> Certificate | None:
    """Read with the library alone; None where it refuses."""
    try:
        return read_with_library(data)
    except Exception:  # noqa: BLE001 -- hostile DER makes it raise anything
        return None


def ours(data: bytes) -> Certificate | None:
    """Read with our reader alone; None where it refuses. Whatever else it raises is a finding."""
    try:
        return read_certificate(data)
    except DerError:
        return None


def compare(data: bytes, outcome: Outcome) -> None:
    """Read with both. Raises `ReadersDiffer`."""
    by_library, by_us = library(data), ours(data)
    if by_us is None:
        outcome.refused += by_library is None
        outcome.library_alone += by_library is not None
    elif by_library == by_us:
        outcome.both += 1
    elif by_library is None and _differs_as_documented(data, by_us):
        outcome.ours_alone += 1
    else:
        raise ReadersDiffer


def _differs_as_documented(data: bytes, by_us: Certificate) -> bool:
    renamed = data
    for oid, last in _UNUSED.items():
        renamed = renamed.replace(oid, oid[:-1] + last)
    read = library(renamed)
    if renamed == data or read is None:
        return False
    extensions = {oid: value for oid, value in read.extensions.items() if oid.startswith(f"{AMD_ARC}.")}
    return by_us == replace(read, der=data, signed=by_us.signed, extensions=extensions)


def run(cases: Iterable[int]) -> Outcome:
    """Run cases. A difference, or anything that our reader raises but `DerError`, goes through."""
    outcome = Outcome()
    for case in cases:
        data = mutated(case)
        try:
            compare(data, outcome)
        except Exception:
            sys.stderr.write(f"case {case}: {base64.b64encode(data).decode()}\n")
            raise
    return outcome


def main() -> int:
    """Run as many cases as asked, and say what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.certificates")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the library's, about names and numbers
    outcome = run(range(args.first, args.first + args.cases))
    print(
        f"{args.cases} mutations: {outcome.both} read alike, {outcome.refused} refused by both, "
        f"{outcome.library_alone} by our reader alone, {outcome.ours_alone} by the library alone, "
        "for what stands in an extension that nothing uses"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
