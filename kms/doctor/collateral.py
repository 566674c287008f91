"""AMD's certificates and revocation lists: what is kept, how old it is, and whom to ask for more."""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from kms.database.collateral import CollateralDatabase
from kms.doctor.asking import Heard, ask
from kms.doctor.diagnosis import Diagnoses
from kms.findings import Finding, failed, ok, warning
from kms.kds.audit import Freshness, freshness
from kms.ports import Clock, StoredRevocationList
from kms.settings import Settings
from kms.snp.flags import Signer
from kms.snp.kds_paths import Line
from kms.snp.product import Product
from kms.snp.revocation import RevocationMode

# A chain, which is the same for everybody: AMD's service counts what is asked for single chips.
_ASKED_FOR: Final = f"{Line(Signer.VCEK, Product.MILAN).folder}/cert_chain"
_TOO_MANY: Final = 429


async def services(settings: Settings) -> tuple[Diagnoses, dict[str, float]]:
    """Ask each key distribution service one question; give what is said of it, and how far its clock is."""
    if not settings.kds_urls:
        return [ok("kds", "nobody is asked (KMS_KDS_URLS=none): what guests and operators bring must do")], {}
    heard = {url: await ask(url + _ASKED_FOR, trust=None, proxies=True) for url in settings.kds_urls}
    ahead = {
        url: each.ahead for url, each in heard.items() if isinstance(each, Heard) and each.ahead is not None
    }
    reached = any(isinstance(each, Heard) and each.status < 500 for each in heard.values())
    return [_said(url, each, reached=reached) for url, each in heard.items()], ahead


def _said(url: str, heard: Heard | str, *, reached: bool) -> Finding:
    remedy = "until it answers, chips whose certificates nobody has are refused (docs/guides/collateral.md)"
    if isinstance(heard, str):
        detail = f"{url}: {heard}"
        return warning("kds", detail, remedy) if reached else failed("kds", detail, remedy)
    detail = f"{url} answers with status {heard.status}"
    if heard.status == _TOO_MANY:
        return ok("kds", f"{detail}: it is there, and asks for patience")
    if heard.status != 200:
        return warning("kds", detail, "is it a key distribution service, or a mirror that was filled?")
    return ok("kds", detail)


async def kept(engine: AsyncEngine, settings: Settings, clock: Clock) -> Iterable[Finding]:
    """Look at what is kept. Raises `LedgerUnavailable`."""
    store, now = CollateralDatabase(engine, clock), clock()
    counts = await store.counts()
    number = sum(each.count for each in counts)
    ended = sorted({f"{each.line.folder} {each.role.value}" for each in counts if each.next_expiry is None})
    if ended:
        certificates = warning(
            "certificates",
            f"{number} are kept; all of these have ended: {', '.join(ended)}",
            "kms collateral fetch brings new ones",
        )
    else:
        certificates = ok("certificates", f"{number} are kept")
    return [certificates, _lists(await store.revocation_lists(), settings, now)]


def _lists(lists: tuple[StoredRevocationList, ...], settings: Settings, now: datetime) -> Finding:
    name, mode = "revocation-lists", f"KMS_CRL={settings.crl.value}"
    if settings.crl is RevocationMode.OFF:
        return warning(name, f"{mode}: a revoked chip's certificate is still taken", "leave KMS_CRL unset")
    if not lists:
        seen = f"{mode}, and none is kept"
        remedy = "kms collateral fetch brings them; the server fetches those it meets"
        required = settings.crl is RevocationMode.REQUIRE
        return failed(name, seen, remedy) if required else warning(name, seen, remedy)
    by = {each.line.folder: freshness(each.list, settings.crl_max_age, now) for each in lists}
    remedy = "kms collateral fetch, or import a newer bundle; can the server reach the service?"
    if old := [line for line, state in by.items() if state is Freshness.TOO_OLD]:
        seen = f"{mode}: too old to vouch for anybody: {', '.join(old)}"
        return failed(name, seen, remedy)
    if stale := [line for line, state in by.items() if state is Freshness.STALE]:
        return warning(name, f"{mode}: past their next update: {', '.join(stale)}", remedy)
    return ok(name, f"{mode}: {len(lists)} kept, all fresh")
