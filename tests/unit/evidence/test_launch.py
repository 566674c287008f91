"""What a stranger may make the launch finder do before anything is proven."""

from collections.abc import Mapping

import yaml

from kms.evidence.launch import LaunchFinder, NamedApp
from kms.identifiers import AppId, ComposeHash, Measurement
from kms.measurement.images import LaunchHint
from kms.measurement.launch import Machine, launch_measurement
from kms.policy.compiled import Policy
from kms.policy.revision import Revision
from kms.simulator.chip import SimulatedChip, simulated_chip_id
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.world import APP_ID, NOW, app_document, describe_image, image_document, tcb_document

CMDLINE = "console=ttyS0 app={app_id} compose={compose_hash}"
NO_HINT = LaunchHint()


def finder(hierarchies: Mapping[Product, AmdHierarchy]) -> LaunchFinder:
    chip_id = simulated_chip_id(Product.MILAN, b"launch")
    chip = SimulatedChip.typical(hierarchies[Product.MILAN], chip_id=chip_id, now=NOW)
    documents = [
        app_document(chip, compose="any", binding=["cmdline"]),
        image_document("os-1", describe_image(CMDLINE), enforces=["cmdline"], vcpus={"min": 1, "max": 4}),
        tcb_document(chip),
    ]
    text = "---\n".join(yaml.safe_dump(each, sort_keys=False) for each in documents)
    return LaunchFinder(Policy(Revision.from_files({"policy.yaml": text.encode()}, development=True)))


def named(number: int) -> NamedApp:
    return NamedApp(app_id=AppId.from_hex(APP_ID), compose_hash=ComposeHash(number.to_bytes(32, "big")))


def shown(app: NamedApp) -> Measurement:
    filled = CMDLINE.format(app_id=app.app_id.hex(), compose_hash=(app.compose_hash or b"").hex())
    machine = Machine(vcpus=2, vcpu_signature=0x800F12, guest_features=1)
    return launch_measurement(describe_image(CMDLINE), machine, cmdline=filled)


def test_a_claim_is_looked_up_for_its_own_command_line(
    simulated_hierarchies: Mapping[Product, AmdHierarchy],
) -> None:
    found = finder(simulated_hierarchies)
    assert found.may_show(shown(named(1)), NO_HINT, named(1))
    assert not found.may_show(shown(named(1)), NO_HINT, named(2))
    assert not found.may_show(shown(named(1)), NO_HINT, None)


def test_claims_leave_nothing_in_memory(simulated_hierarchies: Mapping[Product, AmdHierarchy]) -> None:
    """Each compose hash that a stranger makes up would be a table of measurements."""
    found = finder(simulated_hierarchies)
    for number in range(1, 5):
        found.may_show(Measurement(bytes(48)), NO_HINT, named(number))
    assert not found._guest_chosen
