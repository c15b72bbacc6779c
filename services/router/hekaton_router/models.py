"""ModelService: the catalog of what the pool can serve."""

import re
import time
from dataclasses import replace

from hekaton.config import RouterSettings
from hekaton.engine.profiles import SOURCE_PREFIX, emulated_spec
from hekaton.errors import AlreadyExists, InvalidArgument, ModelNotFound, Unavailable
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.rpc import convert
from hekaton.rpc.interceptors import Context
from hekaton.store.catalog import Catalog
from hekaton.store.profiles import Profiles
from hekaton.v1 import models_pb2 as pb
from hekaton.v1 import models_pb2_grpc
from hekaton_router import tenancy
from hekaton_router.admission import decide_slo
from hekaton_router.memories import Memories
from hekaton_router.view import PoolView

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
MAX_SOURCE_CHARS = 4096
DTYPES = ("", "float32", "bfloat16", "float16")


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    def __init__(
        self, settings: RouterSettings, catalog: Catalog, profiles: Profiles, view: PoolView, memories: Memories
    ) -> None:
        self._default_slo = Slo(settings.default_ttft_s, settings.default_tbt_s)
        self._catalog = catalog
        self._profiles = profiles
        self._view = view
        self._memories = memories
        self._preparing: dict[str, CatalogEntry] = {}
        """By name: what this router registers at present."""

    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Context) -> pb.RegisterModelResponse:
        _check(request)
        slo = decide_slo(request.slo, self._default_slo)
        created = int(time.time())
        entry = CatalogEntry(request.name, request.source, request.dtype, slo, ModelState.PREPARING, created=created)
        if entry.source.startswith(SOURCE_PREFIX):
            entry = replace(entry, state=ModelState.READY, spec=_emulated(entry))
            await self._catalog.create(entry)
        else:
            entry = await self._prepare(entry)
        return pb.RegisterModelResponse(model=self._model(entry))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        stored = {entry.name: entry for entry in await self._catalog.list()}
        known = {**self._preparing, **stored}
        entries = {name: entry for name, entry in known.items() if tenancy.current().may_use(name)}
        return pb.ListModelsResponse(models=[self._model(entries[name]) for name in sorted(entries)])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        tenancy.check_model(request.name)
        entry = await self._find(request.name)
        model = self._model(entry)
        if entry.spec:
            model.profiles.extend(map(convert.profile_to_pb, await self._profiles.of(entry.spec.digest)))
        return pb.GetModelResponse(model=model)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> pb.UpdateModelResponse:
        entry = await find(self._catalog, request.name)
        changed = replace(entry, slo=decide_slo(request.slo, entry.slo))
        if not await self._catalog.replace(entry, changed):
            raise Unavailable(f"model {entry.name} has changed at the same time: try again")
        return pb.UpdateModelResponse(model=self._model(changed))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        preparing = self._preparing.pop(request.name, None)
        if not await self._catalog.delete(request.name) and not preparing:
            raise _unknown(request.name)
        return pb.DeleteModelResponse()

    async def _prepare(self, entry: CatalogEntry) -> CatalogEntry:
        """PREPARING here, stored when it is READY: whatever ends this router or the call leaves nothing behind."""
        if entry.name in self._preparing:
            raise _exists(entry.name)
        self._preparing[entry.name] = entry
        try:
            if await self._catalog.get(entry.name):
                raise _exists(entry.name)
            spec = await self._memories.prepare(entry.source, entry.dtype)
            if self._preparing.get(entry.name) is not entry:
                raise ModelNotFound(f"model {entry.name} was deleted while it was prepared")
            del self._preparing[entry.name]  # From here on a delete finds it stored, or finds nothing.
            ready = replace(entry, state=ModelState.READY, spec=spec)
            await self._catalog.create(ready)
            return ready
        finally:
            if self._preparing.get(entry.name) is entry:
                del self._preparing[entry.name]

    async def _find(self, name: str) -> CatalogEntry:
        return self._preparing.get(name) or await find(self._catalog, name)

    def _model(self, entry: CatalogEntry) -> pb.Model:
        model = convert.model_to_pb(entry)
        for worker in self._view.workers:
            if entry.name in worker.resident_models:
                model.resident_worker_ids.append(worker.worker_id)
            if entry.name == worker.running_model:
                model.running_worker_ids.append(worker.worker_id)
        return model


async def find(catalog: Catalog, name: str) -> CatalogEntry:
    """Raises ModelNotFound."""
    entry = await catalog.get(name)
    if entry is None:
        raise _unknown(name)
    return entry


def _unknown(name: str) -> ModelNotFound:
    return ModelNotFound(f"no model is registered as {name[:128]!r}: register it, or choose one of ListModels")


def _exists(name: str) -> AlreadyExists:
    return AlreadyExists(f"model {name} is registered already; delete it first or choose another name")


def _check(request: pb.RegisterModelRequest) -> None:
    if not NAME.fullmatch(request.name):
        raise InvalidArgument("name must be 1 to 128 of A-Z a-z 0-9 . _ : / -, the first a letter or digit")
    if not 0 < len(request.source) <= MAX_SOURCE_CHARS:
        raise InvalidArgument(f"source must name a checkpoint, in at most {MAX_SOURCE_CHARS} characters")
    if request.dtype not in DTYPES:
        raise InvalidArgument(f"dtype must be float32, bfloat16 or float16, not {request.dtype[:32]!r}")


def _emulated(entry: CatalogEntry) -> ModelSpec:
    spec = emulated_spec(entry.source.removeprefix(SOURCE_PREFIX))
    if entry.dtype not in ("", spec.dtype):
        raise InvalidArgument(f"emulated models are {spec.dtype}: leave dtype empty")
    return spec
