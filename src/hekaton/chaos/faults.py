"""What can be broken, and in which scenario what is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random


class Kind(StrEnum):
    KILL = "kill"
    """SIGKILL; the supervisor starts it again."""
    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT later: it wakes up and does not know that time has passed."""
    RESTART = "restart"
    """Redis is killed and comes back from its append-only file."""
    SEVER = "sever"
    """Every connection to it breaks."""
    PARTITION = "partition"
    """Nothing passes to or from its callers."""
    DELAY = "delay"
    """Everything that passes is late."""


@dataclass(frozen=True, slots=True)
class Fault:
    kind: Kind
    target: str
    """A service's name, redis, or SERVICE>redis: the way of one service to Redis."""
    duration_s: float

    @property
    def label(self) -> str:
        return f"{self.kind} {REPLICA.sub('', self.target)}"


REPLICA = re.compile(r"-\d+")
MEMORY = "memory"
SERVICES = ("worker", "scheduler", "router", MEMORY)
REDIS = "redis"
TO_REDIS = ">redis"
_PROCESS = (Kind.KILL, Kind.FREEZE)
_NETWORK = (Kind.SEVER, Kind.PARTITION, Kind.DELAY)
MIXED = "mixed"
SCENARIOS: Mapping[str, tuple[tuple[Kind, str], ...]] = {
    **{service: tuple((kind, service) for kind in _PROCESS) for service in SERVICES},
    REDIS: ((Kind.RESTART, REDIS), (Kind.FREEZE, REDIS)),
    "network": tuple(
        (kind, target) for service in SERVICES for target in (service, f"{service}{TO_REDIS}") for kind in _NETWORK
    ),
}
LONGEST_S: Mapping[Kind, float] = {Kind.FREEZE: 20.0, Kind.PARTITION: 10.0, Kind.DELAY: 10.0, Kind.RESTART: 3.0}
SHORTEST_S = 0.5


def possible(scenario: str, *, emulated: bool) -> tuple[tuple[Kind, str], ...]:
    """Kinds and services. Emulated devices need no memory service."""
    names = SCENARIOS if scenario == MIXED else (scenario,)
    return tuple(one for name in names for one in SCENARIOS[name] if not (emulated and one[1].startswith(MEMORY)))


def draw(random: Random, faults: Sequence[tuple[Kind, str]], replicas: int, longest_s: float) -> Fault:
    """The next fault; short ones are likelier than long ones."""
    kind, kind_of_target = random.choice(faults)
    service, way, _ = kind_of_target.partition(TO_REDIS)
    target = service if service == REDIS else f"{service}-{random.randrange(replicas)}{way}"
    most_s = min(LONGEST_S.get(kind, 0.0), longest_s)
    duration_s = SHORTEST_S * (most_s / SHORTEST_S) ** random.random() if most_s > SHORTEST_S else most_s
    return Fault(kind, target, duration_s)
