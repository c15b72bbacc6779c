"""The Python client: `async with Client("127.0.0.1:50051") as client: …`, or `with SyncClient(…)` without asyncio."""

from hekaton.client.client import Client
from hekaton.client.sync import SyncClient
from hekaton.client.types import (
    Accepted,
    Chat,
    Completion,
    Finished,
    GenerationEvent,
    Message,
    Model,
    Pool,
    Prompt,
    SamplingOptions,
    Tokens,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Worker,
)
from hekaton.rpc.tls import ClientTls

__all__ = [
    "Accepted",
    "Chat",
    "Client",
    "ClientTls",
    "Completion",
    "Finished",
    "GenerationEvent",
    "Message",
    "Model",
    "Pool",
    "Prompt",
    "SamplingOptions",
    "SyncClient",
    "Tokens",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Worker",
]
