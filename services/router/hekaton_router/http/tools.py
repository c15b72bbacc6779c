"""Tools and their calls in OpenAI's words: what a client may send of them, and how calls are answered."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from hekaton.v1 import inference_pb2 as pb
from hekaton_router.fields import Body
from hekaton_router.http.replies import Call, CallDelta, FunctionDelta, FunctionSaid

Mode = Literal["none", "auto", "required"]
MODES: dict[Mode, pb.ToolChoiceMode.ValueType] = {
    "none": pb.TOOL_CHOICE_MODE_NONE,
    "auto": pb.TOOL_CHOICE_MODE_AUTO,
    "required": pb.TOOL_CHOICE_MODE_REQUIRED,
}


class Function(Body):
    name: str
    description: str | None = Field(None, description="what it is good for, for the model")
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of its arguments; none if unset")
    strict: bool | None = Field(None, description="arguments follow the schema, whether a call is required or not")

    def to_pb(self) -> pb.Tool:
        parameters = "" if self.parameters is None else json.dumps(self.parameters)
        strict = self.strict or False
        return pb.Tool(name=self.name, description=self.description or "", parameters=parameters, strict=strict)


class Tool(Body):
    type: Literal["function"]
    function: Function


class Named(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: Named


# No name of a tag is an identifier, so none gets into the name of a field.
Choice = Annotated[
    Annotated[Mode, Tag("a mode")] | Annotated[NamedTool, Tag("a tool")],
    Discriminator(lambda value: "a mode" if isinstance(value, str) else "a tool"),
]


def choice_to_pb(choice: Mode | NamedTool) -> pb.ToolChoice:
    if isinstance(choice, NamedTool):
        return pb.ToolChoice(name=choice.function.name)
    return pb.ToolChoice(mode=MODES[choice])


class CalledFunction(Body):
    name: str
    arguments: str = Field(description="a JSON object")


class Called(Body):
    """A call, as the answer said it."""

    id: str
    type: Literal["function"]
    function: CalledFunction

    def to_pb(self) -> pb.ToolCall:
        return pb.ToolCall(id=self.id, name=self.function.name, arguments=self.function.arguments)


def deltas(pieces: Sequence[pb.ToolCallDelta]) -> list[CallDelta]:
    return [
        CallDelta(
            index=piece.index,
            id=piece.id or None,
            type="function" if piece.id else None,
            function=FunctionDelta(name=piece.name or None, arguments=piece.arguments),
        )
        for piece in pieces
    ]


def gather(calls: list[Call], pieces: Sequence[pb.ToolCallDelta]) -> None:
    """Adds to whole calls what some tokens add."""
    for piece in pieces:
        if piece.index == len(calls):
            calls.append(Call(id=piece.id, function=FunctionSaid(name=piece.name, arguments="")))
        calls[piece.index].function.arguments += piece.arguments
