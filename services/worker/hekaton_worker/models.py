"""The models that the engine was told of."""

from collections.abc import Callable

from hekaton.engine.messages import AddModel, Command
from hekaton.errors import ModelNotFound
from hekaton.facts import CatalogEntry
from hekaton.policy.types import ModelCosts
from hekaton.store.catalog import Catalog


class KnownModels:
    """Follows the catalog for those models that are asked for, and for those that are to be rehearsed."""

    def __init__(self, catalog: Catalog, *, rehearse: bool = False) -> None:
        """`rehearse`: the engine is to prepare for models that nobody has measured, while it has nothing else to do."""
        self._catalog = catalog
        self._rehearse = rehearse
        self._entries: dict[str, CatalogEntry] = {}
        self._costs: dict[str, ModelCosts] = {}
        """By digest: as measured before."""

    async def ensure(self, name: str, post: Callable[[Command], None]) -> None:
        """Tells the engine of a model that is new or has changed. Raises ModelNotFound, StoreUnavailable."""
        entry = await self._catalog.get(name)
        if entry is None or entry.spec is None:
            raise ModelNotFound(f"model {name} is not registered any more")
        self.add(entry, post)

    def add(self, entry: CatalogEntry, post: Callable[[Command], None], *, is_new: bool = False) -> None:
        """Tells the engine of an entry, unless it knows that. `is_new`: it was registered just now."""
        known = self._entries.get(entry.name)
        self._entries[entry.name] = entry
        if entry.spec is not None and (known is None or known.spec != entry.spec):
            costs = self._costs.get(entry.spec.digest)
            rehearse = self._rehearse and (is_new or costs is None)
            post(AddModel(entry.name, entry.spec, entry.source, costs, rehearse))

    def learn(self, digest: str, costs: ModelCosts) -> None:
        """What a model of this digest costs on this worker's device."""
        self._costs[digest] = costs

    def knows(self, name: str) -> bool:
        return name in self._entries

    def entry(self, name: str) -> CatalogEntry:
        """A model that the engine was told of."""
        return self._entries[name]

    def tell_all(self, post: Callable[[Command], None]) -> None:
        """Tells a new engine process. Nothing is rehearsed there: that may be what the last one died of."""
        for entry in self._entries.values():
            if entry.spec:
                post(AddModel(entry.name, entry.spec, entry.source, self._costs.get(entry.spec.digest)))
