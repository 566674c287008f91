"""At the boundary where guests are: a policy that was put in force by hand releases nothing."""

from sqlalchemy import delete, update

from kms.database.engine import writing
from kms.database.schema import active_policy, policy_changes
from tests.world import World


async def test_a_wider_policy_put_back_by_hand_releases_nothing(world: World) -> None:
    wide = await world.in_force()
    assert (await world.ask()).status == 200
    await world.apply_changed(app={"chips": ["ab" * 64]})
    assert (await world.ask()).status == 403
    async with writing(world.engine) as connection:
        await connection.execute(update(active_policy).values(revision=wide, sequence=1))
        await connection.execute(delete(policy_changes).where(policy_changes.c.sequence > 1))
    answer = await world.ask()
    assert (answer.status, answer.code) == (503, "ledger-unavailable")
    assert answer.body["reasons"] == ["policy-untrusted"]
    assert answer.response.headers["retry-after"].isdigit()
    # A policy that somebody applies with the root key is used again, under a number that was never used.
    await world.apply(*world.default_policy())
    assert (await world.ask()).status == 200
    head = await world.changer.history.head()
    assert head is not None
    assert head.sequence == 3
