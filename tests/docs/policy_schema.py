"""docs/reference/policy.schema.json. ``python -m tests.docs.policy_schema`` writes it anew."""

import json
from pathlib import Path

from kms.policy.json_schema import policy_schema

FILE = Path(__file__).parents[2] / "docs" / "reference" / "policy.schema.json"


def text() -> str:
    """Give the file as it must be."""
    return json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
