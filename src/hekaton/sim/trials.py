"""One point of a search: the same pool under the same kind of traffic, over several seeds."""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from statistics import fmean

from hekaton.errors import InvalidArgument
from hekaton.sim import workload
from hekaton.sim.arrivals import Arrivals, Poisson
from hekaton.sim.lengths import Lengths, LogNormal
from hekaton.sim.report import Report
from hekaton.sim.run import Settings, simulate

SUSTAINED = 0.9
"""Share of tokens on time, over all arrivals and over those of the last third of the time."""
DURATION_S = 600.0
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Traffic:
    """How requests come; every point of a search sees the same seeds."""

    duration_s: float = DURATION_S
    arrivals: Arrivals = field(default_factory=Poisson)
    lengths: Lengths = field(default_factory=LogNormal)
    seeds: tuple[int, ...] = SEEDS

    def __post_init__(self) -> None:
        if not self.seeds:
            raise InvalidArgument("a search needs at least one seed")


@dataclass(frozen=True, slots=True)
class Point:
    """Means over the seeds of runs of one size: a number of models, or of workers."""

    size: int
    token_attainment: float
    last_third_attainment: float

    @property
    def is_sustained(self) -> bool:
        return min(self.token_attainment, self.last_third_attainment) >= SUSTAINED


def measure(
    size: int, rates_per_s: Mapping[str, float], settings: Settings, traffic: Traffic, executor: Executor
) -> Point:
    """Runs every seed to its end. Raises InvalidArgument and ModelTooLarge for what cannot be run."""
    runs = [executor.submit(_run, rates_per_s, settings, traffic, seed) for seed in traffic.seeds]
    reports = [run.result() for run in runs]
    return Point(
        size,
        fmean(report.token_attainment for report in reports),
        fmean(report.last_third_attainment for report in reports),
    )


def _run(rates_per_s: Mapping[str, float], settings: Settings, traffic: Traffic, seed: int) -> Report:
    arrivals = workload.generate(rates_per_s, traffic.duration_s, traffic.arrivals, traffic.lengths, seed)
    return simulate(arrivals, settings, list(rates_per_s))
