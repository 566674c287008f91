"""Reports that are not of their format: they are refused before any signature is looked at.

Each is signed by the genuine key, so that nothing but the check of the format stands against it.
Source of the layout: SNP ABI 56860, ATTESTATION_REPORT.
"""

from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from kms.simulator.chip import POLICY
from tests.golden.forged.draft import Draft, R, S, little_endian
from tests.golden.forged.recipes import Book, both, flagged, replacing, saying, writing, written

N: Final = ec.SECP384R1().group_order
_TCBS: Final = ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb")
_MUST_BE_ONE: Final = 1 << 17
VERSION_2: Final = {"version": 2, "cpuid": None, "launch_mitigations": None, "current_mitigations": None}


def malformed_reports(book: Book) -> None:
    """Add them."""
    _lengths_and_numbers(book)
    _reserved(book)
    _tcb_reserved(book)
    _signature_range(book)


def _lengths_and_numbers(book: Book) -> None:
    lengths: dict[str, Callable[[bytearray], object]] = {
        "one-byte-short": bytearray.pop,
        "one-byte-long": lambda report: report.append(0),
        "without-signature": lambda report: report.__delitem__(slice(R, None)),
        "twice": lambda report: report.extend(report),
        "empty": bytearray.clear,
    }
    for name, change in book.some(lengths).items():
        book.malformed(f"report-{name}", _tampered(change), "report-length")
    for version in book.some_of(1, 0, 6, 1 << 16 | 3, 3 << 24):
        book.malformed(f"report-version-{version:#x}", saying(version=version), "report-version")
    for algorithm in book.some_of(0, 2, 1 << 8, 1 << 16 | 1):
        book.malformed(
            f"signature-algorithm-{algorithm:#x}",
            saying(signature_algorithm=algorithm),
            "signature-algorithm",
        )


def _tampered(change: Callable[[bytearray], object]) -> Callable[[Draft], Draft]:
    def apply(report: bytearray) -> None:
        change(report)

    return lambda draft: draft.tampered(apply)


def _reserved(book: Book) -> None:
    # First and last byte of each range that this version reserves.
    offsets = [0x208] if book.layout.is_turin else [0x1F8, 0x1FF, 0x200, 0x207]
    offsets += [0x04C, 0x04F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x29F]
    for offset in book.some_of(*offsets):
        book.malformed(f"reserved-byte-{offset:#05x}", writing(offset), "reserved-bytes")
    for offset in (0x330, 0x49F):
        book.malformed(f"signature-tail-{offset:#05x}", replacing(offset), "reserved-bytes")
    for bit in book.some_of(5, 31):
        book.malformed(f"flags-bit-{bit}", flagged(1 << bit), "reserved-bits")
    book.malformed("version-2-with-cpuid", _version_2_with_cpuid, "reserved-bytes")
    book.malformed(
        "version-4-with-mitigations",
        saying(version=4, launch_mitigations=1, current_mitigations=1),
        "reserved-bytes",
    )
    book.malformed("policy-bit-17-clear", saying(policy=POLICY & ~_MUST_BE_ONE), "policy-bits")
    for bit in book.some_of(26, 31, 32, 63):
        book.malformed(f"policy-bit-{bit}", saying(policy=POLICY | 1 << bit), "policy-bits")


def _version_2_with_cpuid(draft: Draft) -> Draft:
    return draft.saying(**{**VERSION_2, "cpuid": draft.fields.cpuid})


def _tcb_reserved(book: Book) -> None:
    reserved = (4, 5, 6) if book.layout.is_turin else (2, 3, 4, 5)
    for name in book.some_of(*_TCBS):
        book.malformed(f"{name}-reserved-byte-{reserved[0]}", _in_tcb(name, reserved[0]), "tcb-reserved")
    for index in book.some_of(*reserved[1:]):
        book.malformed(f"reported_tcb-reserved-byte-{index}", _in_tcb("reported_tcb", index), "tcb-reserved")
    for name in book.some_of(*_TCBS):
        # The layout of a version 2 report's TCB is known only once its chain is.
        change = both(saying(**VERSION_2), _in_tcb(name, reserved[0]))
        book.malformed(f"version-2-{name}-reserved-byte", change, "tcb-reserved")


def _in_tcb(name: str, index: int) -> Callable[[Draft], Draft]:
    def change(draft: Draft) -> Draft:
        raw = bytearray(getattr(draft.fields, name))
        raw[index] = 1
        return draft.saying(**{name: bytes(raw)})

    return change


def _signature_range(book: Book) -> None:
    writers: dict[str, Callable[[int, int], bytes]] = {
        "r-zero": lambda r, s: little_endian(0) + little_endian(s),
        "s-zero": lambda r, s: little_endian(r) + little_endian(0),
        "all-zero": lambda r, s: bytes(144),
        "r-is-the-order": lambda r, s: little_endian(N) + little_endian(s),
        "s-is-the-order": lambda r, s: little_endian(r) + little_endian(N),
        "r-of-all-ones": lambda r, s: little_endian((1 << 384) - 1) + little_endian(s),
        "s-of-all-ones": lambda r, s: little_endian(r) + little_endian((1 << 384) - 1),
        "r-plus-the-order": lambda r, s: little_endian(r + N) + little_endian(s),
        "s-plus-the-order": lambda r, s: little_endian(r) + little_endian(s + N),
        # As other verifiers read it: 48 and 48 bytes, or 72 and 72, big-endian.
        "big-endian-48-and-48": lambda r, s: r.to_bytes(48, "big") + s.to_bytes(48, "big"),
        "big-endian-72-and-72": lambda r, s: r.to_bytes(72, "big") + s.to_bytes(72, "big"),
        "little-endian-48-and-48": lambda r, s: r.to_bytes(48, "little") + s.to_bytes(48, "little"),
    }
    for name, write in book.some(writers).items():
        book.malformed(f"signature-{name}", written(write), "signature-range")
    for half, offset in (("r", R), ("s", S)):
        for upper in book.some_of(48, 71):
            book.malformed(f"signature-{half}-byte-{upper}", replacing(offset + upper), "signature-range")
