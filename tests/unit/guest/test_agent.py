"""`kms guest agent`: who gets which key, and who reads nothing."""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from kms.errors import KmsError
from kms.guest.agent import KeyAgent, credential_of
from kms.guest.config import ServedKey, VolumeConfig
from kms.guest.errors import Problem, Refused
from kms.guest.local_service import LocalService
from kms.guest.luks import DiskRefused
from kms.guest.unix_sockets import Peer, listening
from kms.keys.names import KeyName, KeyRequest, Scope
from tests.local_peers import connect, read_all
from tests.unit.guest.event_loop import turns, until
from tests.unit.guest.key_machine import Machine, value

pytestmark = pytest.mark.enable_socket
ROOT = Peer(pid=1, uid=0, groups=frozenset({0}))
SOMEBODY = Peer(pid=2, uid=1000, groups=frozenset({0, 1000}))
DATA = VolumeConfig(name="data", device=Path("/dev/vdb"), key=KeyRequest.parse("disk", "app"))
SERVED = (
    ServedKey(key=KeyName.parse("custom:db/main"), scope=Scope.APP, credential="db"),
    ServedKey(key=KeyName.parse("disk"), scope=Scope.INSTANCE),
)


@dataclass
class MachineWithDisk(Machine):
    """It has the volume `data`, whose header names these epochs, or is refused."""

    epochs: Collection[int] = ()
    disk_failure: KmsError | None = None

    def epochs_of(self, volume: VolumeConfig) -> Collection[int]:
        assert volume is DATA
        if self.disk_failure is not None:
            raise self.disk_failure
        return self.epochs

    def agent(self) -> KeyAgent:
        return KeyAgent({"data": DATA}, SERVED, fetch=self.fetch, epochs_of=self.epochs_of)


