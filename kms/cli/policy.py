"""``kms policy``: what operators do with policies."""

from kms.cli.parsers import Group, Parser, run_group


def main(argv: list[str]) -> int:
    """Run ``kms policy`` and give the exit status."""
    return run_group(parser(), argv)


def parser() -> Parser:
    """Give the parser of this group of commands."""
    from kms.cli import (
        policy_change,
        policy_explain,
        policy_keys,
        policy_read,
        policy_signing,
        policy_status,
    )

    group = Group("kms policy", "Check policies, put them in force, see what they did and would do.")
    policy_read.add_lint(group)
    policy_read.add_schema(group)
    policy_read.add_diff(group)
    policy_explain.add_what_if(group)
    policy_change.add_apply(group)
    policy_status.add_status(group)
    policy_read.add_history(group)
    policy_read.add_show(group)
    policy_change.add_rollback(group)
    policy_change.add_revoke(group)
    policy_explain.add_explain(group)
    policy_keys.add_keygen(group)
    policy_signing.add_sign(group)
    policy_signing.add_proposals(group)
    policy_signing.add_approve(group)
    policy_signing.add_statement(group)
    return group.parser
