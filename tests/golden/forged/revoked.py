"""Authorities that their root has revoked, and lists that do not say who is good.

AMD's endorsement certificates all have the serial number 0, so a list can name authorities and roots only.
Source: RFC 5280, section 5.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from kms.encoding import b64url
from kms.simulator.authorities import Role
from kms.simulator.certificate_table import certificate_table
from kms.simulator.certificates import Extension
from kms.simulator.revocation_lists import RevocationListDraft
from kms.snp.certificate_table import REVOCATION_LIST
from kms.snp.flags import Signer
from kms.strict_json import JsonValue
from tests.golden.forged.draft import AT, DAY, Draft, Evidence, KnownList, Layout
from tests.golden.forged.forged_chains import under_impostor
from tests.golden.forged.forged_signatures import PKCS1_SHA384, flipped, other_algorithm, pss
from tests.golden.forged.genuine import authority, authority_key, line_role
from tests.golden.forged.recipes import UNAVAILABLE, Book, both, untrusted

WHEN_AVAILABLE = "when-available"
REQUIRE = "require"
OFF = "off"
_SOMEBODY = 0x7FFF  # a serial number that no certificate of the corpus has


def revoked(book: Book) -> None:
    """Add them, and what must not be refused."""
    _revoked(book)
    _missing(book)
    _harmless(book)


def known(layout: Layout, *serials: int, days: tuple[float, float] = (-1, 30)) -> KnownList:
    """Give a good list of the layout's ARK, issued and due at these days from now."""
    root = authority(layout.product, Role.ARK).says
    key = authority_key(layout.product, Role.ARK)
    issued, due = (AT + each * DAY for each in days)
    draft = RevocationListDraft(
        issuer=root.subject,
        issuer_key=key.public,
        serials=serials,
        number=7,
        this_update=issued,
        next_update=due,
    )
    return KnownList(says=draft, by=key, of=layout)


def _serial(layout: Layout, role: Role | None = None) -> int:
    return authority(layout.product, role or line_role(layout)).says.serial_number


def _other_line(layout: Layout) -> Layout:
    return replace(layout, signer=Signer.VLEK if layout.is_vcek else Signer.VCEK)


def _ruled(mode: str, *lists: KnownList) -> Callable[[Draft], Draft]:
    return lambda draft: draft.ruled(mode, *lists)


def _revoked(book: Book) -> None:
    layout = book.layout
    mine, root = _serial(layout), _serial(layout, Role.ARK)
    reason, missing = "certificate-revoked", "revocation-list-missing"
    good = known(layout, _SOMEBODY, mine)
    old = known(layout, mine, days=(-400, -370))
    book.untrusted("authority-revoked", _ruled(WHEN_AVAILABLE, good), reason)
    book.untrusted("authority-revoked-and-a-list-required", _ruled(REQUIRE, good), reason)
    book.untrusted("root-revoked", _ruled(WHEN_AVAILABLE, known(layout, root)), reason)
    # Whom an old list names stays named, whatever a newer one leaves out.
    book.untrusted("authority-revoked-long-ago", _ruled(WHEN_AVAILABLE, old), reason)
    book.untrusted("authority-revoked-long-ago-and-a-list-required", _ruled(REQUIRE, old), reason, missing)
    book.untrusted("authority-revoked-by-the-older-of-two", _ruled(REQUIRE, known(layout), old), reason)
    early = known(layout, mine, days=(1, 30))
    book.untrusted("authority-revoked-from-tomorrow", _ruled(WHEN_AVAILABLE, early), reason)
    elsewhere = replace(good, of=_other_line(layout))
    book.untrusted("authority-revoked-at-the-other-path", _ruled(WHEN_AVAILABLE, elsewhere), reason)
    book.untrusted(
        "authority-revoked-by-the-hosts-own-table",
        partial(_with_table, known_list=good),
        reason,
    )


