"""What a conversation asks of tools: checked, and in the form that chat templates expect."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hekaton.errors import InvalidArgument
from hekaton.v1 import inference_pb2 as pb
from hekaton_router.sampling import MAX_SCHEMA_BYTES

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 8192
MAX_SCHEMAS_BYTES = 64 << 10
"""Of all tools of a request."""
MAX_ID_CHARS = 128
NO_ARGUMENTS = '{"type": "object", "properties": {}}'
NONE, REQUIRED = pb.TOOL_CHOICE_MODE_NONE, pb.TOOL_CHOICE_MODE_REQUIRED


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    schema: dict[str, Any]
    strict: bool

    def shown(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.name, "description": self.description, "parameters": self.schema}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What the model is told of, and what of it it may and must call."""

    tools: tuple[Tool, ...] = ()
    forced: tuple[Tool, ...] = ()
    """It must call one of these; empty: it may call any, or none."""
    several: bool = True

    @property
    def constrained(self) -> bool:
        """Whether some call must follow a schema."""
        return bool(self.forced) or any(tool.strict for tool in self.tools)

    def shown(self) -> list[dict[str, Any]]:
        return [tool.shown() for tool in self.tools]


def tool_use(chat: pb.ChatPrompt) -> ToolUse:
    """Raises InvalidArgument, naming the field."""
    if len(chat.tools) > MAX_TOOLS:
        raise InvalidArgument(f"chat.tools may hold at most {MAX_TOOLS} tools, not {len(chat.tools)}")
    if sum(len(tool.parameters.encode()) for tool in chat.tools) > MAX_SCHEMAS_BYTES:
        raise InvalidArgument(f"chat.tools: their parameters may have at most {MAX_SCHEMAS_BYTES} bytes together")
    tools = tuple(_tool(f"chat.tools[{index}]", tool) for index, tool in enumerate(chat.tools))
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise InvalidArgument("chat.tools: two of them have the same name")
    for name in ("tool_choice", "parallel_tool_calls"):
        if not tools and chat.HasField(name):
            raise InvalidArgument(f"chat.{name} is only allowed with tools: leave it out")
    forced = _forced(chat.tool_choice, tools)
    several = chat.parallel_tool_calls if chat.HasField("parallel_tool_calls") else True
    return ToolUse() if chat.tool_choice.mode == NONE else ToolUse(tools, forced, several)


def messages_of(chat: pb.ChatPrompt) -> list[dict[str, Any]]:
    """Raises InvalidArgument, naming the field. May take long, where arguments are."""
    if not chat.messages:
        raise InvalidArgument("the chat is empty: send at least one message")
    return [_message(f"chat.messages[{index}]", message) for index, message in enumerate(chat.messages)]


def _forced(choice: pb.ToolChoice, tools: Sequence[Tool]) -> tuple[Tool, ...]:
    if choice.WhichOneof("choice") == "name":
        named = tuple(tool for tool in tools if tool.name == choice.name)
        if not named:
            raise InvalidArgument(f"chat.tool_choice names {choice.name[:64]!r}, which is none of the tools")
        return named
    if choice.mode not in pb.ToolChoiceMode.values():
        raise InvalidArgument(f"chat.tool_choice: there is no mode {choice.mode}")
    return tuple(tools) if choice.mode == REQUIRED else ()


def _tool(field: str, tool: pb.Tool) -> Tool:
    if not NAME.fullmatch(tool.name):
        raise InvalidArgument(f"{field}.name must be 1 to 64 of A-Z a-z 0-9 _ -")
    if len(tool.description) > MAX_DESCRIPTION_CHARS:
        raise InvalidArgument(f"{field}.description may have at most {MAX_DESCRIPTION_CHARS} characters")
    if len(tool.parameters.encode()) > MAX_SCHEMA_BYTES:
        raise InvalidArgument(f"{field}.parameters may have at most {MAX_SCHEMA_BYTES} bytes")
    schema = _object(f"{field}.parameters", tool.parameters or NO_ARGUMENTS)
    return Tool(tool.name, tool.description, schema, tool.strict)


def _message(field: str, message: pb.ChatMessage) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        if message.role != "assistant":
            raise InvalidArgument(f"{field}.tool_calls are of the role assistant only")
        calls = enumerate(message.tool_calls)
        told["tool_calls"] = [_call(f"{field}.tool_calls[{index}]", call) for index, call in calls]
    if message.role == "tool":
        told["tool_call_id"] = _short(f"{field}.tool_call_id", message.tool_call_id)
        if message.name:
            told["name"] = _short(f"{field}.name", message.name)
    elif message.tool_call_id or message.name:
        name = "tool_call_id" if message.tool_call_id else "name"
        raise InvalidArgument(f"{field}.{name} is of the role tool only")
    return told


def _call(field: str, call: pb.ToolCall) -> dict[str, Any]:
    # Templates write arguments as JSON by themselves.
    arguments = _object(f"{field}.arguments", call.arguments)
    function = {"name": _short(f"{field}.name", call.name), "arguments": arguments}
    return {"id": _short(f"{field}.id", call.id), "type": "function", "function": function}


def _short(field: str, text: str) -> str:
    if not 0 < len(text) <= MAX_ID_CHARS:
        raise InvalidArgument(f"{field} must have 1 to {MAX_ID_CHARS} characters")
    return text


def _object(field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        # JSON can spell halves of characters, which no template can write.
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{field} must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"{field} must be a JSON object")
    return value
