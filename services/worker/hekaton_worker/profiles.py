"""What models cost on this worker's kind of device: read before the engine needs it, kept when it has measured."""

from collections.abc import Callable

import structlog

from hekaton.engine.messages import Command, Status
from hekaton.errors import StoreUnavailable
from hekaton.facts import CatalogEntry
from hekaton.policy.costs import DeviceProfile
from hekaton.store.catalog import Catalog
from hekaton.store.profiles import Profiles
from hekaton.tasks import forever
from hekaton_worker.models import KnownModels
from hekaton_worker.status import StatusBoard

log = structlog.get_logger(__name__)


class ProfileKeeper:
    """Follows the catalog, so that new models are rehearsed before anybody asks for them."""

    def __init__(
        self,
        catalog: Catalog,
        profiles: Profiles,
        models: KnownModels,
        board: StatusBoard,
        post: Callable[[Command], None],
        every_s: float,
        *,
        follow: bool,
    ) -> None:
        """`follow` is for engines that have something to rehearse."""
        self._catalog = catalog
        self._profiles = profiles
        self._models = models
        self._board = board
        self._post = post
        self._every_s = every_s
        self._follows = follow
        self._version: int | None = None
        """Of the catalog, as it was followed last."""
        self._measured: dict[str, DeviceProfile] = {}
        """By digest: not stored yet."""

    def measured(self, status: Status) -> None:
        """The engine says what is new. What it knows in part only is not kept."""
        for model, cost in status.costs.items():
            known = self._models.knows(model) and model not in status.in_part
            if known and (spec := self._models.entry(model).spec):
                self._models.learn(spec.digest, cost)
                self._measured[spec.digest] = DeviceProfile(self._board.device, self._board.device_memory_bytes, cost)

    async def run(self) -> None:
        """Until cancelled."""
        await forever(self._turn)

    async def _turn(self) -> float:
        try:
            await self._store()
            if self._follows:
                await self._follow()
        except StoreUnavailable as error:
            log.warning("costs are neither stored nor read; trying again", why=error.message)
        return self._every_s

    async def _store(self) -> None:
        taken = dict(self._measured)
        if taken:
            await self._profiles.put(taken)
        self._measured = {digest: one for digest, one in self._measured.items() if taken.get(digest) is not one}

    async def _follow(self) -> None:
        version = await self._catalog.version()
        if version == self._version:
            return
        for entry in await self._catalog.list():
            if not self._models.knows(entry.name):
                await self._add(entry)
        self._version = version

    async def _add(self, entry: CatalogEntry) -> None:
        """A model that was here before this worker, and whose costs are known, waits until it is asked for."""
        if entry.spec is None:
            return
        stored = await self._profiles.on(entry.spec.digest, self._board.device)
        if stored is not None:
            self._models.learn(entry.spec.digest, stored.costs)
            self._board.learn(entry.name, stored.costs)
        is_new = self._version is not None
        if stored is None or is_new:
            self._models.add(entry, self._post, is_new=is_new)
