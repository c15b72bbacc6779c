"""ModelService: the catalog of what the pool can serve."""

import asyncio
import re
from dataclasses import replace
from functools import partial

from hekaton.config import RouterSettings
from hekaton.engine.profiles import SOURCE_PREFIX, emulated_spec
from hekaton.errors import InvalidArgument, ModelNotFound
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.rpc import convert
from hekaton.rpc.interceptors import Context
from hekaton.store.catalog import Catalog
from hekaton.v1 import models_pb2 as pb
from hekaton.v1 import models_pb2_grpc
from hekaton_router.admission import decide_slo
from hekaton_router.chores import Chores
from hekaton_router.memories import Memories
from hekaton_router.view import PoolView

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
MAX_SOURCE_CHARS = 4096
CLEANUP_S = 1.0
DTYPES = ("", "float32", "bfloat16", "float16")


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    def __init__(
        self, settings: RouterSettings, catalog: Catalog, view: PoolView, memories: Memories, chores: Chores
    ) -> None:
        self._default_slo = Slo(settings.default_ttft_s, settings.default_tbt_s)
        self._catalog = catalog
        self._view = view
        self._memories = memories
        self._chores = chores

    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Context) -> pb.RegisterModelResponse:
        _check(request)
        slo = decide_slo(request.slo, self._default_slo)
        entry = CatalogEntry(request.name, request.source, request.dtype, slo, ModelState.PREPARING)
        if entry.source.startswith(SOURCE_PREFIX):
            entry = replace(entry, state=ModelState.READY, spec=_emulated(entry))
            await self._catalog.create(entry)
        else:
            entry = await self._prepare(entry)
        return pb.RegisterModelResponse(model=self._model(entry))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[self._model(entry) for entry in await self._catalog.list()])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=self._model(await find(self._catalog, request.name)))

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> pb.UpdateModelResponse:
        entry = await find(self._catalog, request.name)
        changed = replace(entry, slo=decide_slo(request.slo, entry.slo))
        await self._catalog.put(changed)
        return pb.UpdateModelResponse(model=self._model(changed))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        if not await self._catalog.delete(request.name):
            raise _unknown(request.name)
        return pb.DeleteModelResponse()

    async def _prepare(self, entry: CatalogEntry) -> CatalogEntry:
        """PREPARING → READY; the entry is gone again if that fails or nobody waits for it any more."""
        await self._catalog.create(entry)
        try:
            spec = await self._memories.prepare(entry.source, entry.dtype)
        except asyncio.CancelledError:
            self._chores.add(partial(self._catalog.delete, entry.name))
            raise
        except Exception:
            self._chores.add(partial(self._catalog.delete, entry.name))
            await self._chores.flush(CLEANUP_S)
            raise
        ready = replace(entry, state=ModelState.READY, spec=spec)
        await self._catalog.put(ready)
        return ready

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
