"""How the requests of a market are shared among its models."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hekaton.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Zipf:
    """The model of rank r gets a share that goes with r^-exponent, above a floor that all have; 0 makes all alike.

    Ranks are dealt at random, so that popularity does not depend on the order in which models are named.
    """

    mean_per_s: float
    exponent: float = 0.0
    floor_per_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean_per_s) and self.mean_per_s > 0):
            raise InvalidArgument(f"rates must be positive, not {self.mean_per_s} on average")
        if not 0 <= self.floor_per_s <= self.mean_per_s:
            raise InvalidArgument(f"the least rate is between 0 and the mean, not {self.floor_per_s}")
        if not 0 <= self.exponent <= 10:
            raise InvalidArgument(f"the exponent of Zipf's law is between 0 and 10, not {self.exponent}")
        if self.seed < 0:
            raise InvalidArgument(f"a seed is at least 0, not {self.seed}")

    def rates_per_s(self, models: Sequence[str]) -> dict[str, float]:
        """Requests a second by model; their mean is `mean_per_s`."""
        shares = np.arange(1, len(models) + 1, dtype=float) ** -self.exponent
        rates = self.floor_per_s + (self.mean_per_s - self.floor_per_s) * shares / shares.mean()
        ranks = np.random.default_rng(self.seed).permutation(len(models))
        return {model: float(rates[rank]) for model, rank in zip(models, ranks, strict=True)}
