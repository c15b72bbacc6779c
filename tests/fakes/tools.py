"""A tool, a conversation in which it was used, and outputs that call it."""

from hekaton.v1 import inference_pb2 as pb

SCHEMA = '{"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}'
WEATHER = pb.Tool(name="get_weather", description="What the weather is.", parameters=SCHEMA)
TIME = pb.Tool(name="get_time")
ARGUMENTS = '{"city": "Paris"}'
CALL = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'
OTHER = '{"name": "get_time", "arguments": {}}'
OUTPUT = f"Let me look.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{OTHER}\n</tool_call>"


def chat(*tools: pb.Tool, choice: pb.ToolChoice | None = None, parallel: bool | None = None) -> pb.ChatPrompt:
    """A question, with tools to answer it."""
    messages = [pb.ChatMessage(role="user", content="How is it in Paris?")]
    return pb.ChatPrompt(messages=messages, tools=tools, tool_choice=choice, parallel_tool_calls=parallel)


def joined(deltas: list[pb.ToolCallDelta]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of each call. An id and a name come once, with the first piece."""
    calls: dict[int, tuple[str, str, str]] = {}
    for delta in deltas:
        assert bool(delta.id) == bool(delta.name) == (delta.index not in calls)
        name, function, arguments = calls.get(delta.index, (delta.id, delta.name, ""))
        calls[delta.index] = (name, function, arguments + delta.arguments)
    assert list(calls) == list(range(len(calls)))
    return list(calls.values())
