import pytest

from kms.policy.file_names import is_policy_file


@pytest.mark.parametrize(
    "name", ["a.yaml", "a.yml", "apps/pay ments.yaml", "a/b/c/d.yml", "\u00fc.yaml", "a..b.yaml"]
)
def test_what_a_folder_gives(name: str) -> None:
    assert is_policy_file(name)


@pytest.mark.parametrize(
    "name",
    ["", "a", "a.json", "a.yaml/", "/a.yaml", "../a.yaml", "a/../b.yaml", "./a.yaml", "a//b.yaml", ".a.yaml",
     ".yaml", "a/.git/b.yaml", "a\\b.yaml", "..\\a.yaml", "a\n.yaml", "a\0.yaml", "a\u202e.yaml",
     "C:\\a.yaml", "a" * 2000 + ".yaml"],
)  # fmt: skip
def test_what_leads_out_or_hides(name: str) -> None:
    assert not is_policy_file(name)
