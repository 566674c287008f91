"""The client for asyncio: the same protocol, without blocking anybody, and over when it is cancelled."""

import asyncio
import logging
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from kms.guest.async_client import AsyncKeyClient
from kms.guest.errors import AnswerRejected, EvidenceError, Refused, ServerUnreachable
from kms.guest.evidence import EvidenceSource
from kms.keys.identity import Identity
from kms.keys.sealing import Suite
from kms.simulator.machine import SimulatedMachine
from kms.strict_json import JsonValue
from tests.unit.guest.conftest import (
    DISK,
    FakeKms,
    FakeTime,
    app_document,
    make_client,
    problem,
    value_of,
)
from tests.unit.guest.event_loop import PATIENCE, turns, until
from tests.unit.guest.slow_servers import after_handshake, drip_handshake, serving, silent

AT_ONCE = 10.0  # seconds, on a machine that is busy; whatever is left here would take longer


def async_client(kms: FakeKms, source: EvidenceSource, *, deadline: float = 300.0) -> AsyncKeyClient:
    return AsyncKeyClient(
        "https://kms.test:8443",
        ca_file=None,
        identity=kms.identity.public_key,
        source=source,
        suite=Suite.HPKE_X25519,
        deadline=deadline,
        transport=httpx2.MockTransport(kms),
        jitter=lambda: 1.0,
    )


def still_fetching(wait: float = AT_ONCE) -> bool:
    """Say whether any thread goes on; one whose work is over needs a moment to end."""
    threads = [thread for thread in threading.enumerate() if thread.name == "attested-kms-fetch"]
    for thread in threads:
        thread.join(wait)
    return any(thread.is_alive() for thread in threads)


class SlowHardware:
    """Hardware that takes until it is `ready`; `entries` are those that it has made and not removed."""

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self._lock = threading.Lock()
        self.ready = threading.Event()
        self.entries = 0

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        self._count(1)
        try:
            assert self.ready.wait(2 * PATIENCE)
            return self._machine.evidence(report_data)
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        with self._lock:
            self.entries += more


async def cancel_at_once(client: AsyncKeyClient, when: Callable[[], bool]) -> None:
    """Cancel a fetch as soon as that is so; it ends soon, and nothing goes on."""
    task = asyncio.create_task(client.fetch([DISK]))
    await until(when)
    task.cancel()
    await asyncio.wait([task], timeout=AT_ONCE)
    assert task.cancelled()
    assert not still_fetching()


async def test_keys_arrive(kms: FakeKms, machine: SimulatedMachine) -> None:
    payload = await async_client(kms, machine).fetch([DISK], app_document=app_document())
    assert [key.value for key in payload.keys] == [value_of(DISK)]


async def test_raises_what_the_other_client_raises(kms: FakeKms, machine: SimulatedMachine) -> None:
    kms.script = [problem(403, "policy-denied", "chip-not-listed")]
    with pytest.raises(Refused):
        await async_client(kms, machine).fetch([DISK])
    kms.signer = Identity.from_prf(b"\x22" * 64)
    with pytest.raises(AnswerRejected):
        await async_client(kms, machine).fetch([DISK])
    kms.script = [problem(503, "not-ready")] * 9
    with pytest.raises(ServerUnreachable):
        await async_client(kms, machine, deadline=0.1).fetch([DISK])


async def test_hardware_that_gives_nothing(kms: FakeKms) -> None:
    class Missing:
        def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
            raise EvidenceError(f"no hardware for {len(report_data)} bytes", reason="tsm-failed")

    with pytest.raises(EvidenceError):
        await async_client(kms, Missing()).fetch([DISK])


async def test_the_event_loop_goes_on_while_the_hardware_works(
    kms: FakeKms, machine: SimulatedMachine
) -> None:
    hardware = SlowHardware(machine)
    task = asyncio.create_task(async_client(kms, hardware).fetch([DISK]))
    await until(lambda: hardware.entries == 1)
    await turns()
    assert not task.done()
    hardware.ready.set()
    assert (await task).keys


async def test_one_client_for_many_tasks(kms: FakeKms, machine: SimulatedMachine) -> None:
    """More than a default pool has threads; all at the same time."""
    hardware = SlowHardware(machine)
    client = async_client(kms, hardware)
    fetches = asyncio.gather(*(client.fetch([DISK]) for _ in range(50)))
    await until(lambda: hardware.entries == 50)
    hardware.ready.set()
    payloads = await fetches
    assert {payload.keys[0].value for payload in payloads} == {value_of(DISK)}
    assert len({request.recipient.public_key for request in kms.requests}) == 50


def test_one_client_for_many_threads(kms: FakeKms, machine: SimulatedMachine, time: FakeTime) -> None:
    client = make_client(kms, machine, time)
    with ThreadPoolExecutor(20) as pool:
        payloads = list(pool.map(lambda _: client.fetch([DISK]), range(50)))
    assert {payload.keys[0].value for payload in payloads} == {value_of(DISK)}
    assert len({request.recipient.public_key for request in kms.requests}) == 50


class TestCancelled:
    async def test_while_the_hardware_works(self, kms: FakeKms, machine: SimulatedMachine) -> None:
        """It is waited for, since it would leave its entry behind, and nobody is asked afterwards."""
        hardware = SlowHardware(machine)
        task = asyncio.create_task(async_client(kms, hardware).fetch([DISK]))
        await until(lambda: hardware.entries == 1)
        task.cancel()
        await turns()
        assert not task.done()
        hardware.ready.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not still_fetching()
        assert hardware.entries == 0
        assert kms.requests == []

    async def test_while_it_waits_to_try_again(self, kms: FakeKms, machine: SimulatedMachine) -> None:
        kms.script = [problem(503, "server-busy", retry_after="50")]
        await cancel_at_once(async_client(kms, machine), lambda: not kms.script)
        assert kms.challenges == 0

    @pytest.mark.enable_socket
    @pytest.mark.parametrize(
        "serve",
        [silent, drip_handshake, after_handshake(b"HTTP/1.1 201 " + b"x" * 600)],
        ids=["no handshake", "a handshake that drips", "an answer that drips"],
    )
    async def test_while_it_waits_for_the_server(
        self, machine: SimulatedMachine, ca: Path, server_tls: ssl.SSLContext, serve: Callable[..., None]
    ) -> None:
        waiting = threading.Event()
        with serving(serve, server_tls, waiting=waiting) as url:
            client = AsyncKeyClient(url, ca_file=ca, identity=bytes(32), source=machine, timeout=60)
            await cancel_at_once(client, waiting.is_set)

    async def test_by_a_timeout_of_the_program(self, kms: FakeKms, machine: SimulatedMachine) -> None:
        kms.script = [problem(503, "server-busy", retry_after="50")]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await async_client(kms, machine).fetch([DISK])
        assert not still_fetching()

    async def test_twice_does_not_wait_for_the_hardware(
        self, kms: FakeKms, machine: SimulatedMachine, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It goes on alone, removes its entry, and nobody hears of its outcome."""
        hardware = SlowHardware(machine)
        task = asyncio.create_task(async_client(kms, hardware).fetch([DISK]))
        await until(lambda: hardware.entries == 1)
        task.cancel()
        await turns()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hardware.entries == 1
        hardware.ready.set()
        await until(lambda: not still_fetching(0))
        await asyncio.sleep(0)
        del task
        assert hardware.entries == 0
        assert kms.requests == []
        assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
