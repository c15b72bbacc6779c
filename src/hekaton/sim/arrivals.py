"""When requests of one model arrive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hekaton.errors import InvalidArgument


class Arrivals(Protocol):
    def times_s(self, rate_per_s: float, duration_s: float, random: np.random.Generator) -> list[float]:
        """Ascending arrival times in [0, duration_s), `rate_per_s` a second on average."""


class Poisson:
    """Independent arrivals."""

    def times_s(self, rate_per_s: float, duration_s: float, random: np.random.Generator) -> list[float]:
        count = int(random.poisson(rate_per_s * duration_s))
        return sorted(random.uniform(0.0, duration_s, count).tolist())


@dataclass(frozen=True, slots=True)
class Gamma:
    """Gamma gaps: a coefficient of variation `cv` above 1 comes in bursts."""

    cv: float

    def __post_init__(self) -> None:
        if not self.cv > 0:
            raise InvalidArgument(f"a coefficient of variation is positive, not {self.cv}")

    def times_s(self, rate_per_s: float, duration_s: float, random: np.random.Generator) -> list[float]:
        shape = 1 / self.cv**2
        times: list[float] = []
        # The process has been going on for a while when the run begins, lest every model start with a burst.
        now_s = -duration_s * random.uniform(1.0, 2.0)
        while now_s < duration_s:
            now_s += float(random.gamma(shape, 1 / (rate_per_s * shape)))
            times.append(now_s)
        return [time_s for time_s in times if 0 <= time_s < duration_s]


@dataclass(frozen=True, slots=True)
class Trace:
    """Recorded arrival times, stretched to the rate that is asked for and begun at a random place."""

    recorded_s: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.recorded_s) < 2 or self.recorded_s[-1] <= self.recorded_s[0]:
            raise InvalidArgument("a trace of arrivals has at least two times, in ascending order")

    def times_s(self, rate_per_s: float, duration_s: float, random: np.random.Generator) -> list[float]:
        gaps = np.diff(np.asarray(self.recorded_s, dtype=float))
        gaps = np.roll(gaps / (gaps.mean() * rate_per_s), int(random.integers(len(gaps))))
        rounds = int(np.ceil(duration_s / gaps.sum())) + 1
        times = np.cumsum(np.tile(gaps, rounds)) - random.uniform(0.0, 1.0) * gaps[0]
        return [float(time_s) for time_s in times if 0 <= time_s < duration_s]
