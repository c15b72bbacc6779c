"""What can be broken, and in which scenario what is."""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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


class Drawer:
    """Draws kinds equally often, and within a kind the services: first whatever has been drawn least.

    By chance alone the few ways to break Redis would hardly come up among the many to break the network.
    """

    def __init__(self, random: Random, faults: Iterable[tuple[Kind, str]], replicas: int, longest_s: float) -> None:
        self._random = random
        self._faults = [Fault(kind, name, 0.0) for kind, service in faults for name in _names(service, replicas)]
        self._longest_s = longest_s
        self._drawn: Counter[str] = Counter()
        """By kind and by label."""

    def draw(self, broken: Container[str]) -> Fault | None:
        """The next fault, short ones likelier than long ones; None if everything is `broken` already."""
        candidates = [fault for fault in self._faults if fault.target not in broken]
        if not candidates:
            return None
        self._random.shuffle(candidates)
        chosen = min(candidates, key=lambda fault: (self._drawn[fault.kind], self._drawn[fault.label]))
        self._drawn.update((chosen.kind, chosen.label))
        most_s = min(LONGEST_S.get(chosen.kind, 0.0), self._longest_s)
        if most_s > SHORTEST_S:
            most_s = SHORTEST_S * (most_s / SHORTEST_S) ** self._random.random()
        return replace(chosen, duration_s=most_s)


def _names(service: str, replicas: int) -> Iterator[str]:
    """What of a service can be broken."""
    if service == REDIS:
        yield service
    else:
        name, way, _ = service.partition(TO_REDIS)
        yield from (f"{name}-{index}{way}" for index in range(replicas))
