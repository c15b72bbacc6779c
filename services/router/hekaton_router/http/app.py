"""The routes of the HTTP API."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hekaton.config import RouterSettings
from hekaton.errors import HekatonError
from hekaton.facts import CatalogEntry, ModelState
from hekaton.rpc.errors import known_error
from hekaton.store.catalog import Catalog
from hekaton_router import tenancy
from hekaton_router.admission import ready_spec
from hekaton_router.http.completions import CompletionEndpoint, Generator
from hekaton_router.http.dialect import ChatDialect, TextDialect
from hekaton_router.http.errors import Error, ErrorBody, plain_response, response_of
from hekaton_router.http.openapi import document
from hekaton_router.http.replies import Model, ModelList
from hekaton_router.http.requests import ChatCompletion, TextCompletion
from hekaton_router.http.translate import chat_request, text_request
from hekaton_router.models import permitted
from hekaton_router.tenancy import Guard


@dataclass(frozen=True, slots=True)
class Api:
    """What is answered besides completions."""

    catalog: Catalog
    guard: Guard
    ready: Callable[[], bool]

    async def models(self, request: Request) -> Response:
        await self.guard.admit(request.url.path, request.headers)
        usable = tenancy.current().may_use
        entries = {entry.name: entry for entry in await self.catalog.list() if entry.state is ModelState.READY}
        targets = {**await self.catalog.aliases(), **{name: name for name in entries}}
        listed = [
            _model(entries[target], name)
            for name, target in sorted(targets.items())
            if target in entries and (usable(name) or usable(target))
        ]
        return JSONResponse(ModelList(data=listed).model_dump())

    async def model(self, request: Request) -> Response:
        await self.guard.admit(request.url.path, request.headers)
        name = request.path_params["model"]
        return JSONResponse(_model(await permitted(self.catalog, name), name).model_dump())

    async def health(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def readiness(self, request: Request) -> Response:
        return PlainTextResponse("ready") if self.ready() else PlainTextResponse("not ready", 503)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document())


def http_app(
    settings: RouterSettings, generator: Generator, catalog: Catalog, guard: Guard, ready: Callable[[], bool]
) -> Starlette:
    """The application. `ready` says whether the pool can serve."""
    api = Api(catalog, guard, ready)
    chat = CompletionEndpoint(settings, generator, guard, ChatCompletion, chat_request, ChatDialect(), "chat")
    text = CompletionEndpoint(
        settings, generator, guard, TextCompletion, text_request, TextDialect(), "text_completion"
    )
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", text, methods=["POST"]),
            Route("/v1/models", api.models),
            Route("/v1/models/{model:path}", api.model),
            Route("/health", api.health),
            Route("/ready", api.readiness),
            Route("/openapi.json", api.openapi),
        ],
        exception_handlers={HTTPException: _refused, HekatonError: _failed, Exception: _failed},
    )


def _model(entry: CatalogEntry, name: str) -> Model:
    """By the name that it was asked for."""
    return Model(id=name, created=entry.created, max_model_len=ready_spec(entry).max_context_tokens)


async def _refused(request: Request, error: Exception) -> Response:
    """No such route, or another method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}; /openapi.json lists what is served"
    body = ErrorBody(message=message, type="invalid_request_error", param=None, code=None)
    return plain_response(error.status_code, Error(error=body), error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return response_of(known_error(error, request.url.path))
