"""Attested KMS: keys for confidential guests that can prove what they are."""

__version__ = "0.1.0"
