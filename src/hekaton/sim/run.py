"""One run: a workload, a pool of devices, the policies of the live pool, in virtual time."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from hekaton.engine.emulated import BLOCK_TOKENS
from hekaton.errors import InvalidArgument
from hekaton.policy.types import ModelCosts, PlacementRequest
from hekaton.sim.agenda import Agenda
from hekaton.sim.catalog import USABLE_BYTES, costs_of
from hekaton.sim.device import Device
from hekaton.sim.outcome import Outcome, finished, refused
from hekaton.sim.policies import policy
from hekaton.sim.report import Report, Totals, report
from hekaton.sim.request import SimRequest
from hekaton.sim.worker import Worker
from hekaton.sim.workload import Arrival

STEPS_UNBOUNDED = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """What is run."""

    policy: str = "slack"
    policy_options: Mapping[str, float] = field(default_factory=dict)
    gpus: int = 16
    device: str = "h800"
    device_memory_bytes: int | None = None
    """For weights and KV; by default what the catalog says of the device."""
    bandwidth_bytes_per_s: float = 16e9
    ttft_s: float = 10.0
    tbt_s: float = 0.1
    max_steps: int = STEPS_UNBOUNDED
    """In one event; 1 is for tests of the closed form."""


def simulate(workload: Sequence[Arrival], settings: Settings, market: Sequence[str] = ()) -> Report:
    """Runs a workload to its end. `market` names models besides those that the workload asks for.

    Raises InvalidArgument and ModelTooLarge for what cannot be run.
    """
    begun_s = time.perf_counter()
    if settings.gpus < 1 or not (settings.ttft_s > 0 and settings.tbt_s > 0):
        raise InvalidArgument("a run has at least one GPU, and a TTFT and a TBT above 0")
    if not workload:
        raise InvalidArgument("the workload holds no requests: ask for a higher rate or a longer duration")
    models = {arrival.model for arrival in workload} | set(market)
    memory_bytes = settings.device_memory_bytes or USABLE_BYTES.get(settings.device, 0)
    # An unknown device is refused here, before its memory matters.
    costs = costs_of(models, settings.device, memory_bytes, settings.bandwidth_bytes_per_s)
    pool = Simulation(settings, costs, memory_bytes)
    pool.run(workload)
    wall_s = time.perf_counter() - begun_s
    return report(settings.policy, settings.device, len(models), settings.gpus, pool.outcomes, pool.totals(), wall_s)


class Simulation:
    """The pool: places arrivals, keeps what became of them."""

    def __init__(self, settings: Settings, costs: Mapping[str, ModelCosts], memory_bytes: int) -> None:
        chosen = policy(settings.policy, settings.policy_options)
        self.outcomes: list[Outcome] = []
        self.agenda = Agenda()
        self.workers = {
            name: Worker(
                name,
                Device(memory_bytes, costs),
                costs,
                chosen.turns(),
                self.agenda,
                self._finished,
                settings.max_steps,
            )
            for name in (f"w{index:04d}" for index in range(settings.gpus))
        }
        self._settings = settings
        self._costs = costs
        self._placement = chosen.placement({model: cost.step_s(1, 0) / settings.tbt_s for model, cost in costs.items()})
        self._end_s = 0.0

    def run(self, workload: Sequence[Arrival]) -> None:
        for index, arrival in enumerate(workload):
            request = SimRequest(
                request_id=f"r{index:07d}",
                model=arrival.model,
                arrival_s=arrival.arrival_s,
                input_tokens=arrival.input_tokens,
                output_tokens=arrival.output_tokens,
                ttft_s=self._settings.ttft_s,
                tbt_s=self._settings.tbt_s,
            )
            self.agenda.at(arrival.arrival_s, partial(self._arrived, request))
        self.agenda.run()

    def totals(self) -> Totals:
        tallies = [worker.tally for worker in self.workers.values()]
        return Totals(
            end_s=self._end_s,
            busy_s=sum(tally.busy_s for tally in tallies),
            copied_s=sum(worker.device.copied_s for worker in self.workers.values()),
            switches=sum(tally.switches for tally in tallies),
            exposed_switch_s=sum(tally.exposed_switch_s for tally in tallies),
        )

    def _arrived(self, request: SimRequest) -> None:
        views = tuple(worker.pool_view() for worker in self.workers.values())
        chosen = self._placement.place(self._placement_request(request), views)
        if chosen is None:
            self.outcomes.append(refused(request.model, request.output_tokens))
        else:
            self.workers[chosen].submit(request)

    def _placement_request(self, request: SimRequest) -> PlacementRequest:
        costs = self._costs[request.model]
        total_tokens = request.input_tokens + request.output_tokens
        whole_blocks_tokens = -(-total_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        return PlacementRequest(
            request_id=request.request_id,
            model=request.model,
            prompt_tokens=whole_blocks_tokens - request.output_tokens,
            max_tokens=request.output_tokens,
            weight_bytes=costs.weight_bytes,
            kv_bytes_per_token=costs.kv_bytes_per_token,
            ttft_s=request.ttft_s,
            tbt_s=request.tbt_s,
        )

    def _finished(self, request: SimRequest) -> None:
        self._end_s = self.agenda.now_s
        self.outcomes.append(finished(request))
