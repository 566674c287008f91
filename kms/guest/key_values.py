"""What a program uses of a released key."""

from cryptography.hazmat.primitives import serialization as forms

from kms.keys.released import ReleasedKey


def value_of(key: ReleasedKey) -> bytes:
    """Give a key's bytes; for TLS the PEM of key, if it came, and certificates."""
    if key.certificate_chain is None:
        return key.secret
    text = b"".join(each.encode("ascii") for each in key.certificate_chain)
    if key.value is None:
        return text
    private = forms.load_der_private_key(key.value, None)
    pem = private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    return pem + text
