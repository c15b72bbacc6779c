"""The same client for programs without an event loop: `with SyncClient("127.0.0.1:50051") as client: …`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Sequence
from threading import Thread
from types import TracebackType
from typing import Any, Self, TypeVar

from hekaton.client.client import GENERATE_TIMEOUT_S, REGISTER_TIMEOUT_S, Client
from hekaton.client.types import Chat, Completion, GenerationEvent, Message, Model, Pool, Prompt, SamplingOptions
from hekaton.errors import Unavailable
from hekaton.facts import Slo, SloClass, TurnRecord
from hekaton.rpc.tls import ClientTls

T = TypeVar("T")


class SyncClient:
    """`Client` in a thread of its own: the same calls, retries, resumption and errors. Any thread may use it.

    >>> with SyncClient("127.0.0.1:50051") as client:
    ...     answer = client.complete("smollm2", "Say hello.")
    """

    def __init__(self, address: str, *more: str, api_key: str | None = None, tls: ClientTls | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="hekaton client", daemon=True)
        self._thread.start()

        async def make() -> Client:
            return Client(address, *more, api_key=api_key, tls=tls)

        try:
            self._client = self._run(make())
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends its connections. It cannot be used any more."""
        if not self._loop.is_closed():
            self._call(lambda client: client.__aexit__(None, None, None))
            self._end()

    def generate(
        self,
        model: str,
        prompt: Prompt,
        options: SamplingOptions | None = None,
        *,
        slo: Slo | SloClass | None = None,
        request_id: str = "",
        timeout_s: float = GENERATE_TIMEOUT_S,
        resume_window_s: float = 0.0,
    ) -> Generator[GenerationEvent, None, None]:
        """Streams a generation, as `Client.generate` does. Closing the iterator cancels it, and so does leaving it."""
        return self._iterate(
            self._client.generate(
                model,
                prompt,
                options,
                slo=slo,
                request_id=request_id,
                timeout_s=timeout_s,
                resume_window_s=resume_window_s,
            )
        )

    def complete(
        self,
        model: str,
        prompt: Prompt,
        options: SamplingOptions | None = None,
        *,
        timeout_s: float = GENERATE_TIMEOUT_S,
        resume_window_s: float = 0.0,
    ) -> Completion:
        return self._call(
            lambda client: client.complete(model, prompt, options, timeout_s=timeout_s, resume_window_s=resume_window_s)
        )

    def complete_all(
        self,
        model: str,
        prompt: Prompt,
        options: SamplingOptions | None = None,
        *,
        timeout_s: float = GENERATE_TIMEOUT_S,
        resume_window_s: float = 0.0,
    ) -> tuple[Completion, ...]:
        return self._call(
            lambda client: client.complete_all(
                model, prompt, options, timeout_s=timeout_s, resume_window_s=resume_window_s
            )
        )

    def cancel(self, request_id: str) -> bool:
        return self._call(lambda client: client.cancel(request_id))

    def tokenize(self, model: str, prompt: str | Sequence[Message] | Chat) -> tuple[int, ...]:
        return self._call(lambda client: client.tokenize(model, prompt))

    def count_tokens(self, model: str, prompt: str | Sequence[Message] | Chat) -> int:
        return self._call(lambda client: client.count_tokens(model, prompt))

    def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        return self._call(lambda client: client.detokenize(model, token_ids))

    def register_model(
        self,
        name: str,
        source: str,
        *,
        dtype: str = "",
        slo: Slo | None = None,
        tool_parser: str = "",
        timeout_s: float = REGISTER_TIMEOUT_S,
    ) -> Model:
        return self._call(
            lambda client: client.register_model(
                name, source, dtype=dtype, slo=slo, tool_parser=tool_parser, timeout_s=timeout_s
            )
        )

    def list_models(self) -> tuple[Model, ...]:
        return self._call(lambda client: client.list_models())

    def get_model(self, name: str) -> Model:
        return self._call(lambda client: client.get_model(name))

    def update_model(self, name: str, slo: Slo) -> Model:
        return self._call(lambda client: client.update_model(name, slo))

    def pin_model(self, name: str, pinned: bool = True) -> Model:
        return self._call(lambda client: client.pin_model(name, pinned))

    def preload_model(self, name: str, *, timeout_s: float = GENERATE_TIMEOUT_S) -> str:
        return self._call(lambda client: client.preload_model(name, timeout_s=timeout_s))

    def set_alias(self, alias: str, model: str) -> str:
        return self._call(lambda client: client.set_alias(alias, model))

    def delete_alias(self, alias: str) -> None:
        self._call(lambda client: client.delete_alias(alias))

    def delete_model(self, name: str) -> None:
        self._call(lambda client: client.delete_model(name))

    def pool(self) -> Pool:
        return self._call(lambda client: client.pool())

    def watch_pool(self, interval_s: float = 1.0) -> Generator[Pool | TurnRecord, None, None]:
        return self._iterate(self._client.watch_pool(interval_s))

    def _call(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        return self._run(work(self._client))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """In the client's thread. Ctrl-C here cancels it there."""
        if self._loop.is_closed():
            work.close()
            raise Unavailable("this client is closed: make another")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, events: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        try:
            while (event := self._run(_next(events))) is not None:
                yield event
        finally:
            if not self._loop.is_closed():
                self._run(_awaited(events.aclose()))

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(events: AsyncGenerator[T, None]) -> T | None:
    return await anext(events, None)


async def _awaited(work: Awaitable[T]) -> T:
    return await work
