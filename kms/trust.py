"""The roots that this installation trusts: AMD's, and an operator's development roots."""

from pathlib import Path

from kms.errors import ConfigurationError, MalformedEvidence
from kms.snp.endorsement import load_pem
from kms.snp.roots import TrustedRoots


def load_roots(development_roots: Path | None) -> TrustedRoots:
    """Trust AMD's pinned roots, and the operator's development roots if there are any.

    Raises:
        ConfigurationError: the file cannot be read, or holds something else than ARKs.

    """
    if development_roots is None:
        return TrustedRoots()
    remedy = "KMS_DEVELOPMENT_ROOTS is a PEM file of self-signed ARK certificates"
    try:
        return TrustedRoots.with_development(load_pem(development_roots.read_bytes()))
    except OSError as error:
        raise ConfigurationError(f"{development_roots}: {error.strerror}", remedy=remedy) from error
    except MalformedEvidence as error:
        raise ConfigurationError(f"{development_roots}: {error.detail}", remedy=remedy) from error
    except ValueError as error:
        raise ConfigurationError(f"{development_roots}: {error}", remedy=remedy) from error
