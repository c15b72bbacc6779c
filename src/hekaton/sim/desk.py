"""The live requests of a simulated worker, and what is counted of them."""

from collections import Counter
from collections.abc import Iterable, Iterator

from hekaton.policy.demands import DemandTable
from hekaton.policy.fairness import set_yielding
from hekaton.policy.types import RequestView
from hekaton.sim.request import SimRequest, Stretch


class Desk:
    """`counts_prefills`: the pool sees how much is still to be prefilled, so its view changes with that too."""

    def __init__(self, counts_prefills: bool = False) -> None:
        self._counts_prefills = counts_prefills
        self.live: dict[str, SimRequest] = {}
        """In order of arrival here."""
        self.demands = DemandTable()
        self.counts: dict[str, int] = {}
        """Live requests, by model."""
        self.version = 0
        """Grows whenever something is counted that a pool sees."""
        self._by_model: dict[str, dict[str, SimRequest]] = {}
        self._yielding: frozenset[str] = frozenset()

    def add(self, request: SimRequest) -> None:
        request.stand(yields=request.tenant in self._yielding)
        self.live[request.request_id] = request
        self._by_model.setdefault(request.model, {})[request.request_id] = request
        self._count(request, 1)

    def set_yielding(self, tenants: frozenset[str]) -> bool:
        """The requests of these tenants yield, those of others do not. True if that changes who goes before whom."""
        if tenants == self._yielding:
            return False
        self._yielding = tenants
        return set_yielding(tenants, self.live.values(), self.demands)

    def remove(self, request: SimRequest) -> None:
        del self.live[request.request_id]
        del self._by_model[request.model][request.request_id]
        self._count(request, -1)

    def of(self, model: str) -> Iterable[SimRequest]:
        return self._by_model.get(model, {}).values()

    def views(self, model: str) -> Iterator[RequestView]:
        """Of the model's requests that can run."""
        return (one.view() for one in self.of(model) if not one.parked_until_s)

    def counts_before(self) -> dict[str, int]:
        """Live requests that do not yield, by model."""
        return Counter(one.model for one in self.live.values() if not one.yields)

    def prefill_tokens(self) -> dict[str, int]:
        """Of prompts that wait to be computed, by model."""
        waiting: dict[str, int] = {}
        for request in self.live.values():
            if request.pending:
                waiting[request.model] = waiting.get(request.model, 0) + request.pending
        return waiting

    def book(self, request: SimRequest, stretch: Stretch) -> None:
        """Gives a request the tokens of a stretch."""
        self.version += self._counts_prefills and bool(request.pending)
        request.book(stretch)
        self.demands.touch(request.model)

    def _count(self, request: SimRequest, change: int) -> None:
        self.counts[request.model] = self.counts.get(request.model, 0) + change
        if not self.counts[request.model]:
            del self.counts[request.model]
        self.demands.touch(request.model)
        self.version += 1
