"""The schema that editors are pointed at is the one of the code."""

from tests.docs import policy_schema


def test_the_file_is_the_schema() -> None:
    assert policy_schema.FILE.read_text() == policy_schema.text(), "python -m tests.docs.policy_schema"
