"""The models that the engine was told of."""

from collections.abc import Callable

from hekaton.engine.messages import AddModel, Command
from hekaton.errors import ModelNotFound
from hekaton.facts import CatalogEntry
from hekaton.store.catalog import Catalog


class KnownModels:
    """Follows the catalog for those models that are asked for."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._entries: dict[str, CatalogEntry] = {}

    async def ensure(self, name: str, post: Callable[[Command], None]) -> None:
        """Tells the engine of a model that is new or has changed. Raises ModelNotFound, StoreUnavailable."""
        entry = await self._catalog.get(name)
        if entry is None or entry.spec is None:
            raise ModelNotFound(f"model {name} is not registered any more")
        known = self._entries.get(name)
        if known is None or known.spec != entry.spec:
            post(AddModel(name, entry.spec, entry.source))
        self._entries[name] = entry

    def entry(self, name: str) -> CatalogEntry:
        """A model that the engine was told of."""
        return self._entries[name]

    def tell_all(self, post: Callable[[Command], None]) -> None:
        """Tells a new engine process."""
        for entry in self._entries.values():
            if entry.spec:
                post(AddModel(entry.name, entry.spec, entry.source))
