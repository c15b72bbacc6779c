"""A simulated accelerator: one memory for weights and KV, and one serial copy engine beside the compute."""

from collections.abc import Mapping
from dataclasses import dataclass

from hekaton.engine.emulated import BLOCK_TOKENS
from hekaton.policy.types import ModelCosts
from hekaton.sim.request import SimRequest


@dataclass(frozen=True, slots=True)
class _Load:
    model: str
    start_s: float
    end_s: float


class Device:
    """Keeps the books. Room for weights is taken when their copy is asked for."""

    def __init__(self, memory_bytes: int, costs: Mapping[str, ModelCosts]) -> None:
        self.memory_bytes = memory_bytes
        self.weights_bytes = 0
        self.kv_bytes = 0
        self.copied_s = 0.0
        """Seconds that the copy engine was busy."""
        self.resident: frozenset[str] = frozenset()
        self.loading: frozenset[str] = frozenset()
        self._costs = costs
        self._loads: list[_Load] = []

    @property
    def free_bytes(self) -> int:
        return self.memory_bytes - self.weights_bytes - self.kv_bytes

    # ---- weights

    @property
    def next_copy_ends_s(self) -> float | None:
        return self._loads[0].end_s if self._loads else None

    def begin_load(self, model: str, now_s: float) -> bool:
        """Asks for a copy. False if there is no room for the weights."""
        costs = self._costs[model]
        if costs.weight_bytes > self.free_bytes:
            return False
        start_s = max(now_s, self._loads[-1].end_s) if self._loads else now_s
        self._loads.append(_Load(model, start_s, start_s + costs.load_s))
        self.weights_bytes += costs.weight_bytes
        self.loading |= {model}
        return True

    def settle(self, now_s: float) -> bool:
        """Copies that have ended make their models resident. True if there were any."""
        ended = [load for load in self._loads if load.end_s <= now_s]
        self._loads = self._loads[len(ended) :]
        for load in ended:
            self.copied_s += load.end_s - load.start_s
            self.loading -= {load.model}
            self.resident |= {load.model}
        return bool(ended)

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
        gone = next(load for load in self._loads if load.model == model)
        self.copied_s += max(now_s - gone.start_s, 0.0)
        loads, self._loads, free_s = self._loads, [], now_s
        for load in loads:
            if load is gone:
                continue
            start_s = load.start_s if load.start_s <= now_s else free_s
            free_s = start_s + self._costs[load.model].load_s
            self._loads.append(_Load(load.model, start_s, free_s))

    # ---- KV

    def growth_bytes(self, request: SimRequest, tokens: int) -> int:
        """What is missing for `tokens` tokens of KV in all."""
        return max(self._kv_bytes(request, tokens) - request.kv_bytes, 0)

    def set_kv(self, request: SimRequest, tokens: int) -> bool:
        """Gives a request the blocks for `tokens` tokens, more or fewer than it has. False if there is no room."""
        change = self._kv_bytes(request, tokens) - request.kv_bytes
        if change > self.free_bytes:
            return False
        request.kv_bytes += change
        self.kv_bytes += change
        return True

    def _kv_bytes(self, request: SimRequest, tokens: int) -> int:
        return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS * self._costs[request.model].kv_bytes_per_token
