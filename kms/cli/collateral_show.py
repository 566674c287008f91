"""``kms collateral status`` and ``verify``: what is stored, and whether it is any good."""

import argparse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from kms.cli.collateral_store import add_config, day, line_name, place_of, with_stores
from kms.cli.output import OK, REFUSED, print_json
from kms.cli.parsers import Group
from kms.cli.reading import read_settings

if TYPE_CHECKING:
    from kms.database.collateral import CertificateCount
    from kms.kds.audit import Judged
    from kms.ports import StoredRevocationList
    from kms.settings import Settings
    from kms.wiring import Stores


def add_status(group: Group) -> None:
    """Add ``kms collateral status``."""
    command = group.add(
        "status",
        summary="show what is stored",
        description="Show what is stored: certificates by line and role with the next expiry, revocation"
        " lists with their age, and what the settings say about both.",
        example="kms collateral status",
    )
    add_config(command)
    command.set_defaults(run=_status)


def _status(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments.config)

    async def work(
        stores: "Stores",
    ) -> "tuple[tuple[CertificateCount, ...], tuple[StoredRevocationList, ...]]":
        return await stores.collateral.counts(), await stores.collateral.revocation_lists()

    counts, lists = with_stores(settings, work)
    now = datetime.now(UTC)
    if arguments.json:
        print_json(_status_document(settings, counts, lists, now))
    else:
        _print_status(settings, counts, lists, now)
    return OK


def _status_document(
    settings: "Settings",
    counts: "tuple[CertificateCount, ...]",
    lists: "tuple[StoredRevocationList, ...]",
    now: datetime,
) -> dict[str, Any]:
    from kms.kds.audit import freshness
    from kms.snp.revocation import taken_until

    age = settings.crl_max_age
    return {
        "certificates": [
            {
                "line": line_name(each.line),
                "role": each.role.value,
                "count": each.count,
                "next_expiry": _moment(each.next_expiry),
                "last_kept": _moment(each.last_kept),
            }
            for each in counts
        ],
        "revocation_lists": [
            {
                "line": line_name(each.line),
                "issuer": each.list.issuer_name,
                "ark": each.ark.hex(),
                "number": each.list.number,
                "this_update": _moment(each.list.this_update),
                "next_update": _moment(each.list.next_update),
                "state": freshness(each.list, age, now).value,
                "taken_until": _moment(taken_until(each.list, age)),
                "revoked": len(each.list.serials),
            }
            for each in lists
        ],
        "crl": {"mode": settings.crl.value, "max_age": int(age.total_seconds())},
        "kds_urls": settings.kds_urls,
    }


def _print_status(
    settings: "Settings",
    counts: "tuple[CertificateCount, ...]",
    lists: "tuple[StoredRevocationList, ...]",
    now: datetime,
) -> None:
    from kms.kds.audit import Freshness, freshness
    from kms.snp.revocation import taken_until

    print("certificates" if counts else "no certificates")
    for each in counts:
        expiry = "all expired" if each.next_expiry is None else f"next expires {day(each.next_expiry)}"
        print(f"  {line_name(each.line):<11} {each.role.value:<9} {each.count:>7}  {expiry}")
    print("revocation lists" if lists else "no revocation lists")
    for stored in lists:
        until = day(taken_until(stored.list, settings.crl_max_age))
        states = {
            Freshness.FRESH: "fresh",
            Freshness.STALE: f"stale, counts until {until}",
            Freshness.TOO_OLD: f"too old since {until}",
        }
        next_update = "none" if stored.list.next_update is None else day(stored.list.next_update)
        print(
            f"  {line_name(stored.line):<11} number {stored.list.number}, of {day(stored.list.this_update)},"
            f" next {next_update}: {states[freshness(stored.list, settings.crl_max_age, now)]}"
        )
    print(f"KMS_CRL={settings.crl.value}, KMS_CRL_MAX_AGE={settings.crl_max_age}")
    print(f"asks: {', '.join(settings.kds_urls) or 'nobody (KMS_KDS_URLS=none)'}")


def add_verify(group: Group) -> None:
    """Add ``kms collateral verify``."""
    command = group.add(
        "verify",
        summary="judge everything that is stored again",
        description="Judge everything that is stored again: chains to the pinned roots, dates, revocation"
        " lists. Exit status: 0 all good, 1 something is not.",
        example="kms collateral verify",
    )
    add_config(command)
    command.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from kms.kds.audit import judge_all
    from kms.trust import load_roots
    from kms.wiring import revocation_rules

    settings = read_settings(arguments.config)
    roots = load_roots(settings.development_roots)

    async def work(stores: "Stores") -> "tuple[tuple[Judged, ...], int]":
        store = stores.collateral
        certificates, lists = await store.all_certificates(), await store.revocation_lists()
        # What cannot be read at all is left out of what the store gives.
        damaged = sum(each.count for each in await store.counts()) - len(certificates)
        rules = revocation_rules(settings)
        return await judge_all(certificates, lists, roots, rules, datetime.now(UTC)), damaged

    judged, damaged = with_stores(settings, work)
    wrong = [each for each in judged if each.problems]
    if arguments.json:
        print_json(
            {"good": not wrong and damaged == 0, "damaged": damaged, "stored": [*map(_judged, judged)]}
        )
    else:
        if settings.development:
            print("DEVELOPMENT ROOTS are trusted beside AMD's: this proves nothing about hardware")
        for each in wrong:
            print(f"{place_of(each.stored)}: {'; '.join(each.problems)}")
        if damaged:
            print(f"{damaged} certificate(s) in the database cannot be read; the log says which")
        print(f"{len(judged)} stored, {len(wrong) + damaged} not good")
    return REFUSED if wrong or damaged else OK


def _judged(judged: "Judged") -> dict[str, Any]:
    from kms.ports import StoredCertificate

    stored = judged.stored
    document: dict[str, Any] = {"line": line_name(stored.line), "what": place_of(stored)}
    if isinstance(stored, StoredCertificate):
        document |= {
            "role": stored.role.value,
            "sha256": stored.certificate.fingerprint.hex(),
            "not_after": _moment(stored.certificate.not_after),
        }
    else:
        document |= {"role": "revocation-list", "next_update": _moment(stored.list.next_update)}
    return {
        **document,
        "source": stored.source,
        "good": not judged.problems,
        "problems": list(judged.problems),
    }


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
