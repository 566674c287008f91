"""The drill: a new epoch of the root, fifty guests that encrypt their disks again, the end of the old epoch.

A real server process and real commands; guests with SIMULATED chips, and files that are encrypted in earnest,
so that data can be lost. What the section of docs/guides/keys.md shows is typed here, and printed.
"""

import json
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kms.cli.demo_scene import APP_ID
from kms.encoding import from_base64
from kms.guest.errors import AnswerRejected, Refused
from kms.simulator.hierarchy import AmdHierarchy
from kms.snp.product import Product
from tests.e2e.disk_fleet import LEDGER, DiskFleet, DiskGuest, Kms, LastingServer, PinnedApp, Seen
from tests.e2e.disks import Disk, Locked
from tests.e2e.rack import Rack
from tests.e2e.terminal import Terminal
from tests.e2e.test_walkthrough import Step, steps
from tests.e2e.wire import Notebook, noted
from tests.servers.vault import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "keys.md"
# In the page: a server somewhere, and a time to come.
SERVER, TIME = "https://kms.example.org:8443", "2026-12-01T00:00:00Z"
REMOTE = f"--server {SERVER} --ca ca.pem --token-file alice.token"

CHIPS, GUESTS, NEWCOMERS = 8, 50, 5
AT_ONCE = 8
AHEAD = timedelta(seconds=8)  # of the epoch that is scheduled
UNAVAILABLE = (403, "epoch-unavailable", ("epoch-unavailable",))

T = TypeVar("T")


@dataclass(kw_only=True)
class Drill:
    """The server, an operator's terminal on its machine, and what guests do at once."""

    server: LastingServer
    terminal: Terminal
    notebook: Notebook
    pool: ThreadPoolExecutor
    encrypted_again: list[int] = field(default_factory=list)  # bytes, of each disk

    def by_all(self, guests: Iterable[DiskGuest], work: Callable[[DiskGuest], T]) -> list[T]:
        return list(self.pool.map(work, guests))

    def move(self, guests: Iterable[DiskGuest], epoch: int) -> None:
        self.encrypted_again += self.by_all(guests, lambda guest: guest.move(epoch))

    def releases(self, status: int) -> int:
        return sum(
            (each.path, each.status) == ("/v1/releases", status) for each in list(self.notebook.answers)
        )

    def identity(self) -> dict[str, Any]:
        client = self.server.now.client()
        try:
            answer = client.http.get("/v1/identity").json()
        finally:
            client.close()
        assert isinstance(answer, dict)
        return answer

    def refused_to_retire(self) -> dict[str, Any]:
        """Try to retire epoch 1, and give the refusal."""
        typed = self.terminal.type(f"kms keys retire 1 --json {REMOTE}", status=1)
        error = json.loads(typed.output)["error"]
        assert error["code"] == "epoch-in-use"
        assert isinstance(error, dict)
        return error


@contextmanager
def drill(folder: Path, settings: Mapping[str, str]) -> Iterator[Drill]:
    """Start the server, and a terminal of an operator who has a token of it."""
    with ExitStack() as stack:
        server = stack.enter_context(LastingServer(folder / "kms-data", settings))
        terminal = Terminal(folder=folder, settings=server.now.settings, means={SERVER: server.now.url})
        terminal.type("cp kms-data/tls/ca.pem .")
        terminal.type("(umask 077; kms operator add alice --role admin > alice.token)")
        yield Drill(
            server=server,
            terminal=terminal,
            notebook=stack.enter_context(noted(server.now.ca)),
            pool=stack.enter_context(ThreadPoolExecutor(AT_ONCE)),
        )
    assert "Traceback" not in server.now.log_text()


