"""Policies by name, with their options, as the command line knows them: how turns are taken and who gets a request."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from hekaton.errors import InvalidArgument
from hekaton.policy.affinity import AffinityPlacement
from hekaton.policy.slack import SlackTurns
from hekaton.policy.types import Placement, TurnPolicy


@dataclass(frozen=True, slots=True)
class Slack:
    """Least slack first, placed by affinity. The fields are those objects' own arguments and defaults."""

    min_turn_s: float = 0.4
    max_turn_s: float = 4.0
    kv_reserve: float = 0.1
    overload: float = 2.0
    request_share: float = 0.01

    def turns(self) -> TurnPolicy:
        """A fresh one, for one worker."""
        return SlackTurns(self.min_turn_s, self.max_turn_s, self.kv_reserve)

    def placement(self, step_shares: Mapping[str, float]) -> Placement:
        return AffinityPlacement(self.overload, step_shares, request_share=self.request_share)


POLICIES: Mapping[str, type[Slack]] = MappingProxyType({"slack": Slack})


def policy(name: str, options: Mapping[str, float]) -> Slack:
    """Raises InvalidArgument for an unknown name, option or value."""
    if name not in POLICIES:
        raise InvalidArgument(f"unknown policy {name!r}; known are {', '.join(sorted(POLICIES))}")
    kind = POLICIES[name]
    known = sorted(field.name for field in fields(kind))
    for option, value in options.items():
        if option not in known:
            raise InvalidArgument(f"policy {name} has no option {option!r}; it has {', '.join(known)}")
        if not value >= 0:
            raise InvalidArgument(f"policy option {option} must be at least 0, not {value}")
    return kind(**options)
