"""A load in figures."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hekaton.load.sample import Sample

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class ModelReport:
    requests: int
    tokens: int
    token_attainment: float
    ttft: Percentiles | None
    tbt: Percentiles | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """All times are on the clock of the client."""

    requests: int
    finished: int
    failed: dict[str, int]
    """By status."""
    tokens: int
    duration_s: float
    """From the first request to the end of the last."""
    token_attainment: float
    """Share of all tokens that were there by arrival + TTFT + i · TBT; those of failed requests are late."""
    request_attainment: float
    """Share of a request's tokens that were on time, averaged over requests."""
    min_model_attainment: float
    tokens_per_s: float
    goodput_tokens_per_s: float
    """Tokens on time."""
    ttft: Percentiles | None
    tbt: Percentiles | None
    end_to_end: Percentiles | None
    sent_late: Percentiles
    """How late the client itself was: its machine is too slow for this load if that is much."""
    models: dict[str, ModelReport]


def report(samples: Sequence[Sample]) -> LoadReport:
    """Of at least one request."""
    by_model: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_model[sample.model].append(sample)
    models = {model: _model(own) for model, own in sorted(by_model.items())}
    first_s = min(sample.arrival_s for sample in samples)
    duration_s = max(sample.arrival_s + sample.end_s for sample in samples) - first_s
    tokens = sum(len(sample.token_times_s) for sample in samples)
    return LoadReport(
        requests=len(samples),
        finished=sum(sample.finished for sample in samples),
        failed=dict(Counter(sample.status for sample in samples if not sample.finished)),
        tokens=tokens,
        duration_s=duration_s,
        token_attainment=attainment(samples),
        request_attainment=float(np.mean([attainment([sample]) for sample in samples])),
        min_model_attainment=min(model.token_attainment for model in models.values()),
        tokens_per_s=tokens / duration_s,
        goodput_tokens_per_s=sum(sample.on_time for sample in samples) / duration_s,
        ttft=_percentiles([sample.token_times_s[0] for sample in samples if sample.token_times_s]),
        tbt=_percentiles([gap for sample in samples for gap in sample.gaps_s]),
        end_to_end=_percentiles([sample.end_s for sample in samples if sample.finished]),
        sent_late=_percentiles([sample.sent_late_s for sample in samples]) or Percentiles(0.0, 0.0, 0.0),
        models=models,
    )


def attainment(samples: Sequence[Sample]) -> float:
    """Of tokens. 1 if none is owed."""
    owed = sum(sample.owed for sample in samples)
    return sum(sample.on_time for sample in samples) / owed if owed else 1.0


def _model(samples: Sequence[Sample]) -> ModelReport:
    return ModelReport(
        requests=len(samples),
        tokens=sum(len(sample.token_times_s) for sample in samples),
        token_attainment=attainment(samples),
        ttft=_percentiles([sample.token_times_s[0] for sample in samples if sample.token_times_s]),
        tbt=_percentiles([gap for sample in samples for gap in sample.gaps_s]),
    )


def _percentiles(values_s: Sequence[float]) -> Percentiles | None:
    if not values_s:
        return None
    p50, p90, p99 = (float(value) for value in np.percentile(values_s, PERCENTILES))
    return Percentiles(p50, p90, p99)
