"""BootInfo: what a guest proved about itself. Policy judges it, the audit records it, the guest is told it.

It is flat and free of the types that made it, so that a recorded one can be judged again against a
candidate policy. Every value comes from a verified report, a recomputed measurement or a bound document.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256

from kms.evidence.app_document import AppIdentity
from kms.evidence.launch import LaunchFacts
from kms.evidence.sev_snp import TEE
from kms.identifiers import AppId, ChipId, ComposeHash, InstanceId, KeyDigest, Measurement, OsImageHash
from kms.measurement.images import Binding
from kms.snp.advisories import Advisories, TcbStatus, assess
from kms.snp.flags import GuestPolicy, PlatformInfo, Signer
from kms.snp.product import Cpuid, Product
from kms.snp.report import FirmwareVersion
from kms.snp.tcb import TcbVersion, TcbVersions
from kms.snp.verify import VerifiedReport
from kms.strict_json import JsonValue, canonical_json


# Not slotted: its JSON form is made once, for the record and for the guest.
@dataclass(frozen=True, kw_only=True)
class BootInfo:
    """What a guest proved. None means "not proven" or "this report cannot say", never "anything".

    The launch (`os_image_hash` to `guest_features`) and the app (`app_id` to `binding`) are None only
    where evidence is explained without them; a policy allows no such BootInfo. `advisories` is None while
    they were not assessed, which is not the same as none that apply.
    """

    tee: str
    product: Product
    cpuid: Cpuid | None
    report_version: int
    signer: Signer
    csp_id: str | None
    measurement: Measurement
    os_image_hash: OsImageHash | None
    image: str | None
    vcpus: int | None
    vcpu_type: str | None
    guest_features: int | None
    app_id: AppId | None
    compose_hash: ComposeHash | None
    instance_id: InstanceId | None
    binding: Binding | None
    chip_id: ChipId | None
    tcb: TcbVersions
    current_firmware: FirmwareVersion
    committed_firmware: FirmwareVersion
    tcb_status: TcbStatus | None
    advisories: tuple[str, ...] | None
    guest_policy: GuestPolicy
    platform_info: PlatformInfo
    launch_mitigations: int | None
    current_mitigations: int | None
    vmpl: int
    guest_svn: int
    family_id: bytes
    image_id: bytes
    id_key_digest: KeyDigest
    author_key_digest: KeyDigest
    host_data: bytes
    report_id: bytes

    @property
    def launch(self) -> LaunchFacts | None:
        """The launch; None if it is not proven, or not all of it."""
        if (
            self.os_image_hash is None
            or self.vcpus is None
            or self.vcpu_type is None
            or self.guest_features is None
        ):
            return None
        return LaunchFacts(
            measurement=self.measurement,
            image=self.image,
            os_image_hash=self.os_image_hash,
            vcpus=self.vcpus,
            vcpu_type=self.vcpu_type,
            guest_features=self.guest_features,
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the RFC 8785 form of what the guest is told: certificates carry it."""
        return sha256(canonical_json(self.to_json())).digest()

    def as_launched(
        self, launch: LaunchFacts | None, app: AppIdentity | None, advisories: Advisories
    ) -> "BootInfo":
        """Give it with this launch and app in place of its own, assessed by these bulletins.

        They are assessed by what BootInfo itself holds, so that a recorded one is assessed by newer data.
        """
        assessment = assess(advisories, self)
        return replace(
            self,
            os_image_hash=launch.os_image_hash if launch else None,
            image=launch.image if launch else None,
            vcpus=launch.vcpus if launch else None,
            vcpu_type=launch.vcpu_type if launch else None,
            guest_features=launch.guest_features if launch else None,
            app_id=app.app_id if app else None,
            compose_hash=app.compose_hash if app else None,
            instance_id=app.instance_id if app else None,
            binding=app.binding if app else None,
            tcb_status=assessment.tcb_status,
            advisories=assessment.advisories,
        )

    def to_json(self) -> dict[str, JsonValue]:
        """Give the JSON form of the protocol: hex digests, named bits beside the raw value.

        It is made once, for all who ask: nobody may change it.
        """
        return self._json

    @cached_property
    def _json(self) -> dict[str, JsonValue]:
        cpuid: JsonValue = None
        if self.cpuid is not None:
            cpuid = {
                "family": self.cpuid.family,
                "model": self.cpuid.model,
                "stepping": self.cpuid.stepping,
            }
        return {
            "tee": self.tee,
            "product": self.product.value,
            "cpuid": cpuid,
            "report_version": self.report_version,
            "signer": self.signer.value,
            "csp_id": self.csp_id,
            "measurement": self.measurement.hex(),
            "os_image_hash": _hex(self.os_image_hash),
            "image": self.image,
            "vcpus": self.vcpus,
            "vcpu_type": self.vcpu_type,
            "guest_features": _bits(self.guest_features),
            "app_id": _hex(self.app_id),
            "compose_hash": _hex(self.compose_hash),
            "instance_id": _hex(self.instance_id),
            "binding": None if self.binding is None else self.binding.value,
            "chip_id": _hex(self.chip_id),
            "tcb": {
                "current": _levels(self.tcb.current),
                "reported": _levels(self.tcb.reported),
                "committed": _levels(self.tcb.committed),
                "launch": _levels(self.tcb.launch),
            },
            "firmware": {
                "current": _firmware(self.current_firmware),
                "committed": _firmware(self.committed_firmware),
            },
            "tcb_status": None if self.tcb_status is None else self.tcb_status.value,
            "advisories": None if self.advisories is None else list(self.advisories),
            "guest_policy": {
                "raw": hex(self.guest_policy.raw),
                "abi_major": self.guest_policy.abi_major,
                "abi_minor": self.guest_policy.abi_minor,
                **self.guest_policy.bits(),
            },
            "platform_info": {"raw": hex(self.platform_info.raw), **self.platform_info.bits()},
            "mitigations": {
                "launch": _bits(self.launch_mitigations),
                "current": _bits(self.current_mitigations),
            },
            "vmpl": self.vmpl,
            "guest_svn": self.guest_svn,
            "family_id": self.family_id.hex(),
            "image_id": self.image_id.hex(),
            "id_key_digest": self.id_key_digest.hex(),
            "author_key_digest": self.author_key_digest.hex(),
            "host_data": self.host_data.hex(),
            "report_id": self.report_id.hex(),
        }


