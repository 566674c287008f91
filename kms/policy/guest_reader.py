"""Reads `kind: guest`: what the guest was launched under, and who asks."""

import re
from typing import Final

from kms.identifiers import KeyDigest
from kms.policy import values
from kms.policy.app_reader import HeaderSlots
from kms.policy.documents import STRICT, STRICT_GUEST, FirmwareMinimum, GuestDocument, Wanted
from kms.policy.nodes import Node, Scalar
from kms.policy.parser import Parser, Wrong, pattern
from kms.policy.reader import Reader
from kms.snp.flags import Signer
from kms.snp.report import VERSIONS

_BYTE: Final = r"(?:[01]?[0-9]{1,2}|2[0-4][0-9]|25[0-5])"
_VERSION: Final = re.compile(rf"{_BYTE}\.{_BYTE}(?:\.{_BYTE})?")
_MAX_SVN: Final = 2**32 - 1  # GUEST_SVN has 32 bits

_NOBODY: Final = "it allows nobody"
_DEBUG: Final = {"forbid": False, "allow": True}
_CLEAR: Final = {"allow": Wanted.ANY, "forbid": Wanted.CLEAR}
_SET: Final = {"any": Wanted.ANY, "require": Wanted.SET}
_BITS: Final = {
    name: values.choice(words, f"`{name}`")
    for name, words in {
        "migration_agent": _CLEAR,
        "smt": _CLEAR,
        "single_socket": _SET,
        "cxl": _CLEAR,
        "ciphertext_hiding": _SET,
        "aes_256_xts": _SET,
        "rapl_disabled": _SET,
        "page_swap_disabled": _SET,
    }.items()
}


def _read_firmware(node: Node) -> FirmwareMinimum:
    text = values.read_text(node)
    if not _VERSION.fullmatch(text):
        raise Wrong(node, 'a firmware version is major.minor or major.minor.build, as in "1.55" or "1.55.22"')
    major, minor, build = [*map(int, text.split(".")), 0][:3]
    return FirmwareMinimum(major=major, minor=minor, build=build)


_vmpl: Final = values.integer(0, 3, "a VMPL")
_report_version: Final = values.integer(min(VERSIONS), max(VERSIONS), "a report version")
_signer: Final = values.one_of(Signer, "a signer")
_debug: Final = values.choice(_DEBUG, "`debug`")
_firmware: Final = Parser(_read_firmware, pattern(_VERSION))
_svn: Final = values.integer(0, _MAX_SVN, "a guest SVN")
_key_digest: Final = values.hex_of(KeyDigest, "a key digest")


def read_guest(reader: Reader, *, development: bool) -> GuestDocument:
    """Read a guest document; what is left out is as in ``strict``. Raises `Unread` after its findings."""
    strict = STRICT_GUEST
    header = HeaderSlots(reader)
    expires_at = reader.optional("expires_at", values.time, None)
    vmpl = reader.listed_or("vmpl", _vmpl, tuple(strict.vmpl), empty=_NOBODY)
    versions = reader.listed_or(
        "report_versions", _report_version, tuple(strict.report_versions), empty=_NOBODY
    )
    signers = reader.listed_or("signers", _signer, tuple(strict.signers), empty=_NOBODY)
    csp = reader.listed_or("csp", values.text, tuple(strict.csp))
    debug = reader.optional("debug", _debug, strict.debug)
    bits = [(name, reader.optional(name, _BITS[name], wanted)) for name, wanted in strict.bits]
    firmware = reader.optional("firmware_minimum", _firmware, strict.firmware_minimum)
    svn = reader.optional("guest_svn_minimum", _svn, strict.guest_svn_minimum)
    id_keys = reader.allowlist_or_any("id_key_digests", _key_digest, empty=_NOBODY)
    author_keys = reader.allowlist_or_any("author_key_digests", _key_digest, empty=_NOBODY)
    reader.end()
    _refuse_strict(reader)
    document = GuestDocument(
        **header.values,
        expires_at=expires_at.value,
        vmpl=frozenset(vmpl.value),
        report_versions=frozenset(versions.value),
        signers=frozenset(signers.value),
        csp=frozenset(csp.value),
        debug=debug.value,
        bits=tuple((name, slot.value) for name, slot in bits),
        firmware_minimum=firmware.value,
        guest_svn_minimum=svn.value,
        id_key_digests=id_keys.value,
        author_key_digests=author_keys.value,
    )
    _check_together(reader, document, development=development)
    return document


def _refuse_strict(reader: Reader) -> None:
    node = reader.place("name")
    if isinstance(node, Scalar) and node.value == STRICT:
        reader.notes.error(node, "`strict` is built in and no document replaces it: choose another name")


def _check_together(reader: Reader, document: GuestDocument, *, development: bool) -> None:
    notes = reader.notes
    if document.debug and not development:
        notes.error(
            reader.place("debug"),
            "`debug: allow` is refused outside development mode: the host reads a debug guest's memory",
        )
    if len(document.vmpl) > 1:
        notes.warning(
            reader.place("vmpl"), "more than one VMPL: a lower layer of the guest gets the same keys"
        )
    pinned = not (document.id_key_digests.anything and document.author_key_digests.anything)
    if document.guest_svn_minimum and not pinned:
        notes.error(
            reader.place("guest_svn_minimum"),
            "a guest SVN means something only with `id_key_digests` or `author_key_digests`:"
            " a host can sign an ID block itself",
        )
    if Signer.VLEK in document.signers and not document.csp:
        notes.warning(
            reader.place("signers"), "`vlek` without `csp` allows no VLEK guest: list the provider's id"
        )
    if document.csp and Signer.VLEK not in document.signers:
        notes.warning(reader.place("csp"), "`csp` does nothing: `signers` does not list `vlek`")
