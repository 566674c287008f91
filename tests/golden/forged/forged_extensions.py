"""Endorsement certificates, genuinely signed, that are not for this chip, provider, product or TCB."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from kms.simulator import der
from kms.simulator.chip import simulated_chip_id
from kms.simulator.endorsement_extensions import (
    BOOTLOADER_SPL,
    CSP_ID,
    FMC_SPL,
    HARDWARE_ID,
    MICROCODE_SPL,
    PRODUCT_NAME,
    SNP_SPL,
    SPL_4,
    SPL_5,
    SPL_6,
    SPL_7,
    TEE_SPL,
    hardware_id,
)
from kms.snp import tcb
from kms.snp.tcb import TcbVersion
from tests.golden.forged.draft import Draft
from tests.golden.forged.genuine import chip
from tests.golden.forged.recipes import Book, both, extension, saying, untrusted
from tests.golden.forged.worthless_keys import ec_key

_LEVELS: Final = {
    "fmc": FMC_SPL,
    "bootloader": BOOTLOADER_SPL,
    "tee": TEE_SPL,
    "snp": SNP_SPL,
    "microcode": MICROCODE_SPL,
}
_EXTENSIONS: Final = "certificate-tcb-extensions"
_OCTET_STRING: Final = b"\x04"
_UTF8_STRING: Final = 0x0C


def forged_extensions(book: Book) -> None:
    """Add them."""
    _tcb_extensions(book)
    _tcb_levels(book)
    _product_name(book)
    if book.layout.is_vcek:
        _hardware_id(book)
    else:
        _provider(book)


def _unreadable(book: Book) -> tuple[str, ...]:
    """An extension that occurs twice makes the whole certificate unreadable: which of the two counts?"""
    return ("product", "hwid" if book.layout.is_vcek else "csp-id", _EXTENSIONS)


def _tcb_extensions(book: Book) -> None:
    """Field lessons 4 and 14."""
    tcb_now = chip(book.layout).reported_tcb
    for name in tcb_now.components():
        oid = _LEVELS[name]
        book.untrusted(f"{name}-missing", extension("leaf", oid), _EXTENSIONS)
        book.untrusted(f"{name}-empty", extension("leaf", oid, b""), _EXTENSIONS)
    for name, level in book.some(tcb_now.components()).items():
        value = der.integer(level)
        book.untrusted(f"{name}-twice", extension("leaf", _LEVELS[name], value, value), *_unreadable(book))
    snp = bytes([tcb_now.snp])
    encodings = {
        "cut-short": b"\x02\x01",
        "of-no-length": b"\x02\x00",
        "bare": snp,
        "not-minimal": b"\x02\x02\x00" + snp,
        "followed-by-a-byte": b"\x02\x01" + snp + b"\x00",
        "of-another-type": b"\x0a\x01" + snp,
        "in-an-octet-string": b"\x04\x03\x02\x01" + snp,
        "above-255": b"\x02\x02\x01" + snp,
        "in-long-form": b"\x02\x81\x01" + snp,
    }
    for name, value in book.some(encodings).items():
        book.untrusted(f"snp-level-{name}", extension("leaf", SNP_SPL, value), _EXTENSIONS)
    # 219 as one byte is a negative number: AMD writes a zero before it.
    two_bytes = b"\x00" + bytes([tcb_now.microcode | 0x80])
    long_encodings = {
        "followed-by-a-byte": b"\x02\x02" + two_bytes + b"\x00",
        "of-another-type": b"\x0a\x02" + two_bytes,
        "of-another-length": b"\x02\x03" + two_bytes,
        "cut-short": b"\x02\x02\x00",
    }
    for name, value in book.some(long_encodings).items():
        book.untrusted(f"microcode-level-{name}", extension("leaf", MICROCODE_SPL, value), _EXTENSIONS)
    for level in (tcb_now.microcode | 0x80, 0x80):
        negative = b"\x02\x01" + bytes([level])
        change = extension("leaf", MICROCODE_SPL, negative)
        book.untrusted(f"microcode-level-{level}-as-a-negative-number", change, _EXTENSIONS)
    for number, oid in book.some({5: SPL_5, 4: SPL_4, 6: SPL_6, 7: SPL_7}).items():
        book.untrusted(f"reserved-level-{number}", extension("leaf", oid, der.integer(1)), _EXTENSIONS)
        book.untrusted(f"reserved-level-{number}-empty", extension("leaf", oid, b""), _EXTENSIONS)
    if not book.layout.is_turin:
        book.untrusted("fmc-on-another-product", extension("leaf", FMC_SPL, der.integer(0)), _EXTENSIONS)


def _tcb_levels(book: Book) -> None:
    """Field lessons 4, 7 and 8: for exactly the reported TCB, and never above the current one."""
    product, now = book.layout.product, chip(book.layout).reported_tcb

    def certified(levels: TcbVersion) -> Callable[[Draft], Draft]:
        return both(
            *(
                extension("leaf", _LEVELS[name], der.integer(level))
                for name, level in levels.components().items()
            )
        )

    def current(levels: TcbVersion) -> Callable[[Draft], Draft]:
        return saying(current_tcb=tcb.encode(levels, product))

    def reported(levels: TcbVersion) -> Callable[[Draft], Draft]:
        return saying(reported_tcb=tcb.encode(levels, product))

    # A host's stale table looks like this; who has a better certificate may be asked, here there is nobody.
    other = untrusted("certificate-tcb")
    for name, level in now.components().items():
        higher = replace(now, **{name: level + 1})
        book.add(f"{name}-of-a-newer-certificate", both(certified(higher), current(higher)), other)
        book.untrusted(
            f"{name}-above-current",
            both(certified(higher), reported(higher)),
            "certificate-not-above-current",
        )
        if level and book.thorough:
            older = replace(now, **{name: level - 1})
            book.add(f"{name}-of-an-older-certificate", certified(older), other)
            book.add(f"{name}-reported-older", reported(older), other)
    # A host's table from before an update: each TCB has a key of its own.
    older = replace(now, snp=now.snp - 1)

    def stale_table(draft: Draft) -> Draft:
        old_key = draft.leaf_key(ec_key("of the older TCB"))
        return replace(certified(older)(old_key), report_key=draft.report_key)

    book.untrusted("stale-table", stale_table, "certificate-tcb", "report-signature")
    # As one integer, the microcode being its highest byte, this current TCB is above the certificate's.
    mixed = replace(now, microcode=now.microcode + 1, snp=now.snp - 1)
    book.untrusted("current-tcb-higher-as-one-integer", current(mixed), "certificate-not-above-current")
    # The certificate is for the current TCB, where the reported one is meant.
    newer = replace(now, snp=now.snp + 1)
    book.add("certificate-for-the-current-tcb", both(certified(newer), current(newer)), other)


def _product_name(book: Book) -> None:
    layout = book.layout
    name = layout.product.certificate_name
    other = layout.other_product.certificate_name
    values = {
        "empty": b"",
        "empty-string": der.ia5_string(""),
        "of-another-product": der.ia5_string(other),
        "longer": der.ia5_string(f"{name}2"),
        "shorter": der.ia5_string(name[:-1]),
        "in-lower-case": der.ia5_string(name.lower()),
        "after-a-dash": der.ia5_string(f"-{name}"),
        "with-a-line-end": der.ia5_string(f"{name}\n"),
        "with-a-nul": der.ia5_string(f"{name}\x00"),
        "of-another-type": der.tlv(_UTF8_STRING, name.encode()),
        "bare": name.encode(),
        "followed-by-a-byte": der.ia5_string(name) + b"\x00",
    }
    for title, value in book.some(values).items():
        book.untrusted(f"product-name-{title}", extension("leaf", PRODUCT_NAME, value), "product")
    book.untrusted("product-name-missing", extension("leaf", PRODUCT_NAME), "product")
    twice = der.ia5_string(name)
    book.untrusted("product-name-twice", extension("leaf", PRODUCT_NAME, twice, twice), *_unreadable(book))


def _hardware_id(book: Book) -> None:
    """Field lessons 3 and 14."""
    layout = book.layout
    chip_id = chip(layout).chip_id
    hwid = hardware_id(layout.product, chip_id)
    stranger = simulated_chip_id(layout.product, b"another chip")
    values = {
        "empty": b"",
        "one-byte-short": hwid[:-1],
        "one-byte-long": hwid + b"\x00",
        "in-an-octet-string-of-another-length": _OCTET_STRING + bytes([len(hwid) - 1]) + hwid,
        "in-another-type": b"\x03" + bytes([len(hwid)]) + hwid,
        "of-one-byte": hwid[:1],
        "of-32-bytes": chip_id[:32],
    }
    for title, value in values.items():
        book.untrusted(f"hwid-{title}", extension("leaf", HARDWARE_ID, value), "hwid")
    book.untrusted("hwid-missing", extension("leaf", HARDWARE_ID), "hwid")
    book.untrusted("hwid-twice", extension("leaf", HARDWARE_ID, hwid, hwid), *_unreadable(book))
    others = {
        "of-another-chip": hardware_id(layout.product, stranger),
        "with-another-last-bit": hwid[:-1] + bytes([hwid[-1] ^ 1]),
        "of-zeros": bytes(len(hwid)),
        # The beginning of another product's, or with all the zeros that follow it.
        "of-the-other-length": chip_id if layout.is_turin else chip_id[:8],
    }
    for title, value in others.items():
        book.untrusted(f"hwid-{title}", extension("leaf", HARDWARE_ID, value), "hwid-mismatch")
    book.untrusted("chip-id-of-another-chip", saying(chip_id=bytes(stranger)), "hwid-mismatch")
    tail = chip_id[:63] + bytes([chip_id[63] ^ 1])
    book.untrusted("chip-id-with-another-last-bit", saying(chip_id=tail), "hwid-mismatch")
    book.untrusted("chip-id-zero", saying(chip_id=bytes(64)), "chip-id-zero")
    book.untrusted(
        "chip-id-and-hwid-zero",
        both(saying(chip_id=bytes(64)), extension("leaf", HARDWARE_ID, bytes(len(hwid)))),
        "chip-id-zero",
    )
    book.untrusted("csp-id-on-a-vcek", extension("leaf", CSP_ID, der.ia5_string("Example Cloud")), "hwid")
    book.untrusted("empty-csp-id-on-a-vcek", extension("leaf", CSP_ID, b""), "hwid")


def _provider(book: Book) -> None:
    hwid = hardware_id(book.layout.product, chip(book.layout).chip_id)
    values = {
        "empty": b"",
        "empty-string": der.ia5_string(""),
        "of-another-type": der.tlv(_UTF8_STRING, b"Example Cloud"),
        "bare": b"Example Cloud",
        "not-ascii": der.tlv(der.IA5_STRING, b"Example \xff"),
        "with-a-line-end": der.ia5_string("Example Cloud\n"),
        "cut-short": der.ia5_string("Example Cloud")[:-1],
        "longer-than-127-bytes": der.ia5_string("x" * 128),
        "of-a-long-length-in-one-byte": b"\x16\x81" + b"x" * 0x81,
    }
    for title, value in book.some(values).items():
        book.untrusted(f"csp-id-{title}", extension("leaf", CSP_ID, value), "csp-id")
    book.untrusted("csp-id-missing", extension("leaf", CSP_ID), "csp-id")
    value = der.ia5_string("Example Cloud")
    book.untrusted("csp-id-twice", extension("leaf", CSP_ID, value, value), *_unreadable(book))
    book.untrusted("hwid-on-a-vlek", extension("leaf", HARDWARE_ID, hwid), "csp-id")
    book.untrusted("empty-hwid-on-a-vlek", extension("leaf", HARDWARE_ID, b""), "csp-id")
