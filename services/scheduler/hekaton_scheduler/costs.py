"""What models cost, as far as the pool knows."""

from collections.abc import Callable, Iterable
from itertools import islice

from hekaton.facts import ModelSpec
from hekaton.policy.costs import guessed_costs, mean_costs, scaled_costs
from hekaton.policy.types import ModelCosts
from hekaton.rpc.convert import costs_from_pb
from hekaton.v1 import pool_pb2

UNKNOWN = guessed_costs(1 << 30, 1 << 16)
"""Of a model that is not in the catalog any more, whose last requests still run."""
ALIKE = 8
"""A model that nobody has run is taken to cost what so many others do, byte by byte."""


class PoolCosts:
    """The mean of what workers have measured.

    What nobody has measured is guessed from other models and the sizes: a guess that is far off would make a worker
    look full, or empty, until the first load ends.
    """

    def __init__(self, spec_of: Callable[[str], ModelSpec | None]) -> None:
        self._spec_of = spec_of
        self._measured: dict[str, dict[str, ModelCosts]] = {}
        """By model and worker."""
        self._means: dict[str, ModelCosts] = {}
        self._guesses: dict[str, ModelCosts] = {}

    def measured(self, worker_id: str, costs: Iterable[pool_pb2.ModelCosts]) -> None:
        """A worker says what is new."""
        for message in costs:
            self._measured.setdefault(message.model, {})[worker_id] = costs_from_pb(message)
            self._means.pop(message.model, None)
            self._guesses.clear()

    def forget(self, worker_id: str) -> None:
        """A worker is gone. Where it was the only one, its measurements are still better than a guess."""
        for model, by_worker in self._measured.items():
            if len(by_worker) > 1 and worker_id in by_worker:
                del by_worker[worker_id]
                self._means.pop(model, None)

    def __call__(self, model: str) -> ModelCosts:
        spec = self._spec_of(model)
        if spec is None:
            return UNKNOWN
        known = self._means.get(model) or self._guesses.get(model)
        if known is None or known.weight_bytes != spec.weight_bytes:
            known = self._known(model, spec)
        return known

    def _known(self, model: str, spec: ModelSpec) -> ModelCosts:
        """Measurements of another model that had this name do not count."""
        measured = self._measured.get(model, {}).values()
        if fitting := [costs for costs in measured if costs.weight_bytes == spec.weight_bytes]:
            self._means[model] = known = mean_costs(fitting)
        else:
            self._means.pop(model, None)
            self._guesses[model] = known = self._guess(spec)
        return known

    def _guess(self, spec: ModelSpec) -> ModelCosts:
        others = (next(iter(by_worker.values())) for by_worker in self._measured.values() if by_worker)
        alike = [scaled_costs(one, spec.weight_bytes, spec.kv_bytes_per_token) for one in islice(others, ALIKE)]
        return mean_costs(alike) if alike else guessed_costs(spec.weight_bytes, spec.kv_bytes_per_token)
