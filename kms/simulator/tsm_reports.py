"""What a SIMULATED guest's kernel asks its chip for: the reports behind a SIMULATED configfs-tsm."""

from dataclasses import replace

from kms.simulator.chip import SimulatedGuest
from kms.simulator.tsm_fuse import Report


def reports_of(guest: SimulatedGuest) -> Report:
    """Give a `Report` that the guest's chip signs, with the certificates that its host hands it."""
    certificates = guest.chip.certificate_table()

    def report(report_data: bytes, privlevel: int) -> tuple[bytes, bytes]:
        return replace(guest, vmpl=privlevel).report(report_data), certificates

    return report