@contextmanager
def connected(folder: Path, name: bytes | None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a connection; names are the machine's, so ours begins with a number of ours."""
    with listening(folder / "agent", mode=0o600) as listener, connect(folder / "agent", name) as client:
        server, _ = listener.accept()
        with server:
            server.setblocking(False)
            yield client, server


def named(rest: bytes) -> bytes:
    return f"{os.getpid():x}/".encode() + rest


async def given(machine: MachineWithDisk, folder: Path, name: bytes | None, peer: Peer = ROOT) -> bytes:
    with connected(folder, name) as (client, server):
        await machine.agent().answer(server, peer)
        server.close()
        return read_all(client)


class TestKeys:
    async def test_a_volume_without_an_epoch_of_ours_gets_the_current_key(self, tmp_path: Path) -> None:
        machine = MachineWithDisk()
        assert await given(machine, tmp_path, named(b"cryptsetup/data")) == value(DATA.key)
        assert machine.asked == [DATA.key]

    async def test_a_volume_gets_the_key_of_the_newest_epoch_that_its_header_names(
        self, tmp_path: Path
    ) -> None:
        machine = MachineWithDisk(epochs=(3, 2))
        newest = KeyRequest.parse("disk", "app", 3)
        assert await given(machine, tmp_path, named(b"cryptsetup/data")) == value(newest)

    async def test_a_volume_of_dstacks_gets_what_its_key_slot_is_opened_with(self, tmp_path: Path) -> None:
        machine = MachineWithDisk()
        key = KeyRequest.parse("dstack:disk", "instance")
        volume = VolumeConfig(name="data", device=Path("/dev/vdb"), key=key)
        agent = KeyAgent({"data": volume}, (), fetch=machine.fetch, epochs_of=lambda _: ())
        with connected(tmp_path, named(b"cryptsetup/data")) as (client, server):
            await agent.answer(server, ROOT)
            server.close()
            assert read_all(client) == value(key).hex().encode()

    async def test_a_credential_is_found_by_the_name_it_was_given(self, tmp_path: Path) -> None:
        machine = MachineWithDisk()
        key = KeyRequest.parse("custom:db/main", "app")
        assert await given(machine, tmp_path, named(b"unit/db.service/db")) == value(key)

    async def test_a_credential_without_a_name_has_its_keys(self, tmp_path: Path) -> None:
        machine = MachineWithDisk()
        key = KeyRequest.parse("disk", "instance")
        assert await given(machine, tmp_path, named(b"unit/x@1.service/disk@instance")) == value(key)

    def test_a_name_that_was_given_goes_before_one_that_a_key_has(self) -> None:
        named_disk = ServedKey(key=KeyName.parse("signing"), scope=Scope.APP, credential="disk")
        disk = ServedKey(key=KeyName.parse("disk"), scope=Scope.APP)
        assert credential_of(named_disk) == credential_of(disk) == "disk"
        agent = KeyAgent({}, [named_disk, disk], fetch=MachineWithDisk().fetch, epochs_of=lambda _: ())
        assert agent._wanted(b"1/unit/x/disk") == KeyRequest.parse("signing", "app")

    async def test_the_log_says_what_was_given_and_never_the_key(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        key = await given(MachineWithDisk(), tmp_path, named(b"cryptsetup/data"))
        [line] = caplog.messages
        assert "cryptsetup/data" in line
        assert key.hex() not in line


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            (None, "name-unknown"),
            (b"cryptsetup/", "name-unknown"),
            (b"cryptsetup/data/", "name-unknown"),
            (b"cryptsetup/../data", "name-unknown"),
            (b"cryptsetup/data\n", "name-unknown"),
            (b"cryptsetup/data\0", "name-unknown"),
            (b"cryptsetup/d\xc3\xa4ta", "name-unknown"),
            # What systemd asks for when it wants an encrypted blob, and not the key.
            (b"cryptsetup-tpm2/data", "name-unknown"),
            (b"x/cryptsetup/data", "name-unknown"),
            (b"cryptsetup/Data", "volume-not-configured"),
            (b"cryptsetup/dat", "volume-not-configured"),
            (b"unit//db", "name-unknown"),
            (b"unit/x.service/", "name-unknown"),
            (b"unit/db", "name-unknown"),
            (b"unit/x.service/custom", "credential-not-configured"),
            (b"unit/x.service/data", "credential-not-configured"),
            (b"unit/x.service/disk", "credential-not-configured"),
        ],
    )
    async def test_a_name_that_is_not_configured_reads_nothing(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: bytes | None, reason: str
    ) -> None:
        machine = MachineWithDisk()
        assert await given(machine, tmp_path, None if name is None else named(name)) == b""
        assert machine.asked == []
        [line] = caplog.messages
        assert reason in line
        assert "\n" not in line

    async def test_a_random_part_that_is_none_is_no_name_of_systemds(self, tmp_path: Path) -> None:
        for begin in (b"", b"0" * 17, b"G", b"-1"):
            unique = begin + b"/cryptsetup/data"
            assert await given(MachineWithDisk(), tmp_path, unique) == b""

    async def test_the_right_name_is_no_proof(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Anybody can bind it; root's group and the right name give nothing."""
        machine = MachineWithDisk()
        assert await given(machine, tmp_path, named(b"cryptsetup/data"), SOMEBODY) == b""
        assert machine.asked == []
        assert "peer-not-root" in caplog.text

    async def test_a_refused_disk_asks_nobody(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        machine = MachineWithDisk(disk_failure=DiskRefused("the cipher is\nnull", reason="cipher-null"))
        assert await given(machine, tmp_path, named(b"cryptsetup/data")) == b""
        assert machine.asked == []
        [line] = caplog.messages
        assert "cipher-null" in line
        assert "\n" not in line

    async def test_an_epoch_that_is_none_asks_nobody(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        machine = MachineWithDisk(epochs=(0,))
        assert await given(machine, tmp_path, named(b"cryptsetup/data")) == b""
        assert machine.asked == []
        assert "epoch-impossible" in caplog.text

    async def test_a_refused_release_gives_nothing_and_names_the_request(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        problem = Problem(status=403, code="policy-denied", reasons=("app-unknown",), request_id="q7")
        assert (
            await given(MachineWithDisk(failure=Refused(problem)), tmp_path, named(b"cryptsetup/data")) == b""
        )
        assert "policy-denied" in caplog.text
        assert "q7" in caplog.text


class TestService:
    async def test_who_waits_or_reads_slowly_holds_nobody_else(self, tmp_path: Path) -> None:
        """One whose key takes long, and one that never reads: the third is served at once."""
        path = tmp_path / "agent"
        slow = MachineWithDisk(held=threading.Event())
        quick = MachineWithDisk()
        agents = iter([slow.agent(), quick.agent(), quick.agent()])

        async def answer(connection: socket.socket, _: Peer) -> None:
            await next(agents).answer(connection, ROOT)

        with listening(path, mode=0o600) as listener:
            service = LocalService(listener, answer, at_most=3)
            running = asyncio.create_task(service.run())
            await asyncio.sleep(0)
            with (
                connect(path, named(b"cryptsetup/data")) as waiting,
                connect(path, named(b"unit/x/db")) as silent,
                connect(path, named(b"unit/y/db")) as third,
            ):
                assert len(await asyncio.to_thread(read_all, third)) == 32
                assert slow.held
                slow.held.set()
                assert len(await asyncio.to_thread(read_all, waiting)) == 32
                assert len(await asyncio.to_thread(read_all, silent)) == 32
            service.stop()
            await asyncio.wait_for(running, 60)

    async def test_no_more_than_so_many_at_once_and_the_others_wait(self, tmp_path: Path) -> None:
        path = tmp_path / "agent"
        began, go = 0, asyncio.Event()

        async def answer(connection: socket.socket, _: Peer) -> None:
            nonlocal began
            began += 1
            await go.wait()
            await asyncio.get_running_loop().sock_sendall(connection, b"k")

        with listening(path, mode=0o600) as listener:
            service = LocalService(listener, answer, at_most=2)
            running = asyncio.create_task(service.run())
            clients = [connect(path) for _ in range(5)]
            try:
                await until(lambda: began == 2)
                await turns()
                assert began == 2
                go.set()
                for client in clients:
                    assert await asyncio.to_thread(read_all, client) == b"k"
            finally:
                for client in clients:
                    client.close()
            service.stop()
            await asyncio.wait_for(running, 60)

    async def test_it_ends_when_nobody_came_but_not_while_somebody_is_served(self, tmp_path: Path) -> None:
        path, loop = tmp_path / "agent", asyncio.get_running_loop()
        idle, go = 0.3, asyncio.Event()

        async def answer(connection: socket.socket, _: Peer) -> None:
            await go.wait()
            await loop.sock_sendall(connection, b"k")

        with listening(path, mode=0o600) as listener, connect(path) as first:
            running = asyncio.create_task(LocalService(listener, answer, at_most=2, idle=idle).run())
            await asyncio.sleep(2 * idle)
            # The first is still served, so whoever comes now is too.
            with connect(path) as second:
                go.set()
                for client in (first, second):
                    assert await asyncio.to_thread(read_all, client) == b"k"
            await asyncio.wait_for(running, 60)

    async def test_one_that_fails_does_not_end_the_others(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path, loop = tmp_path / "agent", asyncio.get_running_loop()
        failures = [RuntimeError("a bug"), ConnectionResetError("gone"), TimeoutError()]

        async def answer(connection: socket.socket, _: Peer) -> None:
            if failures:
                raise failures.pop(0)
            await loop.sock_sendall(connection, b"k")

        with listening(path, mode=0o600) as listener:
            service = LocalService(listener, answer, at_most=1)
            running = asyncio.create_task(service.run())
            for expected in (b"", b"", b"", b"k"):
                with connect(path) as client:
                    assert await asyncio.to_thread(read_all, client) == expected
            service.stop()
            await asyncio.wait_for(running, 60)
        assert "a bug" in caplog.text
