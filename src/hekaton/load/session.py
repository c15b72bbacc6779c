"""A load from its plan to its samples."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from hekaton.client import Client
from hekaton.facts import Slo
from hekaton.load.driver import GrpcApi, drive
from hekaton.load.fit import fitted, ready, slos
from hekaton.load.sample import Sample
from hekaton.sim.workload import Arrival

Asked = Callable[[Sequence[str]], Sequence[Arrival]]
"""The requests, once it is known which models there are."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Seconds are the workload's own; `time_scale` stretches arrivals and objectives on the clock."""

    asked: Asked
    models: Sequence[str] = ()
    """All that the pool serves if empty."""
    ttft_s: float | None = None
    tbt_s: float | None = None
    """None is each model's own."""
    slos: Mapping[str, Slo] = field(default_factory=dict)
    """Of single models."""
    timeout_s: float = 600.0
    """Of one request, on the clock."""
    seed: int = 0
    time_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Watcher:
    """What a caller is told while the load runs."""

    begins: Callable[[int, int], None] = lambda requests, shortened: None
    """How many requests there are, and how many had to be cut to their model's context."""
    ended: Callable[[Sample], None] = lambda sample: None


async def load(addresses: Sequence[str], plan: LoadPlan, watcher: Watcher | None = None) -> list[Sample]:
    """Sends the whole plan to the routers at `addresses`, and returns when the last request has ended.

    Raises HekatonError if the load cannot begin; what becomes of a request stands in its sample.
    """
    watcher = watcher or Watcher()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(address)) for address in addresses]
        models = ready(await clients[0].list_models(), plan.models)
        arrivals, shortened = fitted(plan.asked(sorted(models)), models)
        watcher.begins(len(arrivals), shortened)
        return await drive(
            GrpcApi(clients),
            arrivals,
            slos(models, plan.ttft_s, plan.tbt_s, plan.slos, plan.time_scale),
            timeout_s=plan.timeout_s,
            seed=plan.seed,
            time_scale=plan.time_scale,
            ended=watcher.ended,
        )
