"""A simulated accelerator: one memory for weights and KV, and a bus with both directions to its host.

Copies to the device share one direction: KV goes before weights, as a reader waits for it. Copies to the host have the
other. KV that leaves frees its room at once, since what comes in its place can be no faster than it leaves.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from hekaton.engine.emulated import BLOCK_TOKENS
from hekaton.policy.types import ModelCosts
from hekaton.sim.host import Host
from hekaton.sim.request import SimRequest


@dataclass(slots=True)
class _Load:
    model: str
    there_s: float
    """When its weights are in host memory."""
    start_s: float
    end_s: float


class Device:
    """Keeps the books. Room is taken when a copy is asked for."""

    def __init__(
        self, memory_bytes: int, costs: Mapping[str, ModelCosts], bandwidth_bytes_per_s: float, host: Host
    ) -> None:
        self.memory_bytes = memory_bytes
        self.weights_bytes = 0
        self.kv_bytes = 0
        self.kv_of: dict[str, int] = defaultdict(int)
        """KV on the device or on its way there, by model."""
        self.copied_s = 0.0
        """Seconds of copies to the device."""
        self.swapped_out = 0
        self.dropped = 0
        """Times that a request's KV was moved to the host, or lost for want of room there."""
        self.resident: frozenset[str] = frozenset()
        self.loading: frozenset[str] = frozenset()
        self._costs = costs
        self._bandwidth = bandwidth_bytes_per_s
        self._host = host
        self._loads: list[_Load] = []
        self._fetches: list[tuple[float, SimRequest]] = []
        self._kv_in_free_s = 0.0
        self._kv_out_free_s = 0.0

    @property
    def free_bytes(self) -> int:
        return self.memory_bytes - self.weights_bytes - self.kv_bytes

    @property
    def next_copy_ends_s(self) -> float | None:
        ends = [load.end_s for load in self._loads[:1]] + [end_s for end_s, _ in self._fetches[:1]]
        return min(ends, default=None)

    def settle(self, now_s: float) -> list[str]:
        """Copies that have ended take effect. The models whose weights or KV have come."""
        came: list[str] = []
        while self._loads and self._loads[0].end_s <= now_s:
            load = self._loads.pop(0)
            self.copied_s += self._costs[load.model].load_s
            self.loading -= {load.model}
            self.resident |= {load.model}
            came.append(load.model)
        while self._fetches and self._fetches[0][0] <= now_s:
            _, request = self._fetches.pop(0)
            self._leave_host(request)
            request.fetched()
            came.append(request.model)
        return came

    # ---- weights

    def present(self) -> frozenset[str]:
        return self.resident | self.loading

    def begin_load(self, model: str, now_s: float) -> bool:
        """Asks for a copy. False if there is no room for the weights."""
        costs = self._costs[model]
        if costs.weight_bytes > self.free_bytes:
            return False
        there_s = self._host.weights_at_s(model, now_s)
        start_s = max(now_s, there_s, self._kv_in_free_s, self._loads[-1].end_s if self._loads else 0.0)
        self._loads.append(_Load(model, there_s, start_s, start_s + costs.load_s))
        self.weights_bytes += costs.weight_bytes
        self.loading |= {model}
        return True

    def evict(self, model: str, now_s: float) -> None:
        """Drops a model, or breaks off its copy; those behind it come sooner."""
        if model in self.loading:
            self._break_off(model, now_s)
        elif model not in self.resident:
            return
        self.weights_bytes -= self._costs[model].weight_bytes
        self.resident -= {model}
        self.loading -= {model}

    def _break_off(self, model: str, now_s: float) -> None:
        place = next(index for index, load in enumerate(self._loads) if load.model == model)
        gone = self._loads.pop(place)
        self.copied_s += min(max(now_s - gone.start_s, 0.0), self._costs[model].load_s)
        for load in self._loads[place:]:
            before_s = self._loads[place - 1].end_s if place else 0.0
            start_s = max(now_s, load.there_s, self._kv_in_free_s, before_s)
            load.start_s, load.end_s = start_s, start_s + self._costs[load.model].load_s
            place += 1

    # ---- KV

    def growth_bytes(self, request: SimRequest, tokens: int) -> int:
        """What is missing for `tokens` tokens of KV in all."""
        return max(self._size(request, tokens) - request.kv_bytes, 0) if tokens > request.kv_tokens else 0

    def set_kv(self, request: SimRequest, tokens: int) -> bool:
        """Gives a request the blocks for `tokens` tokens, more or fewer than it has. False if there is no room."""
        whole_tokens = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        if whole_tokens == request.kv_tokens:
            return True
        change = whole_tokens * self._costs[request.model].kv_bytes_per_token - request.kv_bytes
        if change > self.free_bytes:
            return False
        request.kv_tokens = whole_tokens
        request.kv_bytes += change
        self.kv_bytes += change
        self.kv_of[request.model] += change
        return True

    def grow_kv(self, request: SimRequest, tokens: int, now_s: float) -> bool:
        return tokens <= request.kv_tokens or self.set_kv(request, tokens)

    def drop_kv(self, request: SimRequest, now_s: float) -> None:
        """Moves a request's KV to the host, or loses it if there is no room."""
        nbytes = self._size(request, request.computed)
        self.set_kv(request, 0)
        if nbytes and self._host.take(nbytes):
            self.swapped_out += 1
            self._kv_out_free_s = max(now_s, self._kv_out_free_s) + self._swap_s(request, nbytes)
            request.swapped(self._host, nbytes, self._kv_out_free_s)
        else:
            self.dropped += 1
            request.start_over()

    def fetch_kv(self, request: SimRequest, now_s: float) -> None:
        """Begins to bring a request's KV from the host, into room that was made. Weights on their way wait for it."""
        took_s = self._swap_s(request, request.host_bytes)
        start_s = max(now_s, self._kv_in_free_s, request.host_ready_s)
        self._kv_in_free_s = start_s + took_s
        self.copied_s += took_s
        request.fetching = True
        self._fetches.append((self._kv_in_free_s, request))
        for load in self._loads:
            load.start_s += took_s if load.start_s > now_s else 0.0
            load.end_s += took_s

    def _swap_s(self, request: SimRequest, nbytes: float) -> float:
        costs = self._costs[request.model]
        if not costs.swap_s_per_token:
            return nbytes / self._bandwidth
        return costs.swap_s_per_token * nbytes / costs.kv_bytes_per_token

    def _leave_host(self, request: SimRequest) -> None:
        if request.host is not None:
            request.host.free(request.host_bytes)

    def _size(self, request: SimRequest, tokens: int) -> int:
        return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS * self._costs[request.model].kv_bytes_per_token
