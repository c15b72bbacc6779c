"""Tells routers what the pool can promise to new requests, if they are to refuse what it cannot."""

from contextlib import suppress

from hekaton.errors import StoreUnavailable
from hekaton.facts import ModelSpec
from hekaton.policy.admission import Promise, outlooks
from hekaton.policy.load import CONTEXT_TOKENS, OUTPUT_TOKENS, CostsOf
from hekaton.policy.types import PlacementRequest, Role
from hekaton.store.outlooks import Outlooks
from hekaton_scheduler.models import Models
from hekaton_scheduler.pool import Pool

TYPICAL_PROMPT_TOKENS = CONTEXT_TOKENS - OUTPUT_TOKENS // 2
USUAL_TTFT_S, USUAL_TBT_S = 10.0, 0.1
"""A request may ask for others: what is published are times, not whether they suffice."""
LASTING = 3
"""In intervals: what a leader said that is gone is forgotten."""


class Promises:
    def __init__(
        self, store: Outlooks, models: Models, pool: Pool, costs_of: CostsOf, phase: Role, every_s: float
    ) -> None:
        self._store = store
        self._models = models
        self._pool = pool
        self._costs_of = costs_of
        self._phase = phase
        self._every_s = every_s

    async def turn(self) -> float:
        """Publishes what can be promised now. When to do so again."""
        # Routers forget what they were told if the store is away: nobody is refused meanwhile.
        with suppress(StoreUnavailable):
            await self._store.publish(self._promise(), LASTING * self._every_s)
        return self._every_s

    def _promise(self) -> Promise:
        requests = [_typical(name, spec, self._phase) for name, spec in self._models.all().items()]
        found = outlooks(requests, self._pool.views(), self._costs_of)
        if not (yielding := self._pool.yielding):
            return Promise(found)
        return Promise(outlooks(requests, self._pool.views_before(), self._costs_of), found, yielding)


def _typical(model: str, spec: ModelSpec, phase: Role) -> PlacementRequest:
    return PlacementRequest(
        request_id="",
        model=model,
        prompt_tokens=TYPICAL_PROMPT_TOKENS,
        max_tokens=OUTPUT_TOKENS,
        weight_bytes=spec.weight_bytes,
        kv_bytes_per_token=spec.kv_bytes_per_token,
        ttft_s=USUAL_TTFT_S,
        tbt_s=USUAL_TBT_S,
        phase=phase,
    )
