"""What a client is answered: OpenAI's objects."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field

T = TypeVar("T")
FinishReason = Literal["stop", "length", "tool_calls"]
Optional = Annotated[T | None, Field(exclude_if=lambda value: value is None)]
"""Left out where it has no value."""


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class FunctionDelta(BaseModel):
    name: Optional[str] = None
    arguments: str


class CallDelta(BaseModel):
    """What a chunk adds to a call: id, type and name with its beginning."""

    index: int
    id: Optional[str] = None
    type: Optional[Literal["function"]] = None
    function: FunctionDelta


class FunctionSaid(BaseModel):
    name: str
    arguments: str


class Call(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionSaid


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="null if there are calls and no text outside of them")
    tool_calls: Optional[list[Call]] = None


class Likely(BaseModel):
    """A token, and how likely it was."""

    token: str
    logprob: float | None = Field(description="natural logarithm; null if it was lost with the process that knew it")
    bytes: list[int]


class Spoken(Likely):
    """The token that was chosen."""

    top_logprobs: list[Likely]


class ChatLogprobs(BaseModel):
    content: list[Spoken] = []


class TextLogprobs(BaseModel):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float | None]] = Field([], description="the chosen token is always among them")
    text_offset: list[int] = Field([], description="in the text of this choice, in characters")


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: Optional[ChatLogprobs] = None
    finish_reason: FinishReason


class ChatReply(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    role: Optional[Literal["assistant"]] = None
    content: Optional[str] = None
    tool_calls: Optional[list[CallDelta]] = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: Optional[ChatLogprobs] = None
    finish_reason: FinishReason | None = None


class ChatChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Optional[Usage] = None


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: Optional[TextLogprobs] = None
    finish_reason: FinishReason | None = None


class TextReply(BaseModel):
    """Whole, or a chunk of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Optional[Usage] = None


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hekaton"
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]
