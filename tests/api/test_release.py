from kms.keys.sealing import Suite
from tests.world import World


async def test_an_honest_guest_gets_its_key_in_every_suite(world: World) -> None:
    values = {(await world.fetch(suite)).keys[0].value for suite in Suite}
    assert len(values) == 1
