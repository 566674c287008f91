"""The parts of binding that no request shows: HTTP has the rest (tests/api/test_bindings.py)."""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms.errors import MalformedEvidence
from kms.evidence.app_document import bind_document, host_data_of
from kms.measurement.images import Binding
from tests.world import APP_ID, COMPOSE_HASH, document


def test_the_hashes_are_those_of_the_protocol() -> None:
    assert host_data_of(b"x", Binding.HOST_DATA) == sha256(b"x").digest()
    dstack = sha256(b"dstack-mr-config-v3:\x00x").digest()
    assert host_data_of(b"x", Binding.DSTACK_MR_CONFIG) == dstack
    with pytest.raises(ValueError, match="HOST_DATA"):
        host_data_of(b"x", Binding.CMDLINE)


def test_a_bound_document_states_the_identity() -> None:
    identity = bind_document(document(), sha256(document()).digest())
    assert identity is not None
    assert (identity.app_id.hex(), identity.compose_hash.hex()) == (APP_ID, COMPOSE_HASH)
    assert identity.instance_id is None
    assert identity.binding is Binding.HOST_DATA


@given(st.binary(max_size=80), st.binary(min_size=32, max_size=32))
def test_what_host_data_does_not_bind_is_not_even_parsed(content: bytes, host_data: bytes) -> None:
    assert bind_document(content, host_data) is None


@given(st.binary(max_size=80) | st.text('{}":,version1app_id', max_size=60).map(str.encode))
@pytest.mark.parametrize("binding", [Binding.HOST_DATA, Binding.DSTACK_MR_CONFIG])
def test_bound_bytes_that_are_no_document_are_malformed(binding: Binding, content: bytes) -> None:
    with pytest.raises(MalformedEvidence) as refused:
        bind_document(content, host_data_of(content, binding))
    assert refused.value.reason == "app-document-unreadable"
