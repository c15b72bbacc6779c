"""Demands by model, made again only for the models whose requests have changed: most stand still while one runs."""

from collections.abc import Callable, Iterable, Mapping

from hekaton.policy.types import Demand, ModelCosts, RequestView


class DemandTable:
    """Keeps what the views of one worker share from decision to decision."""

    def __init__(self) -> None:
        self._stale: set[str] = set()
        self._demands: dict[str, Demand] = {}

    def touch(self, model: str) -> None:
        """Something about the model's requests has changed."""
        self._stale.add(model)

    def current(
        self, requests_of: Callable[[str], Iterable[RequestView]], costs: Callable[[str], ModelCosts]
    ) -> Mapping[str, Demand]:
        """All demands, those of touched models made from `requests_of`, which gives those that can run."""
        for model in self._stale:
            requests = list(requests_of(model))
            if requests:
                self._demands[model] = Demand.of(model, requests, costs(model))
            else:
                self._demands.pop(model, None)
        self._stale.clear()
        return self._demands