def _missing(book: Book) -> None:
    """A list is required, and none of these is one."""
    layout = book.layout
    # The evidence may be good: the server asks for a list, and cannot have it here.
    expect = untrusted("revocation-list-missing", over_http=UNAVAILABLE)
    good = known(layout)
    ask = authority_key(layout.product, line_role(layout))
    impostor = authority_key(layout.product, Role.ARK, owner="impostor")
    lists = {
        "none": (),
        "too-old": (known(layout, days=(-60, -7 - 1 / 86400)),),
        "not-valid-yet": (known(layout, days=(1 / 86400, 30)),),
        "of-an-impostor": (replace(good, by=impostor),),
        "of-the-authority": (replace(good, by=ask, says=replace(good.says, issuer_key=ask.public)),),
        "in-the-name-of-the-authority": (
            replace(
                good,
                says=replace(good.says, issuer=authority(layout.product, line_role(layout)).says.subject),
            ),
        ),
        "of-another-product": (known(Layout(layout.other_product, layout.signer)),),
        "of-the-other-path": (replace(good, of=_other_line(layout)),),
        "signed-with-pkcs1": (replace(good, says=replace(good.says, scheme=PKCS1_SHA384)),),
        "signed-with-sha-256": (replace(good, says=replace(good.says, scheme=pss("sha-256"))),),
        "changed": (replace(good, edit=partial(flipped, position=-1)),),
        "old-and-without-a-next-update": (
            replace(good, says=replace(good.says, this_update=AT - 8 * DAY, next_update=None)),
        ),
    }
    for name, each in book.some(lists).items():
        book.add(f"list-required-and-{name}", _ruled(REQUIRE, *each), expect)
    # What a root says counts only if it is pinned, for and against its own chain.
    own = replace(known(layout, _serial(layout)), by=impostor)
    book.untrusted(
        "chain-of-an-impostor-with-its-own-list",
        both(under_impostor, _ruled(REQUIRE, own)),
        *("root-unknown", "chain-names", "revocation-list-missing", "product"),
    )


def _harmless(book: Book) -> None:
    layout = book.layout
    mine = _serial(layout)
    good = known(layout, _SOMEBODY)
    impostor = authority_key(layout.product, Role.ARK, owner="impostor")
    forged = replace(known(layout, mine), by=impostor)
    lists = {
        "list-required-and-there": (REQUIRE, good),
        "list-stale-for-seven-days": (REQUIRE, known(layout, days=(-60, -7))),
        "list-issued-this-second": (REQUIRE, known(layout, days=(0, 30))),
        "list-without-a-path": (REQUIRE, replace(good, of=None)),
        "list-that-names-the-leaf": (REQUIRE, known(layout, 0)),
        "list-too-old-and-not-required": (WHEN_AVAILABLE, known(layout, days=(-400, -370))),
        # Anybody can name an authority; only its root can revoke it.
        "list-of-an-impostor-names-the-authority": (WHEN_AVAILABLE, forged),
        "list-names-the-authority-and-nobody-asks": (OFF, known(layout, mine)),
    }
    for name, (mode, each) in book.some(lists).items():
        book.verified(name, _ruled(mode, each))
    book.verified(
        "list-required-and-in-the-hosts-table",
        both(_ruled(REQUIRE), partial(_with_table, known_list=known(layout))),
    )


def unreadable_lists(book: Book) -> None:
    """Add lists in a host's table that cannot be used by anybody who does not understand all of them."""
    good = known(book.layout)

    def with_extension(oid: str, value: bytes) -> KnownList:
        extra = Extension(oid, value, critical=True)
        return replace(good, says=replace(good.says, extensions=(extra,)))

    lists: dict[str, Callable[[bytes], bytes] | KnownList] = {
        "of-garbage": lambda der: b"garbage",
        "cut-short": lambda der: der[:-1],
        "followed-by-a-byte": lambda der: der + b"\x00",
        "with-its-algorithm-spelled-otherwise": other_algorithm,
        # RFC 5280, sections 5.2.4 and 5.2.5.
        "of-changes": with_extension("2.5.29.27", b"\x02\x01\x01"),
        "of-user-certificates-only": with_extension("2.5.29.28", b"\x30\x03\x81\x01\xff"),
        "with-an-unknown-critical-extension": with_extension("1.2.3.4", b"\x05\x00"),
    }
    for name, made in lists.items():
        each = made if isinstance(made, KnownList) else replace(good, edit=made)
        change = partial(_with_table, known_list=each)
        book.malformed(f"list-{name}", change, "revocation-list-unreadable")


def _with_table(draft: Draft, known_list: KnownList) -> Draft:
    """Send the list in a host's table, beside the certificates."""

    def members(_: Evidence) -> dict[str, JsonValue]:
        return {"certificate_table": b64url(certificate_table([(REVOCATION_LIST, known_list.der)]))}

    return replace(draft, members=members)
