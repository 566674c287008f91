"""The whole examination: every part is looked at, whatever is wrong with the others."""

from collections.abc import Callable, Iterator
from functools import cache, partial

from kms.findings import Finding, unknown
from kms.guest.config import GuestConfig
from kms.guest.doctor import app, clocks, hardware, kernel, storage
from kms.guest.doctor.finding import fallen, looked_at
from kms.guest.doctor.network import WITHIN, way_to_server
from kms.guest.doctor.system import System
from kms.guest.evidence import EvidenceSource
from kms.guest.hardware import EvidenceOptions, evidence_source


def examine(
    system: System,
    config: GuestConfig | None,
    options: EvidenceOptions,
    *,
    source: Callable[[EvidenceOptions], EvidenceSource] = evidence_source,
    within: float = WITHIN,
) -> Iterator[Finding]:
    """Look at everything, one after the other, and change nothing: an entry for evidence is removed again.

    `config` is None where there is none; then only the machine is looked at. `options` say where evidence
    comes from. `within`, in seconds, is for each step to the server.
    """
    opens_disks = config is not None and bool(config.volumes)
    yield from _kernel(system, options, opens_disks=opens_disks)
    yield from _hardware(system, config, options, partial(source, options))
    yield looked_at("clock", lambda: clocks.clock(system))
    yield from _server(system, config, within)
    yield looked_at("cryptsetup", lambda: storage.cryptsetup(system, needed=opens_disks))
    yield looked_at("device-mapper", lambda: storage.device_mapper(system, needed=opens_disks))
    yield looked_at("run-in-memory", lambda: storage.run_in_memory(system))
    yield looked_at("swap", lambda: storage.swap(system))
    yield looked_at("core-dumps", lambda: storage.core_dumps(system))


def _kernel(system: System, options: EvidenceOptions, *, opens_disks: bool) -> Iterator[Finding]:
    built = cache(lambda: kernel.Kernel.of(system))
    needs_tsm = hardware.needs_tsm(options)
    yield looked_at("architecture", lambda: kernel.architecture(system))
    yield looked_at("kernel-version", lambda: kernel.version(system))
    needs = {
        kernel.MEMORY_ENCRYPTION: True,
        kernel.SEV_GUEST: True,
        kernel.CONFIGFS: needs_tsm,
        kernel.TSM_REPORTS: needs_tsm,
        kernel.DM_CRYPT: opens_disks,
    }
    for part, needed in needs.items():
        yield looked_at(part.name, partial(_part, built, part, needed=needed))
    yield looked_at("kernel-command-line", lambda: kernel.command_line(system))


def _part(built: Callable[[], kernel.Kernel], part: kernel.Part, *, needed: bool) -> Finding:
    return built().has(part, needed=needed)


def _hardware(
    system: System,
    config: GuestConfig | None,
    options: EvidenceOptions,
    source: Callable[[], EvidenceSource],
) -> Iterator[Finding]:
    seen = hardware.Seen()
    yield looked_at("sev-snp", lambda: hardware.is_snp(system))
    yield looked_at("configfs-tsm", lambda: hardware.configfs_tsm(system, options))
    yield looked_at("sev-guest-device", lambda: hardware.device(options))
    yield looked_at("left-behind", lambda: hardware.left_behind(options.tsm))
    yield looked_at("evidence", lambda: hardware.evidence(system, source, seen))
    if config is not None:
        yield looked_at("app-document", lambda: app.app_document(config, seen))
        yield looked_at("workload", lambda: app.workload(config, seen))


def _server(system: System, config: GuestConfig | None, within: float) -> Iterator[Finding]:
    if config is None:
        yield unknown("server", "nothing says which one it is", "name it: --config FILE, or --server URL")
        return
    try:
        yield from way_to_server(config, now=system.now, within=within)
    except Exception as error:  # noqa: BLE001 -- as in `looked_at`
        yield fallen("server", error)
