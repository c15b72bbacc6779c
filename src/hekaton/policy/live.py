"""Policies as a live pool runs them: its worker and its scheduler build theirs from the same name and options."""

from collections.abc import Mapping

from hekaton.errors import InvalidArgument
from hekaton.policy.registry import Policy, policy
from hekaton.policy.types import Role, TurnPolicy

ORACLES = frozenset({"request-level-sjf"})
"""They know how long an answer will be, which nobody does outside a simulation."""


def live_policy(name: str, options: Mapping[str, float]) -> Policy:
    """Raises InvalidArgument for an unknown name, option or value, and for an oracle."""
    chosen = policy(name, options)
    if name in ORACLES:
        raise InvalidArgument(f"policy {name} knows the length of every answer in advance: it runs in hekaton sim only")
    return chosen


def has_roles(chosen: Policy) -> bool:
    """Prefill and decode on different workers."""
    return Role.ANY not in chosen.roles(workers=2)


def live_turns(name: str, options: Mapping[str, float], role: Role) -> TurnPolicy:
    """A worker's. Raises InvalidArgument, also for a role that the policy does not know."""
    chosen = live_policy(name, options)
    known = chosen.roles(workers=2)
    if role not in known:
        names = " or ".join(dict.fromkeys(one.value for one in known))
        raise InvalidArgument(f"policy {name} has no workers of role {role.value!r}: set role to {names}")
    return chosen.turns(role)
