"""What a client may send: OpenAI's fields that are honoured, and hekaton's own. Any other field is refused by name."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from hekaton.jsonschema import ANY_OBJECT
from hekaton.v1 import inference_pb2 as pb
from hekaton_router.fields import Body, Generation, Uint32
from hekaton_router.http.tools import Called, Choice, Tool, choice_to_pb

MAX_MESSAGES = 2048
MAX_USER_CHARS = 256
MAX_DESCRIPTION_CHARS = 1024
MAX_TOP_LOGPROBS = 20
MAX_TEXT_LOGPROBS = 5
Name = Annotated[str, Field(min_length=1, max_length=128)]


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="developer means system")
    tool_calls: list[Called] | None = Field(None, description="of the assistant: as it was answered")
    tool_call_id: str | None = Field(None, description="of a tool: which call this answers")
    name: str | None = Field(None, description="of a tool: the function that was called")
    content: str | list[TextPart] | None = Field(
        None,
        validate_default=True,
        description="several parts are joined without anything between them; may be missing beside tool_calls",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, message: object) -> object:
        # As `openai` sends an answer back.
        if not isinstance(message, dict):
            return message
        return {name: value for name, value in message.items() if value is not None}

    @field_validator("content")
    @classmethod
    def _said_or_called(cls, content: str | list[TextPart] | None, info: ValidationInfo) -> str | list[TextPart] | None:
        if content is None and not info.data.get("tool_calls"):
            raise ValueError("Field required")
        return content

    def to_pb(self) -> pb.ChatMessage:
        parts = self.content or ""
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return pb.ChatMessage(
            role="system" if self.role == "developer" else self.role,
            content=text,
            tool_calls=[call.to_pb() for call in self.tool_calls or ()],
            tool_call_id=self.tool_call_id or "",
            name=self.name or "",
        )


class StreamOptions(Body):
    include_usage: bool = Field(False, description="one more chunk, without choices, with the usage")
    continuous_usage_stats: bool = Field(False, description="in every chunk the usage so far")


class JsonSchema(Body):
    name: str = Field(
        pattern=r"^[A-Za-z0-9_-]{1,64}$", description="only to tell it from others; nothing depends on it"
    )
    schema_: dict[str, Any] = Field(alias="schema", description="what the answer follows; sent as it is")
    description: str | None = Field(None, max_length=MAX_DESCRIPTION_CHARS, description="for readers; not the model's")
    strict: bool = Field(True, description="answers follow their schema in any case")


class ResponseFormat(Body):
    """Any text, a JSON object, or a JSON text that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = Field(None, description="only with the type json_schema")

    @property
    def schema_text(self) -> str | None:
        """What the native API calls json_schema."""
        if self.json_schema is not None:
            return json.dumps(self.json_schema.schema_)
        return ANY_OBJECT if self.type == "json_object" else None

    @model_validator(mode="after")
    def _schema_where_there_is_one(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the type json_schema and the field json_schema go together")
        return self


class Completion(Generation):
    """The fields that both kinds of completion have."""

    model: Name
    stream: bool = False
    stream_options: StreamOptions | None = Field(None, description="only with stream")
    user: str | None = Field(None, max_length=MAX_USER_CHARS, description="named in this request's logs and span")

    @property
    def likeliest(self) -> int | None:
        """Log probabilities of so many of the likeliest tokens are asked for; None: of no token at all."""
        return None

    @model_validator(mode="after")
    def _streamed(self) -> "Completion":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self


class ChatCompletion(Completion):
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Uint32 | None = Field(None, description="the same as max_tokens; send one of them")
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, min_length=1, description="what the model may call")
    tool_choice: Choice | None = Field(None, description="auto if unset")
    parallel_tool_calls: bool | None = Field(None, description="false: the answer ends with its first call")
    logprobs: bool = Field(False, description="with each token its log probability")
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="and those of so many of the likeliest; only with logprobs"
    )

    @property
    def likeliest(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, top_logprobs: int | None, info: ValidationInfo) -> int | None:
        if not info.data.get("logprobs"):
            raise ValueError("only allowed with logprobs: true")
        return top_logprobs

    def to_chat(self) -> pb.ChatPrompt:
        return pb.ChatPrompt(
            messages=[message.to_pb() for message in self.messages],
            tools=[tool.function.to_pb() for tool in self.tools or ()],
            tool_choice=None if self.tool_choice is None else choice_to_pb(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls,
        )

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatCompletion":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens mean the same: send one of them")
        return self


class TextCompletion(Completion):
    prompt: str | list[Uint32] | list[str] = Field(description="a text, or the ids of its tokens")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TEXT_LOGPROBS,
        description="with each token its log probability, and those of so many of the likeliest",
    )

    @property
    def likeliest(self) -> int | None:
        return self.logprobs

    @field_validator("prompt")
    @classmethod
    def _single(cls, prompt: str | list[int] | list[str]) -> str | list[int] | list[str]:
        if isinstance(prompt, list) and len(prompt) > 1 and isinstance(prompt[0], str):
            raise ValueError("one prompt a request: send the others in requests of their own")
        return prompt
