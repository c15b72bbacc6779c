"""All policies side by side, and a ceiling above them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

from hekaton.errors import InvalidArgument
from hekaton.sim.abreast import abreast
from hekaton.sim.run import Settings
from hekaton.sim.sustain import HINT_MODELS, Sustained, sustain
from hekaton.sim.trials import Point, Traffic
from hekaton.sim.variants import CEILING, Variant, ceiling, contenders

Seen = Callable[["Case", str, Variant, Point], None]


@dataclass(frozen=True, slots=True)
class Case:
    """A rate of requests a model, and by how much the objectives are scaled."""

    rate_per_s: float
    slo_scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.rate_per_s > 0 and self.slo_scale > 0):
            raise InvalidArgument(f"a rate and an SLO scale are positive, not {self.rate_per_s} and {self.slo_scale}")

    def apply(self, settings: Settings) -> Settings:
        return replace(settings, ttft_s=settings.ttft_s * self.slo_scale, tbt_s=settings.tbt_s * self.slo_scale)


@dataclass(frozen=True, slots=True)
class Row:
    """What every policy sustains in one case."""

    case: Case
    policies: Mapping[str, Sustained]
    ceiling: Sustained

    def share(self, policy: str) -> float:
        """Of the ceiling; 0 if that is 0."""
        return self.policies[policy].models / self.ceiling.models if self.ceiling.models else 0.0


def compare(
    cases: Sequence[Case],
    settings: Settings,
    traffic: Traffic,
    executor: Executor,
    *,
    hint: int = HINT_MODELS,
    seen: Seen = lambda case, name, variant, point: None,
) -> list[Row]:
    """All searches at once, which share the executor's processes.

    A policy that needs more workers than there are is left out.
    """
    every = {**contenders(), CEILING: ceiling()}
    able = {name: [one for one in own if one.least_workers <= settings.gpus] for name, own in every.items()}
    wanted = {name: own for name, own in able.items() if own}

    def one(case: Case, name: str) -> Sustained:
        return sustain(
            wanted[name],
            case.apply(settings),
            case.rate_per_s,
            traffic,
            executor,
            hint=hint,
            seen=lambda variant, point: seen(case, name, variant, point),
        )

    found = abreast({(case, name): partial(one, case, name) for case in cases for name in wanted})
    return [
        Row(case, {name: found[case, name] for name in wanted if name != CEILING}, found[case, CEILING])
        for case in cases
    ]
