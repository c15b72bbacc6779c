"""POST /v1/chat/completions and /v1/completions: each an ASGI application of its own."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, Protocol

import structlog
from opentelemetry.trace import SpanKind
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hekaton import telemetry
from hekaton.config import RouterSettings
from hekaton.rpc.errors import known_error
from hekaton.rpc.interceptors import recorded_span
from hekaton.v1 import inference_pb2 as pb
from hekaton_router.detokenizer import Decoding
from hekaton_router.http.dialect import Dialect, Progress
from hekaton_router.http.errors import body_of, response_of
from hekaton_router.http.exchange import EventStream, attended, read_body
from hekaton_router.http.replies import ChatChunk, TextReply
from hekaton_router.http.requests import StreamOptions
from hekaton_router.http.translate import C, parse
from hekaton_router.tenancy import Guard


class Generator(Protocol):
    """The router's one way to generate: what the gRPC service does, with the budget in seconds."""

    def generate(self, request: pb.GenerateRequest, budget_s: float) -> AsyncGenerator[pb.GenerateResponse]: ...

    async def decoding(self, model: str, budget_s: float) -> Decoding: ...


@dataclass(frozen=True, slots=True)
class CompletionEndpoint(Generic[C]):
    settings: RouterSettings
    generator: Generator
    guard: Guard
    form: type[C]
    translate: Callable[[C], pb.GenerateRequest]
    dialect: Dialect
    operation: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            try:
                # In this task, whose context the one that generates takes over.
                await self.guard.admit(request.url.path, request.headers)
                body = parse(self.form, await read_body(request, self.settings.max_message_bytes))
                await attended(receive, self._serve(request, body, send))
            except ClientDisconnect:
                return
        except Exception as error:
            await response_of(known_error(error, request.url.path))(scope, receive, send)

    async def _serve(self, request: Request, body: C, send: Send) -> None:
        parent = telemetry.context_from(request.headers.get(telemetry.TRACEPARENT, ""))
        attributes = {"http.request.method": "POST", "url.path": request.url.path}
        if body.user:
            attributes[telemetry.USER] = body.user
            structlog.contextvars.bind_contextvars(user=body.user)
        with recorded_span(f"{self.operation} {body.model}", parent, SpanKind.SERVER, attributes) as span:
            budget_s = min(body.deadline_s or self.settings.default_deadline_s, self.settings.max_deadline_s)
            async with aclosing(self.generator.generate(self.translate(body), budget_s)) as events:
                # The first event is the acceptance: what is refused before it gets a status of its own.
                accepted = (await anext(events)).accepted
                span.set_attribute(telemetry.GEN_AI_OPERATION, self.operation)
                asked = body.likeliest is not None
                decoding = await self.generator.decoding(body.model, budget_s) if asked else None
                progress = Progress(body.model, body.n or 1, accepted, decoding)
                if body.stream:
                    await self._stream(request, body, events, progress, send)
                else:
                    await self._whole(request, events, progress, send)

    async def _whole(
        self, request: Request, events: AsyncIterator[pb.GenerateResponse], progress: Progress, send: Send
    ) -> None:
        async for event in events:
            if event.HasField("tokens"):
                progress.take(event.tokens)
            else:
                progress.end(event.finished)
        reply = self.dialect.whole(progress).model_dump_json()
        headers = {"x-request-id": progress.accepted.request_id}
        response = Response(reply, media_type="application/json", headers=headers)
        await response(request.scope, request.receive, send)

    async def _stream(
        self, request: Request, body: C, events: AsyncIterator[pb.GenerateResponse], progress: Progress, send: Send
    ) -> None:
        stream = EventStream(send, progress.accepted.request_id)
        options = body.stream_options or StreamOptions()
        try:
            for opening in self.dialect.openings(progress):
                await stream.event(_json(opening))
            async for event in events:
                chunk = self._chunk(event, progress)
                if options.continuous_usage_stats:
                    chunk = chunk.model_copy(update={"usage": progress.usage_so_far()})
                await stream.event(_json(chunk))
            if options.include_usage:
                await stream.event(_json(self.dialect.bill(progress)))
            await stream.done()
        except Exception as error:
            # The status has been sent: the error comes as an event, and no [DONE] follows.
            await stream.event(_json(body_of(known_error(error, request.url.path))))
            await stream.close()

    def _chunk(self, event: pb.GenerateResponse, progress: Progress) -> ChatChunk | TextReply:
        if event.HasField("tokens"):
            progress.streamed_tokens += len(event.tokens.token_ids)
            return self.dialect.piece(progress, event.tokens)
        return self.dialect.closing(progress, event.finished)


def _json(message: BaseModel) -> str:
    return message.model_dump_json()
