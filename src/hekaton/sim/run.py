"""One run: a workload, a pool of devices, the policies of the live pool, in virtual time."""

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from hekaton.engine.emulated import BLOCK_TOKENS
from hekaton.errors import InvalidArgument
from hekaton.policy.admission import Admission, outlooks
from hekaton.policy.fairness import Usage, over_share
from hekaton.policy.registry import policy
from hekaton.policy.types import ModelCosts, PlacementRequest, Role
from hekaton.sim.agenda import Agenda
from hekaton.sim.catalog import Catalog, hardware
from hekaton.sim.device import Device
from hekaton.sim.host import DEVICES_A_HOST, Host, HostSettings
from hekaton.sim.outcome import Outcome, finished, refused
from hekaton.sim.report import Report, Totals, report
from hekaton.sim.request import SimRequest
from hekaton.sim.worker import Worker
from hekaton.sim.workload import Arrival

STEPS_UNBOUNDED = 1 << 20
REBALANCE_S = 1.0
"""As in the live scheduler, which then also says who has had more than his share."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is run."""

    policy: str = "slack"
    policy_options: Mapping[str, float] = field(default_factory=dict)
    gpus: int = 16
    device: str = "h800"
    catalog: Catalog | None = None
    """By default the artifact's mix of models."""
    device_memory_bytes: int | None = None
    """For weights and KV; by default what the catalog says of the device."""
    bandwidth_bytes_per_s: float = 16e9
    host: HostSettings = field(default_factory=HostSettings)
    """Of each host, which has eight devices."""
    switch_overhead_s: float = 0.0
    """Before the first step of another model, besides the copy."""
    ttft_s: float = 10.0
    tbt_s: float = 0.1
    belief: float = 1.0
    """Policies are told so many times the true times of steps, prefills and loads."""
    admission: Admission = Admission.QUEUE
    slow: Mapping[str, float] = field(default_factory=dict)
    """Models that take so many times the time that is profiled, and that policies are told."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of tenants; 1 of those that are not named."""
    max_steps: int = STEPS_UNBOUNDED
    """In one event; 1 is for tests of the closed form."""


