"""What is run: a load, over several seeds, in the processes of an executor."""

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from hekaton.errors import InvalidArgument
from hekaton.sim import workload
from hekaton.sim.arrivals import Arrivals, Poisson
from hekaton.sim.catalog import MIX, names
from hekaton.sim.lengths import read
from hekaton.sim.report import Report
from hekaton.sim.run import Settings, simulate
from hekaton.sim.trials import Traffic

DATA = Path(__file__).parents[1] / "data"
SMALL, LARGE = "qwen2.5-7b", "llama-2-13b"


@dataclass(frozen=True, slots=True)
class Load:
    """Models of the artifact's mix, and the requests a second of each."""

    models: int
    rate_per_s: float

    def __str__(self) -> str:
        return f"{self.models} × {self.rate_per_s:.3g}"

    def scaled(self, share: float) -> "Load":
        """A share of the models."""
        return Load(int(self.models * share), self.rate_per_s)

    def rates_per_s(self) -> dict[str, float]:
        return dict.fromkeys(names(self.models), self.rate_per_s)


def parse(text: str) -> Load:
    """`178x0.1`. Raises InvalidArgument."""
    models, _, rate = text.partition("x")
    try:
        return Load(int(models), float(rate))
    except ValueError:
        raise InvalidArgument(f"{text!r} is not MODELSxRATE, as in 178x0.1") from None


@dataclass(frozen=True, slots=True)
class Bench:
    """What all parts are given."""

    executor: Executor
    sustained: tuple[Load, ...]
    duration_s: float
    seeds: tuple[int, ...]

    def traffic(self, arrivals: Arrivals | None = None) -> Traffic:
        """ShareGPT's lengths; Poisson arrivals unless others are given."""
        lengths = read(DATA / "sharegpt_lengths_sample.csv")
        return Traffic(self.duration_s, arrivals or Poisson(), lengths, self.seeds)

    def reports(self, load: Load, settings: Settings, arrivals: Arrivals | None = None) -> list[Report]:
        """One a seed."""
        traffic, rates = self.traffic(arrivals), load.rates_per_s()
        runs = [self.executor.submit(generated, rates, settings, traffic, seed) for seed in self.seeds]
        return [run.result() for run in runs]


def generated(rates_per_s: Mapping[str, float], settings: Settings, traffic: Traffic, seed: int) -> Report:
    asked = workload.generate(rates_per_s, traffic.duration_s, traffic.arrivals, traffic.lengths, seed)
    return simulate(asked, settings, list(rates_per_s))


def recorded(path: Path, settings: Settings) -> Report:
    return simulate(workload.read(path), settings)


def model_of(profile: str, start: int = 0) -> str:
    """The name of the first model from number `start` on that is of this class."""
    index = next(number for number in count(start) if MIX[number % len(MIX)] == profile)
    return f"m{index:02d}"
