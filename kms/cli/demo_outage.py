"""The story of ``kms demo --kds-down``: AMD's key distribution service (KDS) goes away, and guests boot."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kms.cli.demo_outage_scene import Guests, Outcome, ask_once, boot, prepare_open_policy
from kms.cli.demo_outage_steps import Steps
from kms.cli.demo_scene import ImageFiles
from kms.cli.demo_server import RunningServer, run_server
from kms.cli.demo_show import Show
from kms.cli.demo_story import fingerprint, make_hierarchy
from kms.cli.output import OK, REFUSED, print_json
from kms.guest.transport import Connection
from kms.simulator.kds import SimulatedKds
from kms.simulator.kds_faults import Faults
from kms.simulator.kds_log import Kind

_CHALLENGE_SECONDS: Final = 300
_EXCHANGE: Final = 20.0  # seconds
# Seconds; AMD's is about 10. Longer than the server lets a guest wait, so that the guest must come again.
_THROTTLE: Final = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Who plays: the server, its KDS, and the guests; and who tells."""

    show: Show
    steps: Steps
    kds: SimulatedKds
    server: RunningServer
    connection: Connection
    guests: Guests


def tell_outage(folder: Path, *, as_json: bool, kept: bool) -> int:
    """Tell the story in `folder`, an empty one of our own, and give the exit status.

    Raises:
        KmsError: the demo itself cannot run: no server.

    """
    show = Show(programs=as_json)
    show.development()
    with ExitStack() as stack:
        show.chapter("The operator")
        with show.step("a key hierarchy in the form of AMD's, for the simulated chips (RSA-4096)"):
            hierarchy = make_hierarchy()
        roots = folder / "development-roots.pem"
        roots.write_bytes(hierarchy.ark.pem)
        files = ImageFiles.build()
        guests = Guests.power_on(hierarchy, files)
        kds = stack.enter_context(SimulatedKds([hierarchy], [guests.first.chip, guests.second.chip]))
        show.done("a key distribution service (KDS) with AMD's paths, which knows two chips")
        show.fact(
            "KDS (SIMULATED)", f"{kds.url}, plain HTTP: what it sends is believed for its signatures only"
        )
        with show.step("kms serve: as in `kms demo`, but any genuine chip is allowed, and the KDS is asked"):
            server = stack.enter_context(
                run_server(
                    folder,
                    policies=prepare_open_policy(files, folder),
                    development_roots=roots,
                    challenge_seconds=_CHALLENGE_SECONDS,
                    kds_url=kds.url,
                )
            )
        show.fact("server", f"{server.url}, process {server.process_id}")
        connection = stack.enter_context(Connection(server.url, ca_file=server.ca_file, timeout=_EXCHANGE))
        steps = Steps(show, kds)
        stage = Stage(show=show, steps=steps, kds=kds, server=server, connection=connection, guests=guests)
        _kds_up(stage)
        _kds_down(stage)
        _kds_back(stage)
    return end(show, steps, folder, as_json=as_json, kept=kept)


def _kds_up(stage: Stage) -> None:
    stage.show.chapter("The KDS is up")
    stage.steps.step(
        "first boot of a chip",
        "the guest brought no certificates; the server asked for them, verified and stored them",
        lambda: boot(stage.server, stage.guests.first),
        status=200,
        conditions=lambda _outcome, asked: {
            "one request for the certificate": sum(each.kind is Kind.VCEK for each in asked) == 1,
        },
    )


def _kds_down(stage: Stage) -> None:
    stage.show.chapter("The KDS is down: every connection is cut")
    stage.kds.faults = Faults(down=True)
    before = _fingerprints(stage.steps.all[-1].outcome)
    stage.steps.step(
        "same chip, KDS down",
        "it boots again, nobody noticed, and the keys are the same",
        lambda: boot(stage.server, stage.guests.first),
        status=200,
        conditions=lambda outcome, asked: {
            "no request to the KDS": not asked,
            "the same keys": _fingerprints(outcome) == before,
        },
    )
    stage.steps.step(
        "new chip, KDS down",
        "its certificate cannot be had now: no verdict on the guest, which is told when to come again",
        lambda: ask_once(stage.connection, stage.guests.second),
        status=503,
        code="collateral-unavailable",
        conditions=lambda outcome, asked: {
            "the KDS was tried": bool(asked),
            "Retry-After": bool(outcome.retry_after),
        },
    )
    stage.show.done("kms collateral status, what an operator would look at:")
    stage.show.text(stage.server.run("collateral", "status"))


def _kds_back(stage: Stage) -> None:
    stage.show.chapter(f"The KDS is back, and throttles: one certificate in {_THROTTLE:g} s, else 429")
    # Somebody else behind the same address was faster.
    stage.kds.use_turn()
    stage.kds.faults = Faults(interval=_THROTTLE)
    stage.steps.step(
        "new chip, KDS throttles",
        "its guest came again when it was told to, and got its keys; the certificate is stored for ever",
        lambda: boot(stage.server, stage.guests.second),
        status=200,
        conditions=lambda _outcome, _asked: {
            "the certificate was handed out once": stage.kds.served(stage.guests.second.certificate_path)
            == 1,
        },
    )
    stage.steps.step(
        "invented chip",
        "a forged report of a chip that does not exist: the KDS's 404 is an answer, and a refusal",
        lambda: boot(stage.server, stage.guests.invented),
        status=403,
        code="evidence-untrusted",
        conditions=lambda _outcome, asked: {
            "the KDS said 404": any(each.status == 404 for each in asked),
        },
    )
    stage.steps.step(
        "unknown measurement",
        "a forged report of an image that no app accepts: the KDS is not even asked",
        lambda: boot(stage.server, stage.guests.tampered),
        status=403,
        code="measurement-unknown",
        conditions=lambda _outcome, asked: {"no request to the KDS": not asked},
    )


def end(show: Show, steps: Steps, folder: Path, *, as_json: bool, kept: bool) -> int:
    """Say how it went, and give the exit status: another one if any step is not as it must be."""
    wrong = sum(bool(step.wrong) for step in steps.all)
    if as_json:
        print_json({"released": not wrong, "steps": [step.to_json() for step in steps.all]})
    if kept:
        show.done(f"everything is in {folder}: policies/, image/, data/, server.log")
    if wrong:
        show.failure(f"NOT AS IT MUST BE: {wrong} step(s)")
        return REFUSED
    show.success(
        "Every genuine guest got its keys, no forger did, and the KDS handed out each certificate once."
    )
    return OK


def _fingerprints(outcome: Outcome) -> tuple[str, ...]:
    return () if outcome.payload is None else tuple(fingerprint(key) for key in outcome.payload.keys)
