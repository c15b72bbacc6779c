"""The OpenAPI document, made of the same models that read requests and write answers."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from hekaton import __version__
from hekaton_router.http.errors import Error
from hekaton_router.http.replies import ChatChunk, ChatReply, Model, ModelList, TextReply
from hekaton_router.http.requests import ChatCompletion, TextCompletion

REF = "#/components/schemas/{model}"
Json = dict[str, Any]
REFUSALS = {
    "400": "A field that is wrong or not supported; it is named in `param`.",
    "401": "No API key that is known, where keys are asked for.",
    "403": "This tenant may not use the model.",
    "404": "No such model.",
    "409": "The request_id exists, or the output had to be given up: send it again.",
    "429": "Too much is queued, or a quota is used up: wait as Retry-After says.",
    "503": "The pool cannot serve now: wait as Retry-After says.",
    "504": "It did not end within its deadline.",
}


def document() -> Json:
    """OpenAPI 3.1."""
    inputs: list[type[BaseModel]] = [ChatCompletion, TextCompletion]
    outputs: list[type[BaseModel]] = [ChatReply, ChatChunk, TextReply, ModelList, Model, Error]
    _, definitions = models_json_schema(
        [*((model, "validation") for model in inputs), *((model, "serialization") for model in outputs)],
        ref_template=REF,
    )
    return {
        "openapi": "3.1.0",
        "info": {"title": "hekaton", "version": __version__},
        "paths": {
            "/v1/chat/completions": _completion("chat", ChatCompletion, ChatReply, ChatChunk),
            "/v1/completions": _completion("text", TextCompletion, TextReply, TextReply),
            "/v1/models": {"get": _get("The models that can serve.", ModelList)},
            "/v1/models/{model}": {
                "get": _get("One of them.", Model, "404")
                | {"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]}
            },
            "/health": {"get": _get("The process lives.")},
            "/ready": {"get": _get("The pool can serve.", None, "503")},
        },
        "components": {"schemas": definitions["$defs"]},
    }


def _completion(kind: str, body: type[BaseModel], reply: type[BaseModel], chunk: type[BaseModel]) -> Json:
    content = {"application/json": _schema(reply), "text/event-stream": _schema(chunk)}
    return {
        "post": {
            "summary": f"Generates, {kind}. With stream: true each event is a chunk or an error; the last is [DONE].",
            "requestBody": {"required": True, "content": {"application/json": _schema(body)}},
            "responses": {"200": {"description": "The answer.", "content": content}} | _refusals(*REFUSALS),
        }
    }


def _get(summary: str, reply: type[BaseModel] | None = None, *refusals: str) -> Json:
    content = {"application/json": _schema(reply)} if reply else {"text/plain": {}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "It is.", "content": content}} | _refusals(*refusals),
    }


def _refusals(*statuses: str) -> Json:
    content = {"application/json": _schema(Error)}
    return {status: {"description": REFUSALS[status], "content": content} for status in statuses}


def _schema(model: type[BaseModel]) -> Json:
    return {"schema": {"$ref": REF.format(model=model.__name__)}}
