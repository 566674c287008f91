"""The initial state of a vCPU as each hypervisor sets it: the VMSA page, which is measured.

Offsets: AMD64 Architecture Programmer's Manual volume 2, table B-4. Values: KVM's and QEMU's reset state,
and what the clouds' hypervisors were observed to set, as sev-snp-measure 0.0.13 has them; krun as virtee/sev
7.1.0 has it.
"""

from enum import StrEnum
from struct import pack_into
from typing import Final, NamedTuple

from kms.measurement.errors import MeasurementError
from kms.measurement.metadata import PAGE

BSP_EIP: Final = 0xFFFF_FFF0  # the x86 reset vector, where the first processor starts

_DEFAULT_PAT: Final = 0x0007_0406_0007_0406  # APM volume 2, section 7.8.1: PAT at reset
_GCE_PAT: Final = 0x0007_0106
_MXCSR: Final = 0x1F80
_FCW: Final = 0x37F


class Vmm(StrEnum):
    """Hypervisors whose initial vCPU state is known."""

    QEMU = "qemu"
    EC2 = "ec2"
    GCE = "gce"
    KRUN = "krun"

    @property
    def shows_vcpu_type(self) -> bool:
        """Say whether the measurement depends on the vCPU model; the others set RDX to a constant."""
        return self is Vmm.QEMU


class VmsaVariant(StrEnum):
    """Hosts of one hypervisor that set the state differently. `CURRENT` equals sev-snp-measure 0.0.13."""

    CURRENT = "current"
    BEFORE_6_10 = "before-6.10"  # QEMU on Linux before 6.10: MXCSR and x87 FCW were left zero
    RDX_ZERO = "rdx-0"  # EC2 instances from before 2026: RDX 0 instead of 0x600
    SVSM_FCW = "svsm-fcw"  # snp:svsm with the x87 FCW 0x37f that a 6.10 host sets and the tool leaves out


class _State(NamedTuple):
    cs: int  # segment attributes
    ss: int
    tr: int
    rdx: int
    pat: int = _DEFAULT_PAT
    mxcsr: int = 0
    fcw: int = 0


def _state(vmm: Vmm, variant: VmsaVariant, eip: int, vcpu_signature: int) -> _State:
    match vmm, variant:
        case Vmm.QEMU, VmsaVariant.CURRENT:
            return _State(cs=0x9B, ss=0x93, tr=0x8B, rdx=vcpu_signature, mxcsr=_MXCSR, fcw=_FCW)
        case Vmm.QEMU, VmsaVariant.BEFORE_6_10:
            return _State(cs=0x9B, ss=0x93, tr=0x8B, rdx=vcpu_signature)
        case Vmm.EC2, VmsaVariant.CURRENT | VmsaVariant.RDX_ZERO:
            rdx = 0x600 if variant is VmsaVariant.CURRENT else 0
            return _State(cs=0x9A if eip == BSP_EIP else 0x9B, ss=0x92, tr=0x83, rdx=rdx)
        case Vmm.GCE, VmsaVariant.CURRENT:
            return _State(cs=0x9B, ss=0x93, tr=0x8B, rdx=0x600, pat=_GCE_PAT)
        case Vmm.KRUN, VmsaVariant.CURRENT:
            return _State(cs=0x9A, ss=0x92, tr=0x83, rdx=0)
    raise MeasurementError(f"{vmm.value} has no VMSA variant `{variant.value}`")


def vmsa_page(
    vmm: Vmm,
    eip: int,
    vcpu_signature: int,
    features: int,
    variant: VmsaVariant = VmsaVariant.CURRENT,
) -> bytes:
    """Give the page (4096 bytes) of a processor that starts in real mode at `eip`.

    Raises:
        MeasurementError: a variant that this hypervisor does not have.

    """
    state = _state(vmm, variant, eip, vcpu_signature)
    page = bytearray(PAGE)
    _segment(page, 0x00, 0, 0x93, 0xFFFF, 0)  # ES
    _segment(page, 0x10, 0xF000, state.cs, 0xFFFF, eip & 0xFFFF_0000)
    _segment(page, 0x20, 0, state.ss, 0xFFFF, 0)
    for offset in (0x30, 0x40, 0x50):  # DS, FS, GS
        _segment(page, offset, 0, 0x93, 0xFFFF, 0)
    _tables(page, state.tr)
    _registers(page, cr0=0x10, rip=eip & 0xFFFF, pat=state.pat, rdx=state.rdx, features=features)
    pack_into("<I4xH", page, 0x408, state.mxcsr, state.fcw)
    return bytes(page)


def svsm_vmsa_page(eip: int, *, vcpu_signature: int, variant: VmsaVariant = VmsaVariant.CURRENT) -> bytes:
    """Give the page (4096 bytes) of every processor under Coconut-SVSM: 32-bit protected mode at `eip`.

    By default x87 FCW stays 0 beside MXCSR 0x1f80, as sev-snp-measure 0.0.13 computes it.

    Raises:
        MeasurementError: a variant that is not QEMU's.

    """
    try:
        mxcsr, fcw = {
            VmsaVariant.CURRENT: (_MXCSR, 0),
            VmsaVariant.BEFORE_6_10: (0, 0),
            VmsaVariant.SVSM_FCW: (_MXCSR, _FCW),
        }[variant]
    except KeyError:
        raise MeasurementError(f"snp:svsm has no VMSA variant `{variant.value}`") from None
    page = bytearray(PAGE)
    _segment(page, 0x10, 8, 0xC9B, 0xFFFF_FFFF, 0)  # CS
    for offset in (0x00, 0x20, 0x30, 0x40):  # ES, SS, DS, FS
        _segment(page, offset, 16, 0xC93, 0xFFFF_FFFF, 0)
    _segment(page, 0x50, 0, 0x93, 0xFFFF, 0)  # GS
    _tables(page, 0x8B)
    _registers(page, cr0=0x11, rip=eip, pat=_DEFAULT_PAT, rdx=vcpu_signature, features=1)
    pack_into("<I4xH", page, 0x408, mxcsr, fcw)
    return bytes(page)


def _segment(page: bytearray, offset: int, *state: int) -> None:
    # vmcb_seg: selector, attributes, limit, base
    pack_into("<HHIQ", page, offset, *state)


def _tables(page: bytearray, tr: int) -> None:
    _segment(page, 0x60, 0, 0, 0xFFFF, 0)  # GDTR
    _segment(page, 0x70, 0, 0x82, 0xFFFF, 0)  # LDTR
    _segment(page, 0x80, 0, 0, 0xFFFF, 0)  # IDTR
    _segment(page, 0x90, 0, tr, 0xFFFF, 0)


def _registers(page: bytearray, *, cr0: int, rip: int, pat: int, rdx: int, features: int) -> None:
    for offset, value in (
        (0xD0, 0x1000),  # EFER: KVM enables SVME
        (0x148, 0x40),  # CR4: KVM enables MCE
        (0x158, cr0),
        (0x160, 0x400),  # DR7
        (0x168, 0xFFFF_0FF0),  # DR6
        (0x170, 0x2),  # RFLAGS
        (0x178, rip),
        (0x268, pat),
        (0x310, rdx),
        (0x3B0, features),  # SEV_FEATURES
        (0x3E8, 0x1),  # XCR0
    ):
        pack_into("<Q", page, offset, value)
