"""``kms collateral``: AMD's certificates and revocation lists that the server keeps."""

from kms.cli.parsers import Group, Parser, run_group

_ADVISORIES = "advisories"


def main(argv: list[str]) -> int:
    """Run ``kms collateral`` and give the exit status."""
    if argv[:1] == [_ADVISORIES]:
        from kms.cli import collateral_advisories

        return collateral_advisories.main(argv[1:])
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    from kms.cli import (
        collateral_advisories,
        collateral_bundle,
        collateral_fetch,
        collateral_mirror,
        collateral_show,
    )

    group = Group(
        "kms collateral", "Keep AMD's certificates and revocation lists, for guests that have none."
    )
    collateral_show.add_status(group)
    collateral_fetch.add(group)
    collateral_bundle.add_import(group)
    collateral_bundle.add_export(group)
    collateral_show.add_verify(group)
    collateral_mirror.add(group)
    group.adopt(
        _ADVISORIES,
        collateral_advisories.parser(),
        summary="what AMD's bulletins mean for reports and policies",
    )
    return group.parser
