from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from kms.simulator.hierarchy import AmdHierarchy
from kms.simulator.revocation_lists import RevocationListDraft
from kms.snp.endorsement import load_der
from kms.snp.product import Product
from kms.snp.revocation_list import load_revocation_list

MONTH = timedelta(days=30)


def verify(revocation_list: x509.CertificateRevocationList, certificate: bytes) -> None:
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(key, RSAPublicKey)
    scheme = padding.PSS(padding.MGF1(SHA384()), 48)
    key.verify(revocation_list.signature, revocation_list.tbs_certlist_bytes, scheme, SHA384())


def test_a_list_says_what_it_was_told_in_the_arks_name(hierarchy: AmdHierarchy, now: datetime) -> None:
    der = hierarchy.revocation_list([0x10001, 0x8F], number=300, this_update=now, next_update=now + MONTH)
    parsed = x509.load_der_x509_crl(der)
    ark = x509.load_der_x509_certificate(hierarchy.ark.certificate)
    assert parsed.issuer == ark.subject
    assert [each.serial_number for each in parsed] == [0x10001, 0x8F]
    assert parsed.last_update_utc == now.replace(microsecond=0)
    assert parsed.next_update_utc == (now + MONTH).replace(microsecond=0)
    assert parsed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 300
    authority_key = parsed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    subject_key = ark.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority_key.key_identifier == subject_key.digest


def test_a_list_is_signed_as_certificates_are(hierarchy: AmdHierarchy, now: datetime) -> None:
    parsed = x509.load_der_x509_crl(hierarchy.revocation_list(this_update=now, next_update=now + MONTH))
    assert parsed.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS
    verify(parsed, hierarchy.ark.certificate)
    assert len(parsed) == 0


def test_the_projects_own_parser_reads_what_was_signed(hierarchy: AmdHierarchy, now: datetime) -> None:
    der = hierarchy.revocation_list([7], number=5, this_update=now, next_update=now + MONTH)
    read = load_revocation_list(der)
    assert (read.number, read.serials) == (5, frozenset({7}))
    assert read.is_signed_by(load_der(hierarchy.ark.certificate))
    forged = hierarchy.revocation_list(this_update=now, next_update=now + MONTH, signer=hierarchy.ask)
    assert not load_revocation_list(forged).is_signed_by(load_der(hierarchy.ark.certificate))
    assert load_revocation_list(hierarchy.revocation_list(this_update=now, next_update=now + MONTH)).replaces(
        replace(read, number=0)
    )


def test_another_signer_forges_in_the_arks_name(hierarchy: AmdHierarchy, now: datetime) -> None:
    forged = hierarchy.revocation_list(this_update=now, next_update=now + MONTH, signer=hierarchy.ask)
    parsed = x509.load_der_x509_crl(forged)
    assert parsed.issuer == x509.load_der_x509_certificate(hierarchy.ark.certificate).subject
    with pytest.raises(InvalidSignature):
        verify(parsed, hierarchy.ark.certificate)
    verify(parsed, hierarchy.ask.certificate)


def test_number_and_end_can_be_left_out(hierarchies: Mapping[Product, AmdHierarchy], now: datetime) -> None:
    hierarchy = hierarchies[Product.MILAN]
    bare = hierarchy.revocation_list([1], number=None, this_update=now, next_update=None)
    parsed = x509.load_der_x509_crl(bare)
    assert parsed.next_update_utc is None
    assert [each.oid for each in parsed.extensions] == [ExtensionOID.AUTHORITY_KEY_IDENTIFIER]
    verify(parsed, hierarchy.ark.certificate)


def test_a_draft_takes_what_no_library_writes(
    hierarchies: Mapping[Product, AmdHierarchy], now: datetime
) -> None:
    hierarchy = hierarchies[Product.MILAN]
    draft = RevocationListDraft.by(hierarchy.asvk, (0,), number=0, this_update=now, next_update=None)
    other = replace(draft, issuer=hierarchy.ask.name).signed(hierarchy.asvk.key)
    parsed = x509.load_der_x509_crl(other)
    verify(parsed, hierarchy.asvk.certificate)
    assert parsed.issuer == x509.load_der_x509_certificate(hierarchy.ask.certificate).subject
    # The serial number of every genuine leaf: DER of the entry itself, as the library refuses to read it.
    assert b"\x02\x01\x00\x17\x0d261121120000Z" in other
