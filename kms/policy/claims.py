"""What a report claims, judged before it is verified, and before a certificate is sought for it.

Anybody can write a report. Each fetch costs a part of what AMD's key distribution service grants us, so a
report whose claims no app accepts is refused without one. This can only refuse: what passes here is verified
and judged in full.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from kms.checks import Check
from kms.identifiers import AppId, ChipId, ComposeHash, Measurement
from kms.policy.compiled import Policy
from kms.policy.platform_checks import chip_checks, revocation_checks, tcb_checks
from kms.snp.flags import PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion, Report
from kms.snp.tcb import TcbVersions


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What an unverified report and the request say of the platform and the app. Nothing of it is proven."""

    app_id: AppId | None
    compose_hash: ComposeHash | None
    measurement: Measurement
    chip_id: ChipId | None
    product: Product
    cpuid: Cpuid | None
    signer: Signer
    tcb: TcbVersions
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    platform_info: PlatformInfo
    launch_mitigations: int | None
    current_mitigations: int | None

    @classmethod
    def of(
        cls, report: Report, product: Product, app_id: AppId | None, compose_hash: ComposeHash | None
    ) -> "Claims":
        """Read a report as one of this product's, signed by whom it says."""
        return cls(
            app_id=app_id,
            compose_hash=compose_hash,
            measurement=report.measurement,
            chip_id=report.chip_id,
            product=product,
            cpuid=report.cpuid,
            signer=report.flags.signer or Signer.VCEK,
            tcb=report.tcbs.decode(product),
            current_firmware=report.current_firmware,
            committed_firmware=report.committed_firmware,
            platform_info=report.platform_info,
            launch_mitigations=report.launch_mitigations,
            current_mitigations=report.current_mitigations,
        )


def claim_checks(policy: Policy, claims: Claims, now: datetime) -> Iterator[Check]:
    """Check the claimed app, compose, chip and TCB, as the decision would; no image and no key.

    The first is about the app; of one that is listed, the second is about its compose.
    """
    app = None if claims.app_id is None else policy.compiled_app(claims.app_id)
    yield Check.of("app-listed", app is not None, "the app that the guest names", reason="app-not-listed")
    if app is not None:
        compose = claims.compose_hash
        listed = compose is not None and app.document.compose.allows(compose)
        detail = "the compose that the guest names"
        yield Check.of("compose-listed", listed, detail, reason="compose-not-listed")
    yield from revocation_checks(policy, claims)
    if app is not None:
        yield from chip_checks(policy, app, claims, now)
        yield from tcb_checks(app, claims, now)
