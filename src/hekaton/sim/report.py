"""A run in figures."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hekaton.sim.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Report:
    """Shares of time are of the whole run, from 0 to the end of the last request, over all devices."""

    policy: str
    device: str
    models: int
    gpus: int
    requests: int
    token_attainment: float
    """Share of all tokens made by `arrival + TTFT + i·TBT`; tokens of refused requests are late."""
    last_third_attainment: float
    """Of the tokens of those that arrived in the last third of the arrivals' time: a load that cannot be sustained has
    fallen behind by then."""
    request_attainment: float
    """Share of a request's tokens that were on time, averaged over requests."""
    qos: float
    """The artifact's cumulative-time ratio, averaged over requests; refused ones count 0."""
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    min_model_attainment: float
    switches: int
    exposed_switch_s: float
    """From the decision for another model to its first step, summed over all switches."""
    moves: int
    """Times that all requests of a model were moved to another worker."""
    kv_swaps: int
    """Times that a request's KV went to the host, a hand-over from prefill to decode included."""
    kv_drops: int
    """Times that a request's KV was lost, and computed again."""
    gpu_busy_fraction: float
    copy_busy_fraction: float
    unfinished: int
    end_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all workers, and when the run ended."""

    workers: int
    end_s: float
    busy_s: float
    copied_s: float
    switches: int
    exposed_switch_s: float
    moves: int
    kv_swaps: int
    kv_drops: int


def report(
    policy: str, device: str, models: int, gpus: int, outcomes: Sequence[Outcome], totals: Totals, wall_s: float
) -> Report:
    ttfts = [outcome.ttft_s for outcome in outcomes if outcome.ttft_s is not None]
    device_s = totals.end_s * totals.workers or 1.0
    return Report(
        policy=policy,
        device=device,
        models=models,
        gpus=gpus,
        requests=len(outcomes),
        token_attainment=_attainment(outcomes),
        last_third_attainment=_attainment(_last_third(outcomes)),
        request_attainment=float(np.mean([outcome.on_time / outcome.tokens for outcome in outcomes])),
        qos=float(np.mean([outcome.qos for outcome in outcomes])),
        ttft_p50_s=float(np.percentile(ttfts, 50)) if ttfts else None,
        ttft_p99_s=float(np.percentile(ttfts, 99)) if ttfts else None,
        min_model_attainment=min(_attainment(own) for own in _by_model(outcomes).values()),
        switches=totals.switches,
        exposed_switch_s=totals.exposed_switch_s,
        moves=totals.moves,
        kv_swaps=totals.kv_swaps,
        kv_drops=totals.kv_drops,
        gpu_busy_fraction=totals.busy_s / device_s,
        copy_busy_fraction=totals.copied_s / device_s,
        unfinished=sum(not outcome.finished for outcome in outcomes),
        end_s=totals.end_s,
        wall_s=wall_s,
    )


def _attainment(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.on_time for outcome in outcomes) / sum(outcome.tokens for outcome in outcomes)


def _last_third(outcomes: Sequence[Outcome]) -> list[Outcome]:
    first_s = min(outcome.arrival_s for outcome in outcomes)
    last_s = max(outcome.arrival_s for outcome in outcomes)
    return [outcome for outcome in outcomes if outcome.arrival_s >= last_s - (last_s - first_s) / 3]


def _by_model(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    by_model: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_model[outcome.model].append(outcome)
    return by_model
