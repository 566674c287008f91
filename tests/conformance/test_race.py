"""Field lesson 36: elsewhere, 8 of 20 concurrent requests with one nonce won."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx2

from tests.conformance.own_client import (
    DISK,
    Attempt,
    Client,
    check_refused,
    open_release,
    outer,
    request_bytes,
)
from tests.conformance.own_fleet import Fleet
from tests.conformance.own_sealing import SEALED_BOX, new_recipient

CLIENTS = 50


def _race(kms: Client, prepared: list[tuple[bytes, dict[str, object]]]) -> list[httpx2.Response]:
    """Send all at once, each over a connection of its own."""
    start = threading.Barrier(len(prepared))

    def send(one: tuple[bytes, dict[str, object]]) -> httpx2.Response:
        body = outer(*one)
        start.wait(30)
        return kms.post(body)

    with ThreadPoolExecutor(len(prepared)) as pool:
        return list(pool.map(send, prepared))


def test_many_clients_with_one_challenge(kms: Client, fleet: Fleet) -> None:
    challenge = kms.challenge()
    recipients = [new_recipient(SEALED_BOX) for _ in range(CLIENTS)]
    requests = [request_bytes(challenge, recipient, [DISK]) for recipient in recipients]
    prepared = [(request, fleet.guest().evidence(request)) for request in requests]
    responses = _race(kms, prepared)
    assert Counter(response.status_code for response in responses) == {200: 1, 409: CLIENTS - 1}
    for recipient, (request, evidence), response in zip(recipients, prepared, responses, strict=True):
        attempt = Attempt(recipient, request, evidence, response)
        if response.status_code == 200:
            open_release(attempt, kms.identity)
        else:
            check_refused(attempt, "challenge-used")


def test_one_client_that_sends_the_same_bytes_many_times(kms: Client, fleet: Fleet) -> None:
    request = request_bytes(kms.challenge(), new_recipient(SEALED_BOX), [DISK])
    responses = _race(kms, [(request, fleet.guest().evidence(request))] * 20)
    assert Counter(response.status_code for response in responses) == {200: 1, 409: 19}


def test_an_allowed_and_a_denied_guest_with_one_challenge(kms: Client, fleet: Fleet) -> None:
    """Whoever comes first spends it; the others learn nothing but that."""
    challenge = kms.challenge()
    prepared = []
    for guest in [fleet.guest(), fleet.guest("withdrawn")] * 10:
        request = request_bytes(challenge, new_recipient(SEALED_BOX), [DISK])
        prepared.append((request, guest.evidence(request)))
    counted = Counter(response.status_code for response in _race(kms, prepared))
    assert counted[409] == 19
    assert counted[200] + counted[403] == 1
