"""A market in YAML: classes of models, models with their class, and how often each is asked for.

classes:
  small: {weight_gb: 8.2, kv_bytes_per_token: 65536}            # times scaled from the reference class
  seven: {profile: qwen2.5-7b}                                  # all of it as profiled
  large: {weight_gb: 145, kv_bytes_per_token: 327680, tensor_parallel: 4}
models:
  - {name: chat, class: seven, rate_per_s: 0.5}
  - {name: tail, class: small, count: 100}                      # tail-00, tail-01, …
popularity: {mean_rate_per_s: 0.037, zipf: 1.0}                 # of the models without a rate of their own
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from hekaton.engine.profiles import REFERENCE_CLASS, Fit
from hekaton.errors import InvalidArgument
from hekaton.sim.classes import STAND_IN, STAND_IN_TENSOR_PARALLEL, ServedClass, served
from hekaton.sim.popularity import Zipf

Positive = Annotated[float, msgspec.Meta(gt=0, lt=1e15)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
GB = 1_000_000_000


class ClassEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    profile: str | None = None
    weight_gb: Positive | None = None
    kv_bytes_per_token: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tensor_parallel: Count | None = None
    fit: Fit | None = None
    """Coefficients of its own, named as in `hekaton.engine.profiles.Fit`."""


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1)]
    class_name: str = msgspec.field(name="class")
    rate_per_s: Positive | None = None
    count: Count = 1


class PopularityEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mean_rate_per_s: float
    zipf: float = 0.0
    least_rate_per_s: float = 0.0
    seed: int = 0


class MarketFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    classes: dict[str, dict[str, object]]
    """Each a ClassEntry: read one by one, so that an error names it."""
    models: Annotated[list[ModelEntry], msgspec.Meta(min_length=1)]
    popularity: PopularityEntry | None = None


@dataclass(frozen=True, slots=True)
class Market:
    """Models by name."""

    catalog: Mapping[str, ServedClass]
    rates_per_s: Mapping[str, float]

    def pools(self) -> dict[int, "Market"]:
        """One market for each tensor-parallel degree."""
        degrees = sorted({served.tensor_parallel for served in self.catalog.values()})
        return {degree: self._of(degree) for degree in degrees}

    def _of(self, degree: int) -> "Market":
        own = {model: served for model, served in self.catalog.items() if served.tensor_parallel == degree}
        return Market(own, {model: self.rates_per_s[model] for model in own})


def read(path: Path) -> Market:
    """Raises InvalidArgument, which names the file and the entry."""
    try:
        file = msgspec.yaml.decode(path.read_bytes(), type=MarketFile)
        return _market(file)
    except (msgspec.DecodeError, InvalidArgument) as error:
        message = " ".join(str(error).split())
        raise InvalidArgument(f"{path}: {message}") from None


def _market(file: MarketFile) -> Market:
    classes = {name: _class(name, entry) for name, entry in file.classes.items()}
    catalog: dict[str, ServedClass] = {}
    rates: dict[str, float | None] = {}
    for entry in file.models:
        if entry.class_name not in classes:
            raise InvalidArgument(f"model {entry.name!r}: there is no class {entry.class_name!r}")
        for model in _names(entry):
            if model in catalog:
                raise InvalidArgument(f"model {model!r} is named twice")
            catalog[model], rates[model] = classes[entry.class_name], entry.rate_per_s
    return Market(catalog, _rates(rates, file.popularity))


def _names(entry: ModelEntry) -> list[str]:
    if entry.count == 1:
        return [entry.name]
    width = len(str(entry.count - 1))
    return [f"{entry.name}-{index:0{width}d}" for index in range(entry.count)]


def _rates(given: Mapping[str, float | None], popularity: PopularityEntry | None) -> dict[str, float]:
    rates = {model: rate for model, rate in given.items() if rate is not None}
    without = [model for model in given if model not in rates]
    if without and popularity is None:
        raise InvalidArgument(f"model {without[0]!r} has no rate_per_s, and there is no popularity to draw one from")
    if popularity is not None:
        if not without:
            raise InvalidArgument("popularity: every model has a rate_per_s of its own")
        drawn = Zipf(popularity.mean_rate_per_s, popularity.zipf, popularity.least_rate_per_s, popularity.seed)
        rates |= drawn.rates_per_s(without)
    return {model: rates[model] for model in given}


def _class(name: str, entry: Mapping[str, object]) -> ServedClass:
    try:
        return _served(msgspec.convert(entry, ClassEntry))
    except (msgspec.ValidationError, InvalidArgument) as error:
        raise InvalidArgument(f"class {name!r}: {error}") from None


def _served(entry: ClassEntry) -> ServedClass:
    degree = entry.tensor_parallel or (served(entry.profile).tensor_parallel if entry.profile else 1)
    profile = entry.profile or (STAND_IN if degree == STAND_IN_TENSOR_PARALLEL else REFERENCE_CLASS)
    known = served(profile)
    if entry.fit is not None:
        _check(entry.fit)
    elif known.tensor_parallel != degree:
        raise InvalidArgument(f"no profile of {degree} devices is known; give a fit of its own")
    if entry.profile is None and (entry.weight_gb is None or entry.kv_bytes_per_token is None):
        raise InvalidArgument("give weight_gb and kv_bytes_per_token, or a profile that has them")
    return ServedClass(
        weight_bytes=round(entry.weight_gb * GB) if entry.weight_gb else known.weight_bytes,
        kv_bytes_per_token=entry.kv_bytes_per_token or known.kv_bytes_per_token,
        profile=profile,
        tensor_parallel=degree,
        fit=entry.fit,
    )


def _check(fit: Fit) -> None:
    if not (all(0 <= value < math.inf for value in astuple(fit)) and fit.prefill_base_ms > 0 and fit.step_base_ms > 0):
        raise InvalidArgument("the times of a fit are at least 0, and those of a call above it")


def summary(market: Market) -> str:
    """One line for people."""
    by_degree = Counter(served.tensor_parallel for served in market.catalog.values())
    kinds = ", ".join(
        f"{count} on {degree} GPU{'s' * (degree > 1)} each" for degree, count in sorted(by_degree.items())
    )
    rates = sorted(market.rates_per_s.values())
    mean = sum(rates) / len(rates)
    return (
        f"{len(rates)} models ({kinds}), {rates[0]:.3g}–{rates[-1]:.3g} requests a second each, {mean:.3g} on average"
    )
