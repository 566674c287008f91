"""The TLS context of a guest depends on nothing in its environment."""

import ssl
from contextlib import suppress
from pathlib import Path

import pytest

from kms.https_client import client_context


def shake_hands(client_tls: ssl.SSLContext, server_tls: ssl.SSLContext) -> None:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_tls.wrap_bio(down, up, server_hostname="127.0.0.1")
    server = server_tls.wrap_bio(up, down, server_side=True)
    for end in (client, server, client, server):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    client.write(b"over")
    assert server.read() == b"over"


def test_the_secrets_of_a_session_are_written_nowhere(
    server_tls: ssl.SSLContext, ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "secrets"
    monkeypatch.setenv("SSLKEYLOGFILE", str(secrets))
    shake_hands(client_context(ca), server_tls)
    assert not secrets.exists()
    shake_hands(ssl.create_default_context(cafile=str(ca)), server_tls)
    assert "SECRET" in secrets.read_text()  # where Python's own context would have written them


def test_a_place_for_secrets_that_cannot_be_written_is_no_fault_of_the_ca(
    ca: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "missing" / "secrets"))
    client_context(ca)


@pytest.mark.parametrize("with_ca", [True, False])
def test_a_certificate_and_its_name_are_asked_for(ca: Path, *, with_ca: bool) -> None:
    context = client_context(ca if with_ca else None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1 or not with_ca
