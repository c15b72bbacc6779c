"""Whole outputs from the events of a generation."""

from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from hekaton.client.types import Accepted, Completion, Finished, GenerationEvent, Tokens, ToolCall, ToolCallDelta
from hekaton.errors import EngineFailed
from hekaton.facts import Logprobs


@dataclass(slots=True)
class _Partial:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Logprobs] = field(default_factory=list)
    calls: dict[int, ToolCall] = field(default_factory=dict)

    def take_call(self, delta: ToolCallDelta) -> None:
        call = self.calls.get(delta.index, ToolCall(delta.id, delta.name, ""))
        self.calls[delta.index] = replace(call, arguments=call.arguments + delta.arguments)


async def collect(events: AsyncIterator[GenerationEvent]) -> tuple[Completion, ...]:
    """Every output, in the order of their choice. Raises EngineFailed if the stream does not say why it ended."""
    request_id = ""
    partial: defaultdict[int, _Partial] = defaultdict(_Partial)
    done: dict[int, Completion] = {}
    async for event in events:
        match event:
            case Accepted():
                request_id = event.request_id
            case Tokens():
                output = partial[event.choice]
                output.text += event.text
                output.token_ids += event.token_ids
                output.logprobs += event.logprobs
                for delta in event.tool_calls:
                    output.take_call(delta)
            case Finished():
                output = partial[event.choice]
                done[event.choice] = Completion(
                    request_id,
                    output.text,
                    tuple(output.token_ids),
                    event.reason,
                    event.stats,
                    tuple(output.logprobs),
                    tuple(output.calls.values()),
                )
    if not done or len(done) < len(partial):
        raise EngineFailed("the stream ended without saying why")
    return tuple(done[choice] for choice in sorted(done))