def shown() -> list[Step]:
    """Give what the page shows of rotation."""
    [section] = re.findall(
        r"^## Rotation\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    return list(steps(section))


def seen(guests: Iterable[Mapping[str, Any]]) -> set[Seen]:
    return {Seen(each["app_id"], each["instance_id"], each["chip_id"]) for each in guests}


def of_epoch(epoch: int, guests: Iterable[DiskGuest]) -> set[Seen]:
    """Give the guests whose disks are of this epoch, as the disks say."""
    return {guest.seen for guest in guests if guest.disk.epoch == epoch}


def refused(work: Callable[[], object]) -> tuple[int, str, tuple[str, ...]]:
    with pytest.raises(Refused) as caught:
        work()
    problem = caught.value.problem
    return problem.status, problem.code, problem.reasons


@pytest.mark.slow
@pytest.mark.enable_socket
def test_lesson_30_fifty_guests_change_epochs_and_none_is_left_without_its_data(
    tmp_path: Path, simulated_hierarchies: Mapping[Product, AmdHierarchy]
) -> None:
    page, began = shown(), time.monotonic()
    rack = Rack(tmp_path, simulated_hierarchies[Product.MILAN], chips=CHIPS)
    ledger = PinnedApp(rack.policies)
    ledger.pin(1)
    with drill(tmp_path, rack.settings) as running:
        before = running.identity()
        old_identity = from_base64(before["identity"])
        kms = Kms(
            url=running.server.now.url,
            ca=running.server.now.ca,
            identity=old_identity,
            notebook=running.notebook,
        )
        fleet = DiskFleet(rack, kms, tmp_path / "disks")
        guests = [fleet.guest(number) for number in range(GUESTS)]
        assert {guest.app_id for guest in guests} == {APP_ID, LEDGER}
        assert len({guest.seen.chip_id for guest in guests}) == CHIPS
        assert running.by_all(guests, DiskGuest.install) == [1] * GUESTS

        offline, *awake = guests
        guests += rotate(running, fleet, awake)
        assert running.identity() == before | {"epochs": [1, 2]}
        half = len(awake) // 2
        move_while_the_server_is_killed(running, awake[:half])
        assert running.identity() == before | {"epochs": [1, 2]}

        retire_names_whom_it_would_leave_behind(running, guests)
        running.move([guest for guest in guests if guest.disk.epoch == 1 and guest is not offline], 2)
        the_one_that_was_offline_stands_in_the_way(running, offline)
        what_the_policy_pins_does_as_well(running, ledger, guests)

        retired = running.terminal.type(f"kms keys retire 1 {REMOTE}")
        assert retired.printed[0].startswith("epoch 1: retired")
        assert of_epoch(2, guests) == {guest.seen for guest in guests}
        asked = running.by_all(guests[:10], lambda guest: refused(lambda: guest.fetch(1)))
        assert asked == [UNAVAILABLE] * 10

        an_epoch_comes_when_it_is_scheduled(running, guests)
        running.terminal.type("kms keys rotate")
        assert guests[0].fetch(None).keys[0].epoch == 4
        assert running.identity() == before | {"epochs": [2, 3, 4]}
        who_pins_the_old_identity_follows_it(running, guests, old_identity)
        what_was_done_is_recorded(running.terminal)
        for step in page:
            running.terminal.require_shown(step)
    amount = sum(running.encrypted_again)
    print(
        f"{len(guests)} guests on {CHIPS} chips: {running.releases(200)} releases, {running.releases(403)}"
        f" refusals; {len(running.encrypted_again)} disks and {amount} bytes encrypted again;"
        f" {time.monotonic() - began:.1f} s in all"
    )


def rotate(running: Drill, fleet: DiskFleet, awake: Sequence[DiskGuest]) -> list[DiskGuest]:
    """Make epoch 2: new disks are of it, and old ones still open. Give guests that were new then."""
    running.terminal.type(f"kms keys rotate {REMOTE}")
    running.terminal.type(f"kms keys list {REMOTE}")
    newcomers = [fleet.guest(GUESTS + number) for number in range(NEWCOMERS)]
    epochs = running.by_all(newcomers, DiskGuest.install)
    assert set(zip((guest.app_id for guest in newcomers), epochs, strict=True)) == {(APP_ID, 2), (LEDGER, 1)}

    running.by_all(awake, DiskGuest.boot)
    # One that does not say of which epoch its disk is gets a key that opens nothing.
    hasty = next(guest for guest in awake if guest.app_id == APP_ID)
    with pytest.raises(Locked):
        hasty.disk.read(hasty.fetch(None).keys[0].secret)
    return newcomers


def move_while_the_server_is_killed(running: Drill, guests: Sequence[DiskGuest]) -> None:
    """Kill it when some have their keys: the others come again, and nothing else changes."""
    before = running.releases(200)
    moves = [running.pool.submit(guest.move, 2) for guest in guests]
    wait_until(lambda: running.releases(200) >= before + AT_ONCE)
    running.server.now.kill()
    assert of_epoch(1, guests), "all were done before it was killed"
    running.server.start_again()
    running.encrypted_again += [move.result(60) for move in moves]


def retire_names_whom_it_would_leave_behind(running: Drill, guests: Sequence[DiskGuest]) -> None:
    rotation = running.terminal.type(f"kms keys rotation {REMOTE}")
    behind = of_epoch(1, guests)
    counts = re.search(r"^all +(\d+) +(\d+) +(\d+)$", "\n".join(rotation.printed), re.MULTILINE)
    assert counts
    assert [int(count) for count in counts.groups()] == [len(guests), len(behind), len(guests) - len(behind)]

    details = running.refused_to_retire()["details"]
    assert (seen(details["guests"]), details["count"]) == (behind, len(behind))
    assert {each.app_id for each in behind} == {APP_ID.hex(), LEDGER.hex()}


def the_one_that_was_offline_stands_in_the_way(running: Drill, offline: DiskGuest) -> None:
    """Retire is refused for its sake; it comes back, finds its data, and moves as the others did."""
    said = running.terminal.type(f"kms keys retire 1 {REMOTE}", status=1).printed
    named = [line for line in said if "took epoch 1" in line]
    assert len(named) == 1
    assert f"instance {offline.seen.instance_id}" in named[0]
    offline.boot()
    running.move([offline], 2)


def what_the_policy_pins_does_as_well(running: Drill, ledger: PinnedApp, guests: Sequence[DiskGuest]) -> None:
    """Retire is refused for an app that is pinned, though all its guests have moved; then the pin goes."""
    error = running.refused_to_retire()
    assert (error["reason"], error["details"]["count"]) == ("epoch-pinned", 0)
    assert error["details"]["pinned"] == [LEDGER.hex()]

    pinned = next(guest for guest in guests if guest.app_id == LEDGER)
    assert pinned.fetch(None).keys[0].epoch == 1
    ledger.pin(None)
    wait_until(lambda: pinned.fetch(None).keys[0].epoch == 2)


def an_epoch_comes_when_it_is_scheduled(running: Drill, guests: Sequence[DiskGuest]) -> None:
    server, at = running.server.now, datetime.now(UTC).replace(microsecond=0) + AHEAD
    running.terminal.means[TIME] = f"{at:%Y-%m-%dT%H:%M:%SZ}"
    running.terminal.type(f"kms keys schedule --at {TIME} {REMOTE}")
    guest = guests[0]
    early = refused(lambda: guest.fetch(3)), guest.fetch(None).keys[0].epoch
    assert datetime.now(UTC) < at, "too slow to see what was before"
    assert early == (UNAVAILABLE, 2)

    running.by_all(guests, DiskGuest.boot)
    wait_until(lambda: guest.fetch(None).keys[0].epoch == 3)
    assert datetime.now(UTC) >= at
    assert guest.fetch(3).keys[0].epoch == 3
    assert server is running.server.now
    assert server.alive()


def who_pins_the_old_identity_follows_it(running: Drill, guests: Sequence[DiskGuest], old: bytes) -> None:
    running.terminal.type(f"kms keys rotate --identity {REMOTE}")
    assert from_base64(running.identity()["identity"]) == old
    running.server.now.stop()
    running.server.start_again()
    told = running.identity()
    new = from_base64(told["identity"])
    assert new != old
    assert [from_base64(each["identity"]) for each in told["previous"]] == [old]

    signed_by = {payload.identity for payload in running.by_all(guests, DiskGuest.boot)}
    assert signed_by == {new}
    assert guests[0].fetch(2, pin=new).identity == new
    with pytest.raises(AnswerRejected) as caught:
        guests[0].fetch(2, pin=secrets.token_bytes(32))
    assert caught.value.reason == "identity-mismatch"


def what_was_done_is_recorded(terminal: Terminal) -> None:
    log = json.loads(terminal.type(f"kms operator log --json {REMOTE}").output)["actions"]
    keys = [each for each in reversed(log) if each["action"].startswith("keys-")]
    assert [(each["action"], each["target"], each["outcome"]) for each in keys] == [
        ("keys-rotate", "2", "done"),
        ("keys-retire", "1", "epoch-in-use"),
        ("keys-retire", "1", "epoch-in-use"),
        ("keys-retire", "1", "epoch-in-use"),
        ("keys-retire", "1", "done"),
        ("keys-schedule", "3", "done"),
        ("keys-rotate", "4", "done"),
        ("keys-rotate-identity", "2", "done"),
    ]
    assert (keys[0]["operator"], keys[0]["proof"]) == ("alice", "token")


class TestDisk:
    """Of what the drill is made of: without this, it would show nothing."""

    def test_it_opens_with_its_own_key_only(self, tmp_path: Path) -> None:
        disk, [key, other] = Disk(tmp_path / "disk"), (secrets.token_bytes(32) for _ in range(2))
        disk.encrypt(1, key, b"data")
        assert (disk.epoch, disk.read(key)) == (1, b"data")
        with pytest.raises(Locked):
            disk.read(other)
        assert b"data" not in (tmp_path / "disk").read_bytes()

    def test_after_it_was_encrypted_again_the_old_key_opens_nothing(self, tmp_path: Path) -> None:
        disk, [old, new] = Disk(tmp_path / "disk"), (secrets.token_bytes(32) for _ in range(2))
        disk.encrypt(1, old, b"data")
        disk.encrypt_again(old, 2, new)
        assert (disk.epoch, disk.read(new)) == (2, b"data")
        with pytest.raises(Locked):
            disk.read(old)

    def test_what_the_key_does_not_open_is_not_encrypted_again(self, tmp_path: Path) -> None:
        disk, [key, other, new] = Disk(tmp_path / "disk"), (secrets.token_bytes(32) for _ in range(3))
        disk.encrypt(1, key, b"data")
        with pytest.raises(Locked):
            disk.encrypt_again(other, 2, new)
        assert (disk.epoch, disk.read(key)) == (1, b"data")
