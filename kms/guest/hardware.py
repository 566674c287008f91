"""Which of the kernel's two interfaces gives the evidence: configfs-tsm, or the older /dev/sev-guest."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kms.guest.collection import BUSY_PATIENCE, BusyRetry
from kms.guest.errors import EvidenceError
from kms.guest.evidence import EvidenceSource
from kms.guest.sev_guest_device import DEFAULT_DEVICE, SevGuestSource
from kms.guest.tsm import DEFAULT_TSM, TsmSource
from kms.strict_json import JsonValue


class Interface(StrEnum):
    """What to ask for evidence."""

    AUTO = "auto"
    TSM = "tsm"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceOptions:
    """Where evidence comes from. `privlevel` is the VMPL to ask as, 0 to 3; None: the kernel's default."""

    tsm: Path = DEFAULT_TSM
    device: Path = DEFAULT_DEVICE
    interface: Interface = Interface.AUTO
    privlevel: int | None = None


def evidence_source(
    options: EvidenceOptions,
    *,
    launch: Mapping[str, JsonValue] | None = None,
    patience: float = BUSY_PATIENCE,
) -> EvidenceSource:
    """Give this machine's evidence; `launch` is a hint that goes with it.

    `patience`, in seconds, is for a platform that is busy.

    Raises:
        EvidenceError: neither interface is there, and `options` leave the choice.

    """
    retry = BusyRetry(patience=patience)
    if _chosen(options) is Interface.TSM:
        return TsmSource(options.tsm, privlevel=options.privlevel, launch=launch, retry=retry)
    return SevGuestSource(options.device, privlevel=options.privlevel, launch=launch, retry=retry)


def _chosen(options: EvidenceOptions) -> Interface:
    if options.interface is not Interface.AUTO:
        return options.interface
    # configfs-tsm first: it checks for conflicts, and asks the firmware once where the device asks twice.
    if _is_there(options.tsm):
        return Interface.TSM
    if _is_there(options.device):
        return Interface.DEVICE
    raise EvidenceError(
        f"neither {options.tsm} nor {options.device} is there: mount configfs and load the sev-guest module;"
        " where that fails, this is not an SEV-SNP guest, or its kernel is older than Linux 5.19",
        reason="evidence-interface-missing",
    )


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # asking it says what is wrong
    return True
