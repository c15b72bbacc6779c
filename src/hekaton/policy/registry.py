"""Policies by name, with their options, as the command line knows them: how turns are taken and who gets a request."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Protocol

from hekaton.errors import InvalidArgument
from hekaton.policy.aegaeon_decode import RoundTurns
from hekaton.policy.aegaeon_placement import AegaeonPlacement, BatchPlacement, GroupedPlacement
from hekaton.policy.aegaeon_prefill import GroupedPrefillTurns
from hekaton.policy.affinity import AffinityPlacement
from hekaton.policy.load import COPY_WEIGHT
from hekaton.policy.request_level import QueuePlacement, QueueTurns
from hekaton.policy.request_level_sjf import FewestBatchesPlacement, ShortestFirstTurns
from hekaton.policy.slack import SlackTurns
from hekaton.policy.static import SharedTurns, StaticPlacement
from hekaton.policy.types import ModelCosts, Placement, Role, TurnPolicy

Costs = Callable[[str], ModelCosts]


class Policy(Protocol):
    """What a pool needs to run by a policy."""

    @property
    def patience_s(self) -> float:
        """How long after its arrival a request whose prefill has not begun is refused."""

    def roles(self, workers: int) -> list[Role]:
        """One for each worker. Raises InvalidArgument for too few."""

    def turns(self, role: Role) -> TurnPolicy:
        """A fresh one, for one worker."""

    def placement(self, costs: Costs) -> Placement: ...


class _Patient:
    """Nobody is refused for having waited."""

    __slots__ = ()

    @property
    def patience_s(self) -> float:
        return math.inf


class _Unified(_Patient):
    """Every worker does both phases."""

    __slots__ = ()

    def roles(self, workers: int) -> list[Role]:
        return [Role.ANY] * workers


@dataclass(frozen=True, slots=True)
class Slack(_Unified):
    """Least slack first, placed by affinity. The fields are those objects' own arguments and defaults."""

    min_turn_s: float = 0.3
    max_turn_s: float = 4.0
    kv_reserve: float = 0.02
    affinity: float = 3.0
    load_weight: float = 0.3
    copy_weight: float = COPY_WEIGHT
    hysteresis: float = 0.02

    def turns(self, role: Role) -> TurnPolicy:
        return SlackTurns(self.min_turn_s, self.max_turn_s, self.kv_reserve)

    def placement(self, costs: Costs) -> Placement:
        return AffinityPlacement(costs, self.affinity, self.load_weight, self.copy_weight, self.hysteresis)


@dataclass(frozen=True, slots=True)
class Aegaeon(_Patient):
    """Algorithms 1 and 2 of the paper, with its settings.

    What the artifact does otherwise makes no difference here: groups full by their current length, load by number of
    groups, longer loads in c. Its whole milliseconds do, by up to 0.02 of attainment: it cuts 9.5 ms steps to 9.
    """

    prefill_workers: float = 6.0
    """Of 16 workers; of others as many in proportion."""
    q_max_s: float = 4.0
    group_size: float = 8.0
    load_factor: float = 1.0
    """Of loads in the quotas' c. The artifact's engine takes loads to last about three times as long as they do."""

    def __post_init__(self) -> None:
        if not 0 < self.q_max_s < math.inf:
            raise InvalidArgument(f"policy option q_max_s must be positive and finite, not {self.q_max_s:g}")

    def roles(self, workers: int) -> list[Role]:
        if workers < 2:
            raise InvalidArgument("aegaeon needs at least two workers, one for prefill and one for decode")
        prefill = max(round(min(workers * self.prefill_workers / 16, workers - 1)), 1)
        return [Role.PREFILL] * prefill + [Role.DECODE] * (workers - prefill)

    def turns(self, role: Role) -> TurnPolicy:
        if role is Role.PREFILL:
            return GroupedPrefillTurns(_count("group_size", self.group_size))
        return RoundTurns(self.q_max_s, self.load_factor)

    def placement(self, costs: Costs) -> Placement:
        return AegaeonPlacement(GroupedPlacement(costs, _count("group_size", self.group_size)), BatchPlacement())


@dataclass(frozen=True, slots=True)
class RequestLevel(_Unified):
    """ServerlessLLM."""

    slots: float = 4.0
    patience_s: float = 15.0
    """The artifact's; the paper has none."""

    def turns(self, role: Role) -> TurnPolicy:
        return QueueTurns(_count("slots", self.slots))

    def placement(self, costs: Costs) -> Placement:
        return QueuePlacement(_count("slots", self.slots))


@dataclass(frozen=True, slots=True)
class RequestLevelSjf(_Unified):
    """ServerlessLLM+, which knows how long answers will be."""

    slots: float = 4.0
    patience_s: float = 15.0

    def turns(self, role: Role) -> TurnPolicy:
        return ShortestFirstTurns(_count("slots", self.slots))

    def placement(self, costs: Costs) -> Placement:
        return FewestBatchesPlacement(_count("slots", self.slots))


@dataclass(frozen=True, slots=True)
class Multiplex(_Unified):
    """MuxServe. Its own placement refuses more than two models a device."""

    models: float = 2.0
    kv_share: float = 0.25
    slice_s: float = 0.1

    def turns(self, role: Role) -> TurnPolicy:
        return SharedTurns(self.slice_s)

    def placement(self, costs: Costs) -> Placement:
        return StaticPlacement(_count("models", self.models), self.kv_share)


@dataclass(frozen=True, slots=True)
class Dedicated(_Unified):
    """A worker for each model."""

    def turns(self, role: Role) -> TurnPolicy:
        return SharedTurns()

    def placement(self, costs: Costs) -> Placement:
        return StaticPlacement(models=1, kv_share=0.0)


Kind = type[Slack] | type[Aegaeon] | type[RequestLevel] | type[RequestLevelSjf] | type[Multiplex] | type[Dedicated]

POLICIES: Mapping[str, Kind] = MappingProxyType(
    {
        "slack": Slack,
        "aegaeon": Aegaeon,
        "request-level": RequestLevel,
        "request-level-sjf": RequestLevelSjf,
        "multiplex": Multiplex,
        "dedicated": Dedicated,
    }
)


def policy(name: str, options: Mapping[str, float]) -> Policy:
    """Raises InvalidArgument for an unknown name, option or value."""
    if name not in POLICIES:
        raise InvalidArgument(f"unknown policy {name!r}; known are {', '.join(sorted(POLICIES))}")
    kind = POLICIES[name]
    known = sorted(field.name for field in fields(kind))
    for option, value in options.items():
        if option not in known:
            raise InvalidArgument(f"policy {name} has no option {option!r}; it has {', '.join(known) or 'none'}")
        if not value >= 0:
            raise InvalidArgument(f"policy option {option} must be at least 0, not {value}")
    return kind(**options)


def _count(option: str, value: float) -> int:
    """Raises InvalidArgument unless it is a whole number from 1 on."""
    if not (value >= 1 and value.is_integer()):
        raise InvalidArgument(f"policy option {option} must be a whole number of at least 1, not {value:g}")
    return int(value)
