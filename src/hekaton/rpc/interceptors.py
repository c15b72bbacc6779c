"""Server and client interceptors: trace context, request logs, typed errors.

Our own, because the stock OpenTelemetry ones break cancellation under grpc.aio and mark cancelled streams as OK. A
handler must be `async def` (unary) or `async def … yield` (streaming).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from hekaton import telemetry
from hekaton.errors import HekatonError, InvalidArgument
from hekaton.rpc.errors import cut, known_error, to_trailers

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

log = structlog.get_logger(__name__)


EVERYBODYS = ("/grpc.health.", "/grpc.reflection.")
"""Services that answer whoever reaches the port."""

Guard: TypeAlias = Callable[[str, Mapping[str, str]], Awaitable[None]]
"""Told a method and the metadata of its call, in the task that serves it; raises what refuses the call."""


async def let_in(method: str, metadata: Mapping[str, str]) -> None:
    """The guard of a service that everybody may call who reaches it."""


class ServerInterceptor(grpc.aio.ServerInterceptor):
    """Asks the guard, turns errors into statuses, gives finite calls a span: of all methods but EVERYBODYS."""

    def __init__(self, guard: Guard = let_in) -> None:
        self._guard = guard

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(EVERYBODYS):
            return handler
        metadata = {
            name: value for name, value in handler_call_details.invocation_metadata or () if isinstance(value, str)
        }
        scope = _Scope(method, metadata, self._guard)
        codec = (_tolerant(handler.request_deserializer), handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_unary(scope, handler.unary_unary), *codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(_streaming(scope, handler.unary_stream), *codec)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(_streaming(scope, handler.stream_stream), *codec)
        return handler


class _Malformed:
    """In the place of a message that cannot be decoded: grpc.aio would answer UNKNOWN, and the handler know nothing."""

    def __init__(self, error: DecodeError) -> None:
        self.error = InvalidArgument(f"the message cannot be decoded: {error}")


def _tolerant(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    def decoded(data: bytes) -> Any:
        try:
            return decode(data) if decode else data
        except DecodeError as error:
            return _Malformed(error)

    return decoded


async def _sound(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Raises InvalidArgument at the first that cannot be decoded."""
    async for message in messages:
        if isinstance(message, _Malformed):
            raise message.error
        yield message


def _checked(request: Any) -> Any:
    """What a handler gets: a message, or the iterator of a stream's. Raises InvalidArgument."""
    if isinstance(request, _Malformed):
        raise request.error
    return _sound(request) if isinstance(request, AsyncIterator) else request


class _Scope:
    """What surrounds one method's handler."""

    def __init__(self, method: str, metadata: Mapping[str, str], guard: Guard) -> None:
        self.method = method
        self._metadata = metadata
        self._guard = guard
        name = method.rsplit("/", 1)[-1]
        # Streams that live as long as the process have no useful span.
        self.traced = not name.startswith(("Watch", "Control", "StreamTokens", "RenewLeases"))

    async def admit(self) -> None:
        await self._guard(self.method, self._metadata)

    @contextmanager
    def span(self) -> Iterator[trace.Span]:
        if not self.traced:
            yield trace.INVALID_SPAN
            return
        parent = telemetry.context_from(self._metadata.get(telemetry.TRACEPARENT, ""))
        service, name = self.method.strip("/").split("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        with recorded_span(self.method.strip("/"), parent, SpanKind.SERVER, attributes) as span:
            yield span


@contextmanager
def recorded_span(name: str, parent: Any, kind: SpanKind, attributes: Mapping[str, str]) -> Iterator[trace.Span]:
    """A span that ends with the real status, cancellation included."""
    span = telemetry.tracer().start_span(name, parent, kind, attributes)
    code = grpc.StatusCode.OK
    try:
        with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            yield span
    except (asyncio.CancelledError, GeneratorExit, grpc.aio.InternalError):
        code = grpc.StatusCode.CANCELLED
        raise
    except (HekatonError, grpc.aio.AioRpcError) as error:
        code = error.code if isinstance(error, HekatonError) else error.code()
        raise
    except BaseException:
        code = grpc.StatusCode.INTERNAL
        raise
    finally:
        span.set_attribute("rpc.grpc.status_code", code.value[0])
        if code is not grpc.StatusCode.OK:
            span.set_status(Status(StatusCode.ERROR, code.name))
        span.end()


def _unary(scope: _Scope, handler: Callable[..., Any]) -> Any:
    async def call(request: Any, context: Context) -> Any:
        try:
            with scope.span():
                await scope.admit()
                return await handler(_checked(request), context)
        except Exception as error:
            await _abort(scope.method, error, context)

    return call


def _streaming(scope: _Scope, handler: Callable[..., Any]) -> Any:
    # It writes instead of yielding: a generator that grpc.aio drops when its client is gone ends whenever it is
    # collected, and in no task of its own.
    async def call(request: Any, context: Context) -> None:
        try:
            with scope.span():
                await scope.admit()
                async with aclosing(handler(_checked(request), context)) as responses:
                    async for response in responses:
                        await context.write(response)
        except grpc.aio.InternalError:
            raise  # The client has gone while it was written to.
        except Exception as error:
            await _abort(scope.method, error, context)

    return call


async def _abort(method: str, error: Exception, context: Context) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    known = known_error(error, method)
    known.message = cut(known.message)
    await context.abort(known.code, known.message, to_trailers(known))


class UnaryClientInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    """Sends the current trace context along. Never awaits the call, so cancelling it cancels it."""

    def __init__(self, api_key: str = "") -> None:
        self._api_key = api_key

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_with_context(client_call_details, self._api_key), request)


class StreamClientInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    """The same for server streams: grpc.aio takes an interceptor for one kind of call only."""

    def __init__(self, api_key: str = "") -> None:
        self._api_key = api_key

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_with_context(client_call_details, self._api_key), request)


def _with_context(details: Any, api_key: str) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(details.metadata or ()))
    traceparent = telemetry.current_traceparent()
    if traceparent:
        metadata.add(telemetry.TRACEPARENT, traceparent)
    if api_key:
        metadata.add("authorization", f"Bearer {api_key}")
    return grpc.aio.ClientCallDetails(
        details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
    )
