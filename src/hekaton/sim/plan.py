"""How many devices a market needs."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache, partial

from hekaton.errors import InvalidArgument
from hekaton.sim.abreast import abreast
from hekaton.sim.classes import STAND_IN_TENSOR_PARALLEL
from hekaton.sim.market import GB, Market
from hekaton.sim.run import Settings
from hekaton.sim.search import Passes, best_smallest
from hekaton.sim.trials import SUSTAINED, Point, Traffic, measure
from hekaton.sim.variants import Variant, contenders

DEDICATED = "dedicated"
WORKERS_A_MODEL = 4
"""A pool that is not enough with so many workers a model never will be."""
LEAST_LIMIT = 64


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers for the models of one tensor-parallel degree."""

    devices: int
    """A worker."""
    models: int
    variant: Variant
    workers: int | None
    """None if no number is enough."""

    @property
    def gpus(self) -> int | None:
        return None if self.workers is None else self.workers * self.devices


@dataclass(frozen=True, slots=True)
class Plan:
    """What one policy needs for one scale of the objectives."""

    policy: str
    slo_scale: float
    pools: tuple[Pool, ...]

    @property
    def gpus(self) -> int | None:
        """None if a pool cannot be made."""
        counts = [pool.gpus for pool in self.pools]
        return None if None in counts else sum(count for count in counts if count is not None)

    def saving(self, baseline: "Plan | None") -> float | None:
        """Share of the baseline's GPUs that are not needed."""
        if baseline is None or not baseline.gpus or self.gpus is None:
            return None
        return 1 - self.gpus / baseline.gpus


Seen = Callable[[str, float, int, Point], None]
"""Told of every point: policy, SLO scale, devices a worker, the point, whose size is a number of workers."""


def plan(
    market: Market,
    settings: Settings,
    traffic: Traffic,
    executor: Executor,
    *,
    policies: Sequence[str] = (),
    slo_scales: Sequence[float] = (1.0,),
    seen: Seen = lambda policy, scale, devices, point: None,
) -> list[Plan]:
    """Bisects over workers for every policy (of those named, or all), scale and pool, all at once.

    Raises InvalidArgument and ModelTooLarge.
    """
    variants = _chosen(policies)
    pools = market.pools()

    def one(policy: str, scale: float, devices: int) -> Pool:
        scaled = replace(settings, ttft_s=settings.ttft_s * scale, tbt_s=settings.tbt_s * scale, gpus=devices)
        return _pool(
            variants[policy],
            devices,
            pools[devices],
            scaled,
            traffic,
            executor,
            lambda point: seen(policy, scale, devices, point),
        )

    keys = [(policy, scale, devices) for policy in variants for scale in slo_scales for devices in pools]
    found = abreast({key: partial(one, *key) for key in keys})
    return [
        Plan(policy, scale, tuple(found[policy, scale, devices] for devices in pools))
        for policy in variants
        for scale in slo_scales
    ]


def _chosen(policies: Sequence[str]) -> Mapping[str, list[Variant]]:
    known = contenders()
    unknown = next((policy for policy in policies if policy not in known), None)
    if unknown is not None:
        raise InvalidArgument(f"unknown policy {unknown!r}; known are {', '.join(sorted(known))}")
    return {policy: known[policy] for policy in policies or known}


def _pool(
    variants: Sequence[Variant],
    devices: int,
    market: Market,
    settings: Settings,
    traffic: Traffic,
    executor: Executor,
    seen: Callable[[Point], None],
) -> Pool:
    models = len(market.catalog)
    is_dedicated = variants[0].policy == DEDICATED

    def enough(variant: Variant) -> Passes:
        least = models if is_dedicated else variant.least_workers

        @cache
        def answer(workers: int) -> bool:
            if workers < least:
                return False
            sized = replace(variant.apply(settings), gpus=workers * devices, catalog=market.catalog)
            point = measure(workers, market.rates_per_s, sized, traffic, executor)
            seen(point)
            return point.is_sustained

        return answer

    hint = models if is_dedicated else max(models // 4, 1)
    most = max(WORKERS_A_MODEL * models, LEAST_LIMIT)
    winner, workers = best_smallest([enough(variant) for variant in variants], hint, most)
    return Pool(devices, models, variants[winner], workers)


def assumptions(market: Market, settings: Settings, traffic: Traffic) -> list[str]:
    """What a plan rests on, in sentences for people."""
    seeds = len(traffic.seeds)
    bandwidth = settings.bandwidth_bytes_per_s / GB
    notes = [
        f"enough: {SUSTAINED:.0%} of the tokens on time, of all arrivals and of those of the last third, over "
        f"{traffic.duration_s:g} s of arrivals, mean of {seeds} seed{'s' * (seeds != 1)}; nothing in reserve",
        f"SLO: first token within {settings.ttft_s:g} s, then one every {settings.tbt_s * 1000:g} ms, times the scale",
        f"requests: {type(traffic.arrivals).__name__} arrivals, {type(traffic.lengths).__name__} lengths; "
        f"weights come from host memory at {bandwidth:g} GB/s a device",
        "dedicated: one instance a model, a group of devices for a tensor-parallel one, and no replicas",
        "aegaeon: the best of a grid of Q_MAX and of prefill workers",
    ]
    if len(market.pools()) > 1 or STAND_IN_TENSOR_PARALLEL in market.pools():
        notes.append(
            f"models on {STAND_IN_TENSOR_PARALLEL} devices, unless they have a fit of their own: OPT-66B on four A100 "
            "as DistServe published it, scaled by weight bytes and to this device by roofline; not measured"
        )
    return notes