def build_boot_info(
    verified: VerifiedReport, launch: LaunchFacts | None, app: AppIdentity | None, advisories: Advisories
) -> BootInfo:
    """Put together what was proven: by the chip, by recomputation, by the bound document or command line."""
    report = verified.report
    proven = BootInfo(
        tee=TEE,
        product=verified.product,
        cpuid=report.cpuid,
        report_version=report.version,
        signer=verified.signer,
        csp_id=verified.csp_id,
        measurement=report.measurement,
        os_image_hash=None,
        image=None,
        vcpus=None,
        vcpu_type=None,
        guest_features=None,
        app_id=None,
        compose_hash=None,
        instance_id=None,
        binding=None,
        chip_id=report.chip_id,
        tcb=verified.tcb,
        current_firmware=report.current_firmware,
        committed_firmware=report.committed_firmware,
        tcb_status=None,
        advisories=None,
        guest_policy=report.policy,
        platform_info=report.platform_info,
        launch_mitigations=report.launch_mitigations,
        current_mitigations=report.current_mitigations,
        vmpl=report.vmpl,
        guest_svn=report.guest_svn,
        family_id=report.family_id,
        image_id=report.image_id,
        id_key_digest=report.id_key_digest,
        author_key_digest=report.author_key_digest,
        host_data=report.host_data,
        report_id=report.report_id,
    )
    return proven.as_launched(launch, app, advisories)


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()


def _bits(value: int | None) -> str | None:
    return None if value is None else hex(value)


def _levels(version: TcbVersion) -> dict[str, JsonValue]:
    return dict(version.components())


def _firmware(version: FirmwareVersion) -> dict[str, JsonValue]:
    return {"version": f"{version.major}.{version.minor}", "build": version.build}
