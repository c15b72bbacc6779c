"""The catalog as the leader uses it."""

from collections.abc import Mapping

from hekaton.facts import ModelSpec
from hekaton.store.catalog import Catalog


class Models:
    """Read anew with every heartbeat; a model that is not known yet is looked up. Raises StoreUnavailable."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._specs: dict[str, ModelSpec] = {}

    async def refresh(self) -> bool:
        """True if something has changed."""
        before = self._specs
        self._specs = {entry.name: entry.spec for entry in await self._catalog.list() if entry.spec}
        return self._specs != before

    async def spec(self, name: str) -> ModelSpec | None:
        """None if there is no such model, or none that can serve."""
        known = self._specs.get(name)
        if known is None and (entry := await self._catalog.get(name)) and entry.spec:
            known = self._specs[name] = entry.spec
        return known

    def all(self) -> Mapping[str, ModelSpec]:
        """By name, as of the last time that they were read."""
        return self._specs

    def known(self, name: str) -> ModelSpec | None:
        """As of the last time that it was read."""
        return self._specs.get(name)

    def clear(self) -> None:
        """A worker says that one is gone."""
        self._specs.clear()
