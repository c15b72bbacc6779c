"""An engine's memory as it concerns requests: who has room on the device, whose KV goes to the host, whose is lost."""

from collections.abc import Iterable

from hekaton.engine.desk import Desk
from hekaton.engine.interface import Engine
from hekaton.engine.live import LiveRequest
from hekaton.engine.room import rank_s


class EngineMemory:
    """An engine's memory, for `Room`."""

    def __init__(self, engine: Engine, desk: Desk) -> None:
        self._engine = engine
        self._desk = desk

    def present(self) -> frozenset[str]:
        return self._engine.resident() | self._engine.loading()

    def begin_load(self, model: str, now_s: float) -> bool:
        return self._engine.begin_load(model)

    def evict(self, model: str, now_s: float) -> None:
        self._engine.evict(model)

    def grow_kv(self, request: LiveRequest, tokens: int, now_s: float) -> bool:
        """Room for `tokens` tokens in all; KV that is on the host begins to come back into it."""
        if request.host_tokens:
            return self._fetch(request)
        if not self._engine.grow_kv(request.request_id, request.model, tokens):
            return False
        request.kv_tokens = max(request.kv_tokens, tokens)
        return True

    def drop_kv(self, request: LiveRequest, now_s: float) -> None:
        """Moves a request's KV to the host. If that is full, whoever ranks last computes its own again."""
        while request.computed and self._may_swap(request):
            if self._engine.swap_out(request.request_id, request.computed):
                self._count("out", request, request.computed)
                request.swapped()
                return
            other = self._last_on_host(request, now_s)
            if other is None:
                break
            self._lose(other)
        self._lose(request)

    def fetch_beside(self, requests: Iterable[LiveRequest]) -> None:
        """Begins to bring KV from the host, into free room only."""
        for request in requests:
            if request.host_tokens and not request.fetching:
                self._fetch(request)

    def returned(self) -> bool:
        """Books KV that has come back from the host. True if there was any."""
        returns = self._engine.finished_swaps()
        for swap in returns:
            request = self._desk.live.get(swap.request_id)
            if request is None:
                continue
            if swap.error:
                self._desk.travels.lost += 1
                request.start_over()
            else:
                self._count("in", request, request.host_tokens)
                request.fetched()
            self._desk.demands.touch(request.model)
        return bool(returns)

    def _fetch(self, request: LiveRequest) -> bool:
        if not self._engine.swap_in(request.request_id):
            return False
        request.kv_tokens, request.fetching = request.host_tokens, True
        return True

    def _may_swap(self, request: LiveRequest) -> bool:
        nbytes = request.computed * self._desk.specs[request.model].kv_bytes_per_token
        return nbytes <= self._engine.host_kv_memory_bytes

    def _count(self, direction: str, request: LiveRequest, tokens: int) -> None:
        self._desk.travels.moved_bytes[direction] += tokens * self._desk.specs[request.model].kv_bytes_per_token

    def _lose(self, request: LiveRequest) -> None:
        self._engine.drop_kv(request.request_id)
        request.start_over()
        self._desk.demands.touch(request.model)

    def _last_on_host(self, leaving: LiveRequest, now_s: float) -> LiveRequest | None:
        """Who gives up its place there for `leaving`: whoever ranks last, if that is after it; never the oldest."""
        oldest = min(self._desk.live.values(), key=lambda one: one.age_key)
        least_s = float("-inf") if leaving is oldest else rank_s(leaving, now_s)
        there = [
            (rank_s(one, now_s), one.request_id)
            for one in self._desk.live.values()
            if one.host_tokens and not one.fetching and one is not oldest
        ]
        last_s, request_id = max(there, default=(least_s, ""))
        return self._desk.live[request_id] if last_s > least_s else None
