"""Random mutations of a host's certificate table: evidence or `MalformedEvidence`, and never for long.

``python -m tests.fuzz.certificate_tables --cases 100000``. A case is its number; the keys differ from run to
run, so a finding is printed whole as well.
"""

import argparse
import base64
import random
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from uuid import UUID

from kms.encoding import b64url
from kms.errors import MalformedEvidence
from kms.evidence.sev_snp import parse_evidence
from kms.simulator.certificate_table import certificate_table
from kms.snp.certificate_table import ARK, ASK, REVOCATION_LIST, VCEK, VLEK
from kms.snp.product import Product
from tests.fuzz.simulated import collateral

BOUND = 0.05  # seconds for any table
# Processor time, and yet: a machine that others use loses its caches to them.
LENIENCE = 4

_OF_A_PROVIDER = UUID("ecae0c0f-9502-43b1-afa2-0ae2e0d565b6")  # Google's extra platform information
_GUIDS = (VCEK, VLEK, ASK, ARK, REVOCATION_LIST, _OF_A_PROVIDER, UUID(int=0))
_ENTRY = 24
_INTERESTING = (0, 1, 23, 24, 25, 0x90, 0x1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFE8, 0xFFFFFFF0, 0xFFFFFFFF)


@dataclass
class Outcome:
    """What came of a run; `slowest` is of one table, in seconds of processor time."""

    refused: Counter[str] = field(default_factory=Counter)
    read: int = 0
    slowest: float = 0.0
    slowest_case: int = 0


@cache
def valid() -> tuple[bytes, ...]:
    """Give tables as hosts hand them out, and more than that."""
    milan, turin = collateral(Product.MILAN), collateral(Product.TURIN)
    ours, theirs = milan.certificates, turin.certificates
    extra = (_OF_A_PROVIDER, struct.pack("<II", 8, 0x00A00F11))
    return (
        certificate_table([(VCEK, ours["vcek"]), (ASK, ours["ask"]), (ARK, ours["ark"])]),
        certificate_table([(VLEK, theirs["vlek"]), (ASK, theirs["asvk"]), (ARK, theirs["ark"]), extra]),
        certificate_table([(VCEK, ours["vcek"]), (REVOCATION_LIST, milan.revocation_list), extra]),
        certificate_table(
            [
                (REVOCATION_LIST, _pem("X509 CRL", turin.revocation_list)),
                (ASK, _pem("CERTIFICATE", theirs["ask"], theirs["ark"])),
            ]
        ),
        certificate_table([]),
    )


def mutated(case: int) -> bytes:
    """Give the table of a case: one to six changes, half of them where the entries are."""
    rng = random.Random(case)
    data = bytearray(rng.choice(valid()))
    for _ in range(rng.randint(1, 6)):
        _change(rng, data)
    return bytes(data)


def _change(rng: random.Random, data: bytearray) -> None:
    if len(data) < 2 * _ENTRY:
        data += bytes(rng.choice((0, _ENTRY))) + rng.randbytes(_ENTRY)
    in_header = rng.random() < 0.5
    entry = _ENTRY * rng.randrange(min(len(data) // _ENTRY, 5))
    at = entry + rng.randrange(_ENTRY) if in_header else rng.randrange(len(data))
    kind = rng.randrange(8)
    if kind == 0:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[at] = rng.randrange(256)
    elif kind == 2:
        struct.pack_into("<I", data, entry + rng.choice((16, 20)), rng.choice(_INTERESTING))
    elif kind == 3:
        where = entry + rng.choice((16, 20))
        (value,) = struct.unpack_from("<I", data, where)
        struct.pack_into("<I", data, where, (value + rng.choice((-24, -1, 1, 24))) & 0xFFFFFFFF)
    elif kind == 4:
        data[entry : entry + 16] = rng.choice(_GUIDS).bytes
    elif kind == 5:
        source, length = rng.randrange(len(data)), rng.randint(1, 64)
        data[at : at + length] = data[source : source + length]
    elif kind == 6 and rng.random() < 0.2:
        del data[at:]
    elif kind == 7 and rng.random() < 0.2:
        data += rng.randbytes(rng.choice((1, _ENTRY, 4096)))


def run(cases: Iterable[int]) -> Outcome:
    """Run cases. Whatever is raised but `MalformedEvidence` is a finding, and goes through."""
    report = b64url(collateral(Product.MILAN).report)
    outcome = Outcome()
    for case in cases:
        table = mutated(case)
        started = time.thread_time()
        try:
            parse_evidence({"tee": "sev-snp", "report": report, "certificate_table": b64url(table)})
        except MalformedEvidence as error:
            outcome.refused[f"{error.reason}: {error.detail}"] += 1
        except Exception:
            sys.stderr.write(f"case {case}: {base64.b64encode(table).decode()}\n")
            raise
        else:
            outcome.read += 1
        elapsed = time.thread_time() - started
        if elapsed > outcome.slowest:
            outcome.slowest, outcome.slowest_case = elapsed, case
    return outcome


def main() -> int:
    """Run as many cases as asked, and say what came of them; 1 if one took too long."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.certificate_tables")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the library's, about names and numbers
    outcome = run(range(args.first, args.first + args.cases))
    print(f"{args.cases} mutations: {outcome.read} read, {outcome.refused.total()} refused, as")
    for detail, count in outcome.refused.most_common():
        print(f"  {count:>7}  {detail}")
    print(
        f"slowest: {outcome.slowest * 1e3:.1f} ms (case {outcome.slowest_case}; bound {BOUND * 1e3:.0f} ms)"
    )
    return 0 if outcome.slowest <= BOUND * LENIENCE else 1


def _pem(label: str, *ders: bytes) -> bytes:
    return b"".join(
        f"-----BEGIN {label}-----\n".encode() + base64.encodebytes(der) + f"-----END {label}-----\n".encode()
        for der in ders
    )


if __name__ == "__main__":
    raise SystemExit(main())
