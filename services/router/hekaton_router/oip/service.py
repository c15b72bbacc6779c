"""inference.GRPCInferenceService: what its clients ask, said to the rest of the router."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from opentelemetry.trace import SpanKind

from hekaton import __version__, telemetry
from hekaton.errors import InvalidArgument
from hekaton.oip import open_inference_pb2 as pb
from hekaton.oip import open_inference_pb2_grpc as pb_grpc
from hekaton.rpc.interceptors import Context, recorded_span
from hekaton_router.inference import InferenceServicer
from hekaton_router.oip.answers import Answers
from hekaton_router.oip.models import Models
from hekaton_router.oip.repository import Repository
from hekaton_router.oip.requests import Asked, asked
from hekaton_router.oip.stream import interleaved

EXTENSIONS = ("model_repository", "parameters")
STRICT = "triton_grpc_error"
"""Metadata of a stream that is to end as the status of what fails first."""


class OpenInferenceServicer(pb_grpc.GRPCInferenceServiceServicer):
    def __init__(
        self, inference: InferenceServicer, models: Models, repository: Repository, ready: Callable[[], bool]
    ) -> None:
        """`ready` says whether the pool can serve."""
        self._inference = inference
        self._models = models
        self._repository = repository
        self._ready = ready

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=await self._models.ready(request) and self._ready())

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="hekaton", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        return await self._models.metadata(request)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        wanted = asked(request)
        if wanted.stream:
            raise InvalidArgument("stream: ModelInfer answers once; call ModelStreamInfer, or leave it out")
        async with aclosing(self._answers(wanted, context)) as answers:
            whole = [answer async for answer in answers]
        return whole[-1]

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        async def answers(request: pb.ModelInferRequest) -> AsyncGenerator[pb.ModelInferResponse]:
            attributes = {telemetry.GEN_AI_MODEL: request.model_name[:128]}
            with recorded_span("ModelStreamInfer request", None, SpanKind.INTERNAL, attributes):
                async with aclosing(self._answers(asked(request), context)) as own:
                    async for answer in own:
                        yield answer

        metadata = dict(context.invocation_metadata() or ())
        async with aclosing(interleaved(request_iterator, answers, strict=metadata.get(STRICT) == "true")) as said:
            async for one in said:
                yield one

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        return await self._repository.index(request, context)

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        await self._repository.load(request, context)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        await self._repository.unload(request, context)
        return pb.RepositoryModelUnloadResponse()

    async def _answers(self, wanted: Asked, context: Context) -> AsyncGenerator[pb.ModelInferResponse]:
        budget_s = min(self._inference.budget_s(context), wanted.limit_s)
        async with aclosing(self._inference.generate(wanted.generate, budget_s)) as events:
            # The first event is the acceptance.
            answers = Answers(wanted, (await anext(events)).accepted)
            async for event in events:
                if answer := answers.take(event):
                    yield answer
