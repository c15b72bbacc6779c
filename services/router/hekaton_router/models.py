"""ModelService: the catalog of what the pool can serve."""

import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace

from hekaton.config import RouterSettings
from hekaton.engine.profiles import SOURCE_PREFIX, emulated_spec
from hekaton.errors import AlreadyExists, InvalidArgument, ModelNotFound, Unavailable
from hekaton.facts import CatalogEntry, ModelSpec, ModelState, Slo
from hekaton.rpc import convert
from hekaton.rpc.interceptors import Context
from hekaton.store.catalog import Catalog
from hekaton.store.profiles import Profiles
from hekaton.v1 import common_pb2, inference_pb2, models_pb2_grpc
from hekaton.v1 import models_pb2 as pb
from hekaton_router import tenancy
from hekaton_router.admission import decide_slo
from hekaton_router.memories import Memories
from hekaton_router.tools.formats import FORMATS
from hekaton_router.view import PoolView

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")
MAX_SOURCE_CHARS = 4096
PRELOAD_S = 600.0
Generate = Callable[[inference_pb2.GenerateRequest, float], AsyncGenerator[inference_pb2.GenerateResponse]]
"""The router's way to generate, with a budget in seconds."""
DTYPES = ("", "float32", "bfloat16", "float16")


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    def __init__(
        self,
        settings: RouterSettings,
        catalog: Catalog,
        profiles: Profiles,
        view: PoolView,
        memories: Memories,
        generate: Generate,
    ) -> None:
        self._generate = generate
        self._default_slo = Slo(settings.default_ttft_s, settings.default_tbt_s)
        self._catalog = catalog
        self._profiles = profiles
        self._view = view
        self._memories = memories
        self._preparing: dict[str, CatalogEntry] = {}
        """By name: what this router registers at present."""

    async def RegisterModel(self, request: pb.RegisterModelRequest, context: Context) -> pb.RegisterModelResponse:
        _check(request)
        slo = _own_slo(request.slo, self._default_slo)
        created = int(time.time())
        entry = CatalogEntry(request.name, request.source, request.dtype, slo, ModelState.PREPARING)
        entry = replace(entry, created=created, tool_parser=request.tool_parser)
        if target := await self._catalog.alias(entry.name):
            raise AlreadyExists(f"{entry.name} is an alias of model {target}: delete it first or choose another name")
        if entry.source.startswith(SOURCE_PREFIX):
            entry = replace(entry, state=ModelState.READY, spec=_emulated(entry))
            await self._catalog.create(entry)
        else:
            entry = await self._prepare(entry)
        return pb.RegisterModelResponse(model=await self._model(entry))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        stored = {entry.name: entry for entry in await self._catalog.list()}
        known = {**self._preparing, **stored}
        aliases = await self._catalog.aliases()
        entries = {name: entry for name, entry in known.items() if _sees(name, aliases)}
        return pb.ListModelsResponse(models=[self._told(entries[name], aliases) for name in sorted(entries)])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        if entry := self._preparing.get(request.name):
            tenancy.check_model(request.name)
        else:
            entry = await permitted(self._catalog, request.name)
        model = await self._model(entry)
        if entry.spec:
            model.profiles.extend(map(convert.profile_to_pb, await self._profiles.of(entry.spec.digest)))
        return pb.GetModelResponse(model=model)

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> pb.UpdateModelResponse:
        entry = await find(self._catalog, request.name)
        pinned = request.pinned if request.HasField("pinned") else entry.pinned
        if pinned and entry.source.startswith(SOURCE_PREFIX):
            raise InvalidArgument(f"pinned: {entry.name} is emulated and has no weights to keep")
        changed = replace(entry, slo=_own_slo(request.slo, entry.slo), pinned=pinned)
        if not await self._catalog.replace(entry, changed):
            raise Unavailable(f"model {entry.name} has changed at the same time: try again")
        return pb.UpdateModelResponse(model=await self._model(changed))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> pb.DeleteModelResponse:
        preparing = self._preparing.pop(request.name, None)
        if not await self._catalog.delete(request.name) and not preparing:
            raise _unknown(request.name)
        return pb.DeleteModelResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> pb.SetAliasResponse:
        check_name("alias", request.alias)
        if await self._catalog.get(request.alias) or request.alias in self._preparing:
            raise AlreadyExists(f"alias {request.alias} is the name of a model: choose another")
        if await self._catalog.get(request.model) is None:
            raise _unknown(request.model)
        return pb.SetAliasResponse(previous_model=await self._catalog.set_alias(request.alias, request.model))

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> pb.DeleteAliasResponse:
        if not await self._catalog.delete_alias(request.alias):
            raise ModelNotFound(f"there is no alias {request.alias[:128]!r}: ListModels has them all")
        return pb.DeleteAliasResponse()

    async def PreloadModel(self, request: pb.PreloadModelRequest, context: Context) -> pb.PreloadModelResponse:
        remaining_s = context.time_remaining()
        budget_s = PRELOAD_S if remaining_s is None else remaining_s
        async with aclosing(self._generate(_one_token(request.name), budget_s)) as events:
            async for event in events:
                if event.HasField("finished"):
                    return pb.PreloadModelResponse(worker_id=event.finished.stats.worker_id)
        raise Unavailable(f"nobody said where model {request.name} was loaded: try again")

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

    async def _model(self, entry: CatalogEntry) -> pb.Model:
        return self._told(entry, await self._catalog.aliases())

    def _told(self, entry: CatalogEntry, aliases: Mapping[str, str]) -> pb.Model:
        model = convert.model_to_pb(entry)
        model.aliases.extend(alias for alias, target in aliases.items() if target == entry.name)
        for worker in self._view.workers:
            if entry.name in worker.resident_models:
                model.resident_worker_ids.append(worker.worker_id)
            if entry.name == worker.running_model:
                model.running_worker_ids.append(worker.worker_id)
        return model


