"""An asyncio client of one router."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from hekaton.client import convert
from hekaton.client.types import (
    Accepted,
    Completion,
    Finished,
    GenerationEvent,
    Message,
    Model,
    Pool,
    Prompt,
    SamplingOptions,
    Tokens,
)
from hekaton.errors import EngineFailed, HekatonError, Unavailable
from hekaton.facts import Logprobs, Slo, TurnRecord
from hekaton.rpc import convert as wire
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import STATUS_KEY, from_rpc_error
from hekaton.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, pool_pb2, pool_pb2_grpc

TIMEOUT_S = 10.0
GENERATE_TIMEOUT_S = 600.0
REGISTER_TIMEOUT_S = 900.0


class Client:
    """Every call raises the typed errors of `hekaton.errors`. Use as an async context manager.

    >>> async with Client("127.0.0.1:50051") as client:
    ...     answer = await client.complete("smollm2", "Say hello.")
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = open_channel(address)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._models = models_pb2_grpc.ModelServiceStub(self._channel)
        self._pool = pool_pb2_grpc.PoolServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        options: SamplingOptions | None = None,
        *,
        slo: Slo | None = None,
        request_id: str = "",
        timeout_s: float = GENERATE_TIMEOUT_S,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Streams a generation: Accepted, Tokens …, Finished. Closing the iterator cancels it.

        `prompt` is text, a chat, or token ids.
        """
        request = inference_pb2.GenerateRequest(
            model=model,
            request_id=request_id,
            sampling=convert.sampling_to_pb(options or SamplingOptions()),
            slo=wire.slo_to_pb(slo) if slo else None,
        )
        convert.set_prompt(request, prompt)
        call = self._inference.Generate(request, timeout=timeout_s)
        try:
            with self._typed_errors():
                async for response in call:
                    yield convert.event_from_pb(response)
        finally:
            call.cancel()

    async def complete(
        self,
        model: str,
        prompt: Prompt,
        options: SamplingOptions | None = None,
        *,
        timeout_s: float = GENERATE_TIMEOUT_S,
    ) -> Completion:
        """A whole generation at once."""
        request_id, text, token_ids, logprobs = "", "", list[int](), list[Logprobs]()
        async with aclosing(self.generate(model, prompt, options, timeout_s=timeout_s)) as events:
            async for event in events:
                match event:
                    case Accepted():
                        request_id = event.request_id
                    case Tokens():
                        token_ids += event.token_ids
                        text += event.text
                        logprobs += event.logprobs
                    case Finished():
                        ids = tuple(token_ids)
                        return Completion(request_id, text, ids, event.reason, event.stats, tuple(logprobs))
        raise EngineFailed("the stream ended without saying why")

    async def cancel(self, request_id: str) -> bool:
        """Ends a request wherever it is; False if it had ended before."""
        with self._typed_errors():
            request = inference_pb2.CancelRequest(request_id=request_id)
            return (await self._inference.Cancel(request, timeout=TIMEOUT_S)).cancelled

    async def tokenize(self, model: str, prompt: str | Sequence[Message]) -> tuple[int, ...]:
        request = inference_pb2.TokenizeRequest(model=model)
        convert.set_prompt(request, prompt)
        with self._typed_errors():
            return tuple((await self._inference.Tokenize(request, timeout=TIMEOUT_S)).token_ids)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        request = inference_pb2.DetokenizeRequest(model=model, token_ids=token_ids)
        with self._typed_errors():
            return (await self._inference.Detokenize(request, timeout=TIMEOUT_S)).text

    async def register_model(
        self, name: str, source: str, *, dtype: str = "", slo: Slo | None = None, timeout_s: float = REGISTER_TIMEOUT_S
    ) -> Model:
        """Returns when the model is ready to serve. `source` is seen from the memory service's host."""
        request = models_pb2.RegisterModelRequest(
            name=name, source=source, dtype=dtype, slo=wire.slo_to_pb(slo) if slo else None
        )
        with self._typed_errors():
            return convert.model_from_pb((await self._models.RegisterModel(request, timeout=timeout_s)).model)

    async def list_models(self) -> tuple[Model, ...]:
        with self._typed_errors():
            response = await self._models.ListModels(models_pb2.ListModelsRequest(), timeout=TIMEOUT_S)
        return tuple(convert.model_from_pb(model) for model in response.models)

    async def get_model(self, name: str) -> Model:
        with self._typed_errors():
            response = await self._models.GetModel(models_pb2.GetModelRequest(name=name), timeout=TIMEOUT_S)
        return convert.model_from_pb(response.model)

    async def update_model(self, name: str, slo: Slo) -> Model:
        request = models_pb2.UpdateModelRequest(name=name, slo=wire.slo_to_pb(slo))
        with self._typed_errors():
            return convert.model_from_pb((await self._models.UpdateModel(request, timeout=TIMEOUT_S)).model)

    async def delete_model(self, name: str) -> None:
        with self._typed_errors():
            await self._models.DeleteModel(models_pb2.DeleteModelRequest(name=name), timeout=TIMEOUT_S)

    async def pool(self) -> Pool:
        with self._typed_errors():
            response = await self._pool.GetPool(pool_pb2.GetPoolRequest(), timeout=TIMEOUT_S)
        return convert.pool_from_pb(response.pool)

    async def watch_pool(self, interval_s: float = 1.0) -> AsyncGenerator[Pool | TurnRecord, None]:
        """The pool at every interval, and each turn of its workers as it ends; until closed."""
        request = pool_pb2.WatchPoolRequest(interval=wire.duration(interval_s))
        call = self._pool.WatchPool(request)
        try:
            with self._typed_errors():
                async for response in call:
                    if response.HasField("turn"):
                        yield wire.turn_from_pb(response.turn)
                    else:
                        yield convert.pool_from_pb(response.pool)
        finally:
            call.cancel()

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise self._typed(error) from error

    def _typed(self, error: grpc.aio.AioRpcError) -> HekatonError:
        """What the router said, or that there is none: a status without details comes from the connection."""
        said = any(key == STATUS_KEY for key, _ in error.trailing_metadata() or ())
        if error.code() == grpc.StatusCode.UNAVAILABLE and not said:
            return Unavailable(
                f"no router answers at {self.address}: start a pool with `hekaton up`, or give the address of one"
            )
        return from_rpc_error(error)