def simulate(workload: Sequence[Arrival], settings: Settings, market: Sequence[str] = ()) -> Report:
    """Runs a workload to its end. `market` names models besides those that the workload asks for.

    Raises InvalidArgument and ModelTooLarge for what cannot be run.
    """
    begun_s = time.perf_counter()
    if settings.gpus < 1 or not (settings.ttft_s > 0 and settings.tbt_s > 0 and settings.switch_overhead_s >= 0):
        raise InvalidArgument("a run has at least one GPU, a TTFT and a TBT above 0, and no negative switch overhead")
    if not workload:
        raise InvalidArgument("the workload holds no requests: ask for a higher rate or a longer duration")
    models = {arrival.model for arrival in workload} | set(market)
    given = settings.device_memory_bytes
    have = hardware(models, settings.catalog, settings.device, given, settings.bandwidth_bytes_per_s)
    workers = have.workers(settings.gpus)
    per_worker = replace(settings, gpus=workers, bandwidth_bytes_per_s=have.bandwidth_bytes_per_s)
    pool = Simulation(per_worker, have.costs, have.memory_bytes, max(DEVICES_A_HOST // have.devices, 1))
    pool.run(workload)
    wall_s = time.perf_counter() - begun_s
    return report(settings.policy, settings.device, len(models), settings.gpus, pool.outcomes, pool.totals(), wall_s)


class Simulation:
    """The pool: places arrivals, hands requests over between roles, keeps what became of them."""

    def __init__(
        self,
        settings: Settings,
        costs: Mapping[str, ModelCosts],
        memory_bytes: int,
        workers_a_host: int = DEVICES_A_HOST,
    ) -> None:
        chosen = policy(settings.policy, settings.policy_options)
        self.outcomes: list[Outcome] = []
        self.agenda = Agenda()
        self._settings = settings
        self._costs = costs
        true = {name: cost.slowed(settings.slow.get(name, 1.0)) for name, cost in costs.items()}
        believed = {name: cost.slowed(settings.belief) for name, cost in costs.items()}
        roles = chosen.roles(settings.gpus)
        self._has_roles = Role.PREFILL in roles
        weight_bytes = {name: cost.weight_bytes for name, cost in costs.items()}
        hosts = [Host(settings.host, weight_bytes) for _ in range(-(-len(roles) // workers_a_host))]
        self.workers = {
            name: Worker(
                name,
                Device(memory_bytes, true, settings.bandwidth_bytes_per_s, hosts[index // workers_a_host]),
                true,
                chosen.turns(role),
                self.agenda,
                self._ended,
                role=role,
                believed=believed,
                switch_overhead_s=settings.switch_overhead_s,
                max_steps=settings.max_steps,
                charge=self._charge,
            )
            for index, (name, role) in enumerate(zip(_worker_names(len(roles)), roles, strict=True))
        }
        self._believed = believed
        self._usage = Usage()
        self._yielding: frozenset[str] = frozenset()
        self._placement = chosen.placement(believed.__getitem__)
        self._patience_s = chosen.patience_s
        self._waiting: deque[tuple[SimRequest, Worker]] = deque()
        """In order of arrival; some have begun since."""
        self._expected = 0
        self._moves = 0
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
                tenant=arrival.tenant,
            )
            phase = Role.PREFILL if self._has_roles else Role.ANY
            self.agenda.at(arrival.arrival_s, partial(self._arrived, request, phase))
        self.agenda.at(REBALANCE_S, self._rebalance)
        self._expected = len(workload)
        self.agenda.run()

    def totals(self) -> Totals:
        workers = self.workers.values()
        return Totals(
            workers=len(self.workers),
            end_s=self._end_s,
            busy_s=sum(worker.tally.busy_s for worker in workers),
            copied_s=sum(worker.device.copied_s for worker in workers),
            switches=sum(worker.tally.switches for worker in workers),
            exposed_switch_s=sum(worker.tally.exposed_switch_s for worker in workers),
            moves=self._moves,
            kv_swaps=sum(worker.device.swapped_out for worker in workers),
            kv_drops=sum(worker.device.dropped for worker in workers),
        )

    def _place(self, request: SimRequest, phase: Role) -> None:
        views = [worker.pool_view() for worker in self.workers.values()]
        chosen = self._placement.place(self._placement_request(request, phase), views)
        if chosen is None:
            self.outcomes.append(refused(request))
        else:
            self.workers[chosen].submit(request)
            if phase is not Role.DECODE and math.isfinite(self._patience_s):
                self._waiting.append((request, self.workers[chosen]))

    def _rebalance(self) -> None:
        """Once a second until everything has ended."""
        if len(self.outcomes) == self._expected:
            return
        for move in self._placement.rebalance([worker.pool_view() for worker in self.workers.values()]):
            requests = self.workers[move.from_worker_id].give_up(move.model)
            self._moves += bool(requests)
            for request in requests:
                self.workers[move.to_worker_id].submit(request)
        self._compare_shares()
        self.agenda.at(self.agenda.now_s + REBALANCE_S, self._rebalance)

    def _charge(self, tenant: str, seconds: float) -> None:
        self._usage.charge(tenant, seconds, self.agenda.now_s)

    def _compare_shares(self) -> None:
        over = over_share(self._usage.rates(self.agenda.now_s), self._settings.weights, len(self.workers))
        self._yielding = over
        for worker in self.workers.values():
            worker.set_yielding(over)

    def _arrived(self, request: SimRequest, phase: Role) -> None:
        """Whoever has waited for too long is refused when another request comes, as in the artifact."""
        while self._waiting and self._waiting[0][0].arrival_s + self._patience_s < self.agenda.now_s:
            waited, worker = self._waiting.popleft()
            if worker.withdraw(waited):
                self.outcomes.append(refused(waited))
        if self._settings.admission is Admission.SHED and not self._promises(request, phase):
            self.outcomes.append(refused(request))
        else:
            self._place(request, phase)

    def _promises(self, request: SimRequest, phase: Role) -> bool:
        """That the objective of a request can be kept."""
        behind = request.tenant in self._yielding or not self._yielding
        views = [one.pool_view() if behind else one.pool_view_before() for one in self.workers.values()]
        best = outlooks([self._placement_request(request, phase)], views, self._believed.__getitem__)
        return request.model in best and best[request.model].ttft_s(request.tbt_s) <= request.ttft_s

    def _placement_request(self, request: SimRequest, phase: Role) -> PlacementRequest:
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
            phase=phase,
        )

    def _ended(self, request: SimRequest) -> None:
        """A request has left a worker."""
        if request.produced < request.output_tokens:
            self._place(request, Role.DECODE)
            return
        self._end_s = self.agenda.now_s
        self.outcomes.append(finished(request))


def _worker_names(count: int) -> list[str]:
    return [f"w{index:04d}" for index in range(count)]
