"""How many models a pool sustains."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache

from hekaton.sim.catalog import names
from hekaton.sim.popularity import Zipf
from hekaton.sim.run import Settings
from hekaton.sim.search import Passes, best_largest
from hekaton.sim.trials import Point, Traffic, measure
from hekaton.sim.variants import Variant

Seen = Callable[[Variant, Point], None]
HINT_MODELS = 64


@dataclass(frozen=True, slots=True)
class Sustained:
    """The best of some variants of a policy: the largest market of which it sustains every smaller one."""

    variant: Variant
    models: int
    points: tuple[Point, ...]
    """Of the best variant, by size."""


def sustain(
    variants: Sequence[Variant],
    settings: Settings,
    rate_per_s: float,
    traffic: Traffic,
    executor: Executor,
    *,
    zipf: float = 0.0,
    hint: int = HINT_MODELS,
    seen: Seen = lambda variant, point: None,
) -> Sustained:
    """Bisects over the number of models, of the artifact's mix, at `rate_per_s` each on average.

    `seen` is told of every point. Raises InvalidArgument and ModelTooLarge.
    """
    measured: dict[int, list[Point]] = {}

    def passes(place: int) -> Passes:
        variant = variants[place]
        points = measured.setdefault(place, [])

        @cache
        def sustained(models: int) -> bool:
            rates = Zipf(rate_per_s, zipf).rates_per_s(names(models))
            point = measure(models, rates, variant.apply(settings), traffic, executor)
            points.append(point)
            seen(variant, point)
            return point.is_sustained

        return sustained

    winner, best = best_largest([passes(place) for place in range(len(variants))], hint)
    points = sorted(measured[winner], key=lambda point: point.size)
    return Sustained(variants[winner], best, tuple(points))
