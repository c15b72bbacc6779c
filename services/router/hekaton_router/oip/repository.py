"""The model repository: the pool's catalog. Models are loaded by themselves; Load only does it ahead of a request."""

from collections.abc import Mapping

from hekaton.errors import InvalidArgument
from hekaton.oip import open_inference_pb2 as pb
from hekaton.rpc.interceptors import Context
from hekaton.v1 import models_pb2
from hekaton_router.models import ModelServicer
from hekaton_router.oip.models import VERSION

UNLOAD_PARAMETERS = ("unload_dependents",)
"""Whatever it says: no model depends on another."""
STATES = {
    models_pb2.MODEL_STATE_READY: "READY",
    models_pb2.MODEL_STATE_PREPARING: "LOADING",
    models_pb2.MODEL_STATE_FAILED: "UNAVAILABLE",
}


class Repository:
    def __init__(self, models: ModelServicer) -> None:
        self._models = models

    async def index(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        _check_repository(request.repository_name)
        listed = await self._models.ListModels(models_pb2.ListModelsRequest(), context)
        entries = {name: model for model in listed.models for name in (model.name, *model.aliases)}
        return pb.RepositoryIndexResponse(
            models=[
                _index(name, model)
                for name, model in sorted(entries.items())
                if not request.ready or model.state == models_pb2.MODEL_STATE_READY
            ]
        )

    async def load(self, request: pb.RepositoryModelLoadRequest, context: Context) -> None:
        _check_repository(request.repository_name)
        _check_parameters(request.parameters, ())
        await self._models.PreloadModel(models_pb2.PreloadModelRequest(name=request.model_name), context)

    async def unload(self, request: pb.RepositoryModelUnloadRequest, context: Context) -> None:
        _check_repository(request.repository_name)
        _check_parameters(request.parameters, UNLOAD_PARAMETERS)
        await self._models.UpdateModel(models_pb2.UpdateModelRequest(name=request.model_name, pinned=False), context)


def _index(name: str, model: models_pb2.Model) -> pb.RepositoryIndexResponse.ModelIndex:
    where = f"on {', '.join(model.resident_worker_ids)}" if model.resident_worker_ids else "on no device"
    return pb.RepositoryIndexResponse.ModelIndex(
        name=name, version=VERSION, state=STATES.get(model.state, "UNKNOWN"), reason=model.error or where
    )


def _check_repository(name: str) -> None:
    if name:
        raise InvalidArgument(f"repository_name: there is one repository, without a name; leave out {name[:128]!r}")


def _check_parameters(given: Mapping[str, pb.ModelRepositoryParameter], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise InvalidArgument(f"parameter {name[:128]!r} is not supported: leave it out")
