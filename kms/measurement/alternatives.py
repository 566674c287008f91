"""What else a launch may plausibly have been: other machines for a description, other descriptions.

The order is that of plausibility: what newcomers get wrong most often comes first, one change before two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Final, NamedTuple

from kms.measurement.description import LaunchDescription
from kms.measurement.errors import MeasurementError
from kms.measurement.guest_features import FEATURE_BITS, SNP_ACTIVE
from kms.measurement.vcpu_types import VCPU_TYPES
from kms.measurement.vmsa import Vmm, VmsaVariant

_DEBUG_SWAP: Final = 1 << FEATURE_BITS["debug-swap"]
_SECURE_TSC: Final = 1 << FEATURE_BITS["secure-tsc"]

# Seen on hosts: DebugSwap by default on Linux 6.6 to early 6.8, SecureTSC on 6.18 with QEMU 11.
_COMMON_FEATURES: Final = (
    SNP_ACTIVE,
    SNP_ACTIVE | _DEBUG_SWAP,
    SNP_ACTIVE | _SECURE_TSC,
    SNP_ACTIVE | _DEBUG_SWAP | _SECURE_TSC,
)
_FEATURES: Final = tuple(
    dict.fromkeys((*_COMMON_FEATURES, *(SNP_ACTIVE | 1 << bit for bit in FEATURE_BITS.values())))
)
_VARIANTS: Final = {
    Vmm.QEMU: (VmsaVariant.CURRENT, VmsaVariant.BEFORE_6_10),
    Vmm.EC2: (VmsaVariant.CURRENT, VmsaVariant.RDX_ZERO),
    Vmm.GCE: (VmsaVariant.CURRENT,),
    Vmm.KRUN: (VmsaVariant.CURRENT,),
}


class Family(NamedTuple):
    """Machines that differ in their vCPU count only; the signature is 0 where the hypervisor hides it."""

    vmm: Vmm
    vcpu_signature: int
    guest_features: int
    variant: VmsaVariant = VmsaVariant.CURRENT


def own_families(vmm: Vmm, signatures: Iterable[int], features: Iterable[int]) -> tuple[Family, ...]:
    """Give the families of the signatures and features that a reference names."""
    shown = dict.fromkeys(signatures if vmm.shows_vcpu_type else (0,))
    return tuple(Family(vmm, *each) for each in product(shown, dict.fromkeys(features)))


def near_families(own: Sequence[Family]) -> Iterator[Family]:
    """Give families that are not more than one change from a reference's own, which come first.

    Changed are the type, the features, or the state that another host sets. Some families come again.
    """
    yield from own
    for family in own:
        vmm = family.vmm
        signatures = _signatures(vmm)
        yield from (family._replace(vcpu_signature=signature) for signature in signatures)
        yield from (family._replace(guest_features=features) for features in _FEATURES)
        yield from (family._replace(variant=variant) for variant in _VARIANTS[vmm])


def far_families(vmm: Vmm) -> Iterator[Family]:
    """Give types, common features and states together, then what other hypervisors set."""
    yield from (Family(vmm, *each) for each in product(_signatures(vmm), _COMMON_FEATURES, _VARIANTS[vmm]))
    for other in Vmm:
        if other is not vmm:
            yield from (
                Family(other, *each) for each in product(_signatures(other), (SNP_ACTIVE,), _VARIANTS[other])
            )


def _signatures(vmm: Vmm) -> tuple[int, ...]:
    return tuple(dict.fromkeys(VCPU_TYPES.values())) if vmm.shows_vcpu_type else (0,)


def other_descriptions(
    base: LaunchDescription, cmdlines: Iterable[str], others: Sequence[LaunchDescription]
) -> Iterator[LaunchDescription]:
    """Give descriptions near `base`: other command lines, no kernel hashes, no initrd, parts of others.

    `cmdlines` are plausible ones that the caller knows (a placeholder left unfilled); `others` lend their
    firmware, kernel, initrd and command line in every combination with those of `base`.
    """
    if base.kernel is not None:
        for cmdline in dict.fromkeys((*cmdlines, *_other_cmdlines(base.cmdline or ""))):
            yield replace(base, cmdline=cmdline)
        yield replace(base, kernel=None, initrd=None, cmdline=None)
        yield replace(base, initrd=None)
    for other in others:
        yield from _mixed(base, other)


def _other_cmdlines(cmdline: str) -> Iterator[str]:
    """Give what launchers and shells make of a command line."""
    stripped = cmdline.strip()
    for text in (stripped, cmdline):
        yield from (text, text + " ", text + "\n", " " + text)
    yield from (cmdline.rstrip(), cmdline.lstrip(), " ".join(cmdline.split()))
    for quote in ('"', "'"):
        yield from (stripped.strip(quote), quote + stripped + quote)
    yield ""


def _mixed(base: LaunchDescription, other: LaunchDescription) -> Iterator[LaunchDescription]:
    """Give every mixture of two descriptions' parts; fewest foreign parts first."""
    choices = sorted(product((False, True), repeat=4), key=sum)
    for firmware, kernel, initrd, cmdline in choices[1:]:
        try:
            yield replace(
                base,
                firmware=(other if firmware else base).firmware,
                kernel=(other if kernel else base).kernel,
                initrd=(other if initrd else base).initrd,
                cmdline=(other if cmdline else base).cmdline,
            )
        except MeasurementError:
            # A kernel with firmware that has no place for its hashes: nobody launched that.
            continue
