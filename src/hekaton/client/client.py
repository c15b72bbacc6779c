"""An asyncio client of a pool's routers."""

import os
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from hekaton.client import convert
from hekaton.client.completions import collect
from hekaton.client.generation import Generation
from hekaton.client.types import (
    Chat,
    Completion,
    GenerationEvent,
    Message,
    Model,
    Pool,
    Prompt,
    SamplingOptions,
)
from hekaton.config import API_KEY_VARIABLE, tls_of
from hekaton.errors import HekatonError, InvalidArgument, Unavailable
from hekaton.facts import Slo, SloClass, TurnRecord
from hekaton.rpc import convert as wire
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import from_rpc_error, has_details
from hekaton.rpc.tls import ClientTls, explain
from hekaton.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, pool_pb2, pool_pb2_grpc

TIMEOUT_S = 10.0
GENERATE_TIMEOUT_S = 600.0
REGISTER_TIMEOUT_S = 900.0


class _Router:
    """One router's channel and stubs."""

    def __init__(self, address: str, api_key: str, tls: ClientTls | None) -> None:
        self.address = address
        self.channel = open_channel(address, api_key, tls)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.models = models_pb2_grpc.ModelServiceStub(self.channel)
        self.pool = pool_pb2_grpc.PoolServiceStub(self.channel)


