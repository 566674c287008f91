"""The story that the examples of the OpenAPI document tell: one app, one image, one chip, one change."""

from typing import Final

REVISION: Final = "sha256:" + "9e" * 32
OLD_REVISION: Final = "sha256:" + "1c" * 32
APP_ID: Final = "86e59625be93207bc2351c4d1bba20037cec8e16"
CHIP: Final = "38d1" + "6f" * 62
IMAGE: Final = "demo-os-1"
IMAGE_HASH: Final = "c4" * 32
MEASUREMENT: Final = "7a" * 48
ID: Final = "019abfc2a1e77c3e8d5f00112233aabb"
TOKEN_ID: Final = "5d1f0c77a1b2c3d4"  # noqa: S105 -- no secret
PUBLIC_KEY: Final = "9rMTo6eeZ3gqr4r7uQ9qTPsGk0q0NwhZq2X1b3cVnUI"
AT: Final = "2026-11-22T12:00:00.000000Z"
CLIENT: Final = "192.0.2.40"
MESSAGE: Final = "the new chip of rack 7"
FILES: Final = {"payments.yaml": f'kind: app\nid: "{APP_ID}"\nname: payments\n…'}