async def find(catalog: Catalog, name: str) -> CatalogEntry:
    """A model by its name or an alias. Raises ModelNotFound."""
    entry = await catalog.get(name)
    if entry is None and (target := await catalog.alias(name)):
        entry = await catalog.get(target)
        if entry is None:
            raise ModelNotFound(f"alias {name} points at {target}, which is not registered: point it at another model")
    if entry is None:
        raise _unknown(name)
    return entry


async def permitted(catalog: Catalog, name: str) -> CatalogEntry:
    """The same for a client. Raises PermissionDenied for what he may not use, whether it exists or not."""
    if not tenancy.current().may_use(name):
        tenancy.check_model(name, await catalog.alias(name))
    return await find(catalog, name)


def _sees(name: str, aliases: Mapping[str, str]) -> bool:
    """Whether the caller may use a model, by any of its names."""
    tenant = tenancy.current()
    return tenant.may_use(name) or any(tenant.may_use(alias) for alias, target in aliases.items() if target == name)


def _one_token(model: str) -> inference_pb2.GenerateRequest:
    """Whose answer is of no interest."""
    ids = inference_pb2.TokenIds(ids=[0])
    return inference_pb2.GenerateRequest(model=model, token_ids=ids, sampling=common_pb2.Sampling(max_tokens=1))


def _unknown(name: str) -> ModelNotFound:
    return ModelNotFound(f"no model is registered as {name[:128]!r}: register it, or choose one of ListModels")


def _exists(name: str) -> AlreadyExists:
    return AlreadyExists(f"model {name} is registered already; delete it first or choose another name")


def check_name(field: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidArgument(f"{field} must be 1 to 128 of A-Z a-z 0-9 . _ : / -, the first a letter or digit")


def _own_slo(message: common_pb2.Slo, default: Slo) -> Slo:
    """A model's objective. Raises InvalidArgument."""
    if message.slo_class:
        raise InvalidArgument("slo.slo_class is for requests: a model's objective is in seconds")
    return decide_slo(message, default)


def _check(request: pb.RegisterModelRequest) -> None:
    check_name("name", request.name)
    if not 0 < len(request.source) <= MAX_SOURCE_CHARS:
        raise InvalidArgument(f"source must name a checkpoint, in at most {MAX_SOURCE_CHARS} characters")
    if request.dtype not in DTYPES:
        raise InvalidArgument(f"dtype must be float32, bfloat16 or float16, not {request.dtype[:32]!r}")
    if request.tool_parser and request.tool_parser not in FORMATS:
        raise InvalidArgument(f"tool_parser must be {', '.join(FORMATS)}, not {request.tool_parser[:32]!r}")


def _emulated(entry: CatalogEntry) -> ModelSpec:
    spec = emulated_spec(entry.source.removeprefix(SOURCE_PREFIX))
    if entry.dtype not in ("", spec.dtype):
        raise InvalidArgument(f"emulated models are {spec.dtype}: leave dtype empty")
    return spec
