"""Well-formed reports that prove nothing: changed after they were signed, signed by somebody else, or by a
key that answers to the host."""

from collections.abc import Callable
from dataclasses import replace

from cryptography.hazmat.primitives import hashes

from kms.request import report_data
from tests.golden.forged.draft import R, little_endian
from tests.golden.forged.recipes import UNAVAILABLE, Book, both, flagged, flipping, saying, untrusted, written
from tests.golden.forged.worthless_keys import ec_key

SIGNATURE = "report-signature"
HOST = 0xFFFFFFFF  # VMPL of a report that the host asked for (SNP_HV_REPORT_REQ)
MASK_CHIP_KEY = 1 << 1
SIGNING_KEY = 2  # the field's lowest bit

# Field → (offset of a byte, bits to flip). None of these makes the report malformed, or another check fail.
_FIELDS = {
    "measurement": (0x090, 1),
    "measurement-last-byte": (0x0BF, 0x80),
    "guest-svn": (0x004, 1),
    "policy": (0x00A, 1),  # SMT
    "policy-abi": (0x008, 1),
    "family-id": (0x010, 1),
    "image-id": (0x02F, 0x80),
    "vmpl": (0x030, 1),
    "current-tcb": (0x03F, 4),  # upwards
    "platform-info": (0x040, 2),
    "platform-info-unnamed-bit": (0x047, 0x80),
    "author-key-flag": (0x048, 1),
    "host-data": (0x0C0, 1),
    "id-key-digest": (0x0E0, 1),
    "author-key-digest": (0x110, 1),
    "report-id": (0x140, 1),
    "report-id-of-the-migration-agent": (0x160, 1),
    "cpuid-stepping": (0x18A, 1),
    "cpuid-model": (0x189, 1),
    "committed-tcb": (0x1E7, 4),
    "current-build": (0x1E8, 1),
    "current-minor": (0x1E9, 1),
    "current-major": (0x1EA, 1),
    "committed-build": (0x1EC, 1),
    "committed-minor": (0x1ED, 1),
    "committed-major": (0x1EE, 1),
    "launch-tcb": (0x1F7, 4),
}
_FIELDS_OF_VERSION_5 = {"launch-mitigations": (0x1F8, 1), "current-mitigations": (0x207, 0x80)}


def lying_reports(book: Book) -> None:
    """Add them."""
    _changed_after_signing(book)
    _signed_otherwise(book)
    _origin(book)
    _bound_to_another_request(book)


def _changed_after_signing(book: Book) -> None:
    turin, vcek = book.layout.is_turin, book.layout.is_vcek
    fields = {**_FIELDS, **(_FIELDS_OF_VERSION_5 if turin else {})}
    for name, (offset, mask) in book.some(fields).items():
        book.untrusted(f"{name}-changed", flipping(offset, mask), SIGNATURE)
    # Of version 5 nothing else has the same reserved ranges.
    if not turin:
        book.untrusted("version-changed", flipping(0x000, 3 ^ 4), SIGNATURE)
    book.untrusted("reported-tcb-changed", flipping(0x187), "certificate-tcb", SIGNATURE)
    book.untrusted("current-tcb-lowered", flipping(0x03F), "certificate-not-above-current", SIGNATURE)
    book.untrusted("chip-id-changed", flipping(0x1A0), *(["hwid-mismatch"] if vcek else []), SIGNATURE)
    book.untrusted("r-changed", flipping(R), SIGNATURE)
    book.untrusted("s-changed", flipping(R + 72), SIGNATURE)


def _signed_otherwise(book: Book) -> None:
    book.untrusted(
        "signed-by-another-key", lambda draft: replace(draft, report_key=ec_key("forger")), SIGNATURE
    )
    book.untrusted(
        "signature-of-another-report",
        lambda draft: draft.replacing(R, draft.saying(report_id=b"another".ljust(32)).report()[R:]),
        SIGNATURE,
    )
    book.untrusted(
        "signed-with-sha-256", lambda draft: replace(draft, report_hash=hashes.SHA256()), SIGNATURE
    )
    writers: dict[str, Callable[[int, int], bytes]] = {
        "halves-swapped": lambda r, s: little_endian(s) + little_endian(r),
        "halves-big-endian": lambda r, s: r.to_bytes(48, "big") + bytes(24) + s.to_bytes(48, "big"),
        "r-is-one": lambda r, s: little_endian(1) + little_endian(s),
        "r-and-s-are-one": lambda r, s: little_endian(1) + little_endian(1),
    }
    for name, write in book.some(writers).items():
        book.untrusted(name, written(write), SIGNATURE)


def _origin(book: Book) -> None:
    unsigned = written(lambda r, s: bytes(144))
    masked = flagged(MASK_CHIP_KEY)
    book.untrusted("chip-key-masked", masked, "chip-key-masked")
    # As hardware writes it: nobody signs.
    book.untrusted("chip-key-masked-unsigned", both(masked, unsigned), "chip-key-masked", SIGNATURE)
    for value in book.some_of(7, 2, 3, 4, 5, 6):
        book.untrusted(
            f"signing-key-{value}",
            saying(flags=value << SIGNING_KEY),
            "signer-none",
            "endorsement-certificate",
        )
    book.untrusted(
        "signing-key-none-unsigned",
        both(saying(flags=7 << SIGNING_KEY), unsigned),
        "signer-none",
        "endorsement-certificate",
    )
    # A report of one kind of key with a certificate of the other kind.
    book.add(
        "signing-key-of-the-other-kind",
        lambda draft: draft.saying(flags=draft.fields.flags ^ 1 << SIGNING_KEY),
        # What then claims to be signed by a VCEK brought none: it may be had.
        untrusted("endorsement-certificate", over_http=None if book.layout.is_vcek else UNAVAILABLE),
    )
    book.untrusted("requested-by-the-host", saying(vmpl=HOST), "requested-by-host")


def _bound_to_another_request(book: Book) -> None:
    mismatch = "report-data-mismatch"
    book.untrusted(
        "report-data-of-another-request", saying(report_data=report_data(b"another request")), mismatch
    )
    book.untrusted("report-data-of-zeros", saying(report_data=bytes(64)), mismatch)
    book.untrusted("report-data-changed", flipping(0x050), mismatch)
    book.untrusted("report-data-last-byte-changed", flipping(0x08F, 0x80), mismatch)
    # The right 32 bytes are not enough.
    book.untrusted(
        "report-data-half",
        lambda draft: draft.saying(report_data=draft.fields.report_data[:32] + bytes(32)),
        mismatch,
    )
