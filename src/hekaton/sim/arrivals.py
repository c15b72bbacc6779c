"""When requests of one model arrive."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from hekaton.errors import InvalidArgument

TRACE_COLUMN = "arrival_seconds"


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


@dataclass(frozen=True, slots=True)
class OnOff:
    """Quiet but for spells of independent arrivals. Spells and pauses last `on_s` and `off_s` on average, both
    exponential."""

    on_s: float
    off_s: float

    def __post_init__(self) -> None:
        if not (0 < self.on_s < float("inf") and 0 <= self.off_s < float("inf")):
            raise InvalidArgument(
                f"a spell lasts longer than 0 s and a pause at least that, not {self.on_s} and {self.off_s}"
            )

    def times_s(self, rate_per_s: float, duration_s: float, random: np.random.Generator) -> list[float]:
        share = self.on_s / (self.on_s + self.off_s)
        times: list[float] = []
        is_on = bool(random.random() < share)
        now_s = 0.0
        # What is left of an exponential spell lasts as long as a whole one: the first needs no special care.
        while now_s < duration_s:
            end_s = now_s + float(random.exponential(self.on_s if is_on else self.off_s))
            if is_on:
                count = int(random.poisson(rate_per_s / share * (end_s - now_s)))
                times.extend(sorted(random.uniform(now_s, end_s, count).tolist()))
            now_s, is_on = end_s, not is_on
        return [time_s for time_s in times if time_s < duration_s]


def read_trace(path: Path) -> Trace:
    """The first column of a CSV, which `arrival_seconds` heads: any workload will do.

    Raises InvalidArgument with the line number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if next(rows, [""])[0:1] != [TRACE_COLUMN]:
            raise InvalidArgument(f"{path}, line 1: the first column must be {TRACE_COLUMN}")
        times = [_time_s(path, rows.line_num, row) for row in rows]
    return Trace(sorted(times))


def _time_s(path: Path, line: int, row: list[str]) -> float:
    try:
        time_s = float(row[0])
    except (ValueError, IndexError):
        raise InvalidArgument(f"{path}, line {line}: {','.join(row)!r} does not begin with a time in seconds") from None
    if not (math.isfinite(time_s) and time_s >= 0):
        raise InvalidArgument(f"{path}, line {line}: {TRACE_COLUMN} must be at least 0, not {row[0]}")
    return time_s