class Client:
    """Every call raises the typed errors of `hekaton.errors`. Use as an async context manager.

    Of several routers the first is used, and after a broken connection the next.

    >>> async with Client("127.0.0.1:50051") as client:
    ...     answer = await client.complete("smollm2", "Say hello.")
    """

    def __init__(self, address: str, *more: str, api_key: str | None = None, tls: ClientTls | None = None) -> None:
        """`api_key` is the environment's HEKATON_API_KEY if it is None, `tls` what its HEKATON_TLS_CA says.

        Raises InvalidArgument for certificates that cannot be used.
        """
        key = os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key
        trusted = tls or tls_of(os.environ)
        self._routers = [_Router(one, key, trusted) for one in (address, *more)]
        self._exit = AsyncExitStack()
        for router in self._routers:
            self._exit.push_async_callback(router.channel.close)

    @property
    def address(self) -> str:
        """The router in use."""
        return self._routers[0].address

    @property
    def count(self) -> int:
        """How many routers it knows."""
        return len(self._routers)

    def turn(self, address: str) -> None:
        """Uses another router than this from now on, if there is one."""
        if self.address == address:
            self._routers.append(self._routers.pop(0))

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return self._routers[0].inference

    @property
    def _models(self) -> models_pb2_grpc.ModelServiceStub:
        return self._routers[0].models

    @property
    def _pool(self) -> pool_pb2_grpc.PoolServiceStub:
        return self._routers[0].pool

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    async def generate(
        self,
        model: str,
        prompt: Prompt,
        options: SamplingOptions | None = None,
        *,
        slo: Slo | SloClass | None = None,
        request_id: str = "",
        timeout_s: float = GENERATE_TIMEOUT_S,
        resume_window_s: float = 0.0,
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Streams a generation: Accepted, Tokens …, Finished. Closing the iterator cancels it.

        `prompt` is text, a chat, or token ids. A router that cannot be reached is tried again before anything has
        come. With a `resume_window_s` the request outlives its connection for so long, and the client resumes it.
        """
        request = inference_pb2.GenerateRequest(
            model=model,
            request_id=request_id,
            sampling=convert.sampling_to_pb(options or SamplingOptions()),
            slo=convert.slo_to_pb(slo) if slo else None,
        )
        convert.set_prompt(request, prompt)
        if resume_window_s:
            request.request_id = request_id or uuid.uuid4().hex
            request.on_disconnect = inference_pb2.ON_DISCONNECT_KEEP
            request.resume_window.CopyFrom(wire.duration(resume_window_s))
        async with aclosing(Generation(self, request, timeout_s, self._typed).events()) as events:
            async for event in events:
                yield event

    async def complete(
        self,
        model: str,
        prompt: Prompt,
        options: SamplingOptions | None = None,
        *,
        timeout_s: float = GENERATE_TIMEOUT_S,
        resume_window_s: float = 0.0,
    ) -> Completion:
        """A whole generation at once, of one output."""
        if options and options.n not in (None, 1):
            raise InvalidArgument("complete is for one output: complete_all returns all of them")
        (only,) = await self.complete_all(model, prompt, options, timeout_s=timeout_s, resume_window_s=resume_window_s)
        return only

    async def complete_all(
        self,
        model: str,
        prompt: Prompt,
        options: SamplingOptions | None = None,
        *,
        timeout_s: float = GENERATE_TIMEOUT_S,
        resume_window_s: float = 0.0,
    ) -> tuple[Completion, ...]:
        """All `n` outputs of a prompt, in the order of their choice."""
        generation = self.generate(model, prompt, options, timeout_s=timeout_s, resume_window_s=resume_window_s)
        async with aclosing(generation) as events:
            return await collect(events)

    async def cancel(self, request_id: str) -> bool:
        """Ends a request wherever it is; False if it had ended before."""
        with self._typed_errors():
            request = inference_pb2.CancelRequest(request_id=request_id)
            return (await self.inference.Cancel(request, timeout=TIMEOUT_S)).cancelled

    async def tokenize(self, model: str, prompt: str | Sequence[Message] | Chat) -> tuple[int, ...]:
        request = inference_pb2.TokenizeRequest(model=model)
        convert.set_prompt(request, prompt)
        with self._typed_errors():
            return tuple((await self.inference.Tokenize(request, timeout=TIMEOUT_S)).token_ids)

    async def count_tokens(self, model: str, prompt: str | Sequence[Message] | Chat) -> int:
        """How many tokens a prompt would be."""
        request = inference_pb2.CountTokensRequest(model=model)
        convert.set_prompt(request, prompt)
        with self._typed_errors():
            return (await self.inference.CountTokens(request, timeout=TIMEOUT_S)).tokens

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        request = inference_pb2.DetokenizeRequest(model=model, token_ids=token_ids)
        with self._typed_errors():
            return (await self.inference.Detokenize(request, timeout=TIMEOUT_S)).text

    async def register_model(
        self,
        name: str,
        source: str,
        *,
        dtype: str = "",
        slo: Slo | None = None,
        tool_parser: str = "",
        timeout_s: float = REGISTER_TIMEOUT_S,
    ) -> Model:
        """Returns when the model is ready to serve. `source` is seen from the memory service's host.

        `tool_parser` says how its calls of tools are read, where its chat template does not.
        """
        request = models_pb2.RegisterModelRequest(
            name=name,
            source=source,
            dtype=dtype,
            slo=wire.slo_to_pb(slo) if slo else None,
            tool_parser=tool_parser,
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

    async def pin_model(self, name: str, pinned: bool = True) -> Model:
        """Has every host keep the model's weights in memory, ahead of the first request; or no longer."""
        request = models_pb2.UpdateModelRequest(name=name, pinned=pinned)
        with self._typed_errors():
            return convert.model_from_pb((await self._models.UpdateModel(request, timeout=TIMEOUT_S)).model)

    async def preload_model(self, name: str, *, timeout_s: float = GENERATE_TIMEOUT_S) -> str:
        """Returns when a worker has it on its device: that worker's id."""
        request = models_pb2.PreloadModelRequest(name=name)
        with self._typed_errors():
            return (await self._models.PreloadModel(request, timeout=timeout_s)).worker_id

    async def set_alias(self, alias: str, model: str) -> str:
        """Points an alias at a model; what it pointed at before, empty if it is new."""
        request = models_pb2.SetAliasRequest(alias=alias, model=model)
        with self._typed_errors():
            return (await self._models.SetAlias(request, timeout=TIMEOUT_S)).previous_model

    async def delete_alias(self, alias: str) -> None:
        with self._typed_errors():
            await self._models.DeleteAlias(models_pb2.DeleteAliasRequest(alias=alias), timeout=TIMEOUT_S)

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
        """What the router said, or that there is none."""
        if error.code() == grpc.StatusCode.UNAVAILABLE and not has_details(error):
            return Unavailable(
                explain(error.details() or "", self.address)
                or f"no router answers at {self.address}: start a pool with `hekaton up`, or give the address of one"
            )
        return from_rpc_error(error)
