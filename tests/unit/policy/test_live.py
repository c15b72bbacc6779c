import pytest

from hekaton.errors import InvalidArgument
from hekaton.policy.live import ORACLES, has_roles, live_policy, live_turns
from hekaton.policy.registry import POLICIES
from hekaton.policy.types import Role


@pytest.mark.parametrize("name", sorted(POLICIES.keys() - ORACLES))
def test_every_policy_but_an_oracle_has_turns_for_the_roles_of_its_workers(name: str) -> None:
    chosen = live_policy(name, {})
    assert has_roles(chosen) == (name == "aegaeon")
    for role in set(chosen.roles(workers=4)):
        assert live_turns(name, {}, role)


def test_an_oracle_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="runs in hekaton sim only"):
        live_policy("request-level-sjf", {})


def test_a_role_that_the_policy_does_not_know_is_refused_with_those_it_knows() -> None:
    with pytest.raises(InvalidArgument, match="set role to prefill or decode"):
        live_turns("aegaeon", {}, Role.ANY)
    with pytest.raises(InvalidArgument, match="set role to any"):
        live_turns("slack", {}, Role.PREFILL)
