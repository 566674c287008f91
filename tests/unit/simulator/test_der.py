from datetime import UTC, datetime

import pytest
from cryptography import x509

from kms.simulator import der


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "020100"), (1, "020101"), (127, "02017f"), (128, "02020080"), (217, "020200d9"), (255, "020200ff")],
)
def test_integers_are_minimal_and_never_negative(value: int, encoded: str) -> None:
    assert der.integer(value).hex() == encoded


@pytest.mark.parametrize(("size", "header"), [(127, "047f"), (128, "048180"), (256, "04820100")])
def test_lengths_are_in_their_shortest_form(size: int, header: str) -> None:
    assert der.tlv(der.OCTET_STRING, bytes(size)).hex() == header + "00" * size


@pytest.mark.parametrize("dotted", ["1.3.6.1.4.1.3704.1.3.1", "2.5.29.15", "2.16.840.1.101.3.4.2.2"])
def test_object_identifiers_read_back(dotted: str) -> None:
    encoded = der.object_identifier(dotted)
    # A Name is the smallest thing that the library parses with an OID of ours in it.
    name = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(dotted), "x")]).public_bytes()
    assert encoded in name


@pytest.mark.parametrize(
    ("moment", "encoded"),
    [
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x17\x0d491231235959Z"),
        (datetime(2050, 1, 1, tzinfo=UTC), b"\x18\x0f20500101000000Z"),
    ],
)
def test_times_change_their_form_in_2050(moment: datetime, encoded: bytes) -> None:
    assert der.time(moment) == encoded
