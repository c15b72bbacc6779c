"""What the router asks a memory service for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hekaton.errors import Unavailable
from hekaton.facts import CatalogEntry, ModelSpec
from hekaton.rpc import convert
from hekaton.rpc.channel import open_channel
from hekaton.rpc.tls import ClientTls
from hekaton.v1 import memory_pb2, memory_pb2_grpc
from hekaton_router.view import PoolView

PREPARE_TIMEOUT_S = 3600.0
TOKENIZER_TIMEOUT_S = 600.0
"""The memory service may have to read the checkpoint again."""


class Memories:
    """Any live memory service. The calls raise its typed errors, Unavailable if there is none."""

    def __init__(self, view: PoolView, tls: ClientTls | None = None) -> None:
        self._view = view
        self._tls = tls

    async def prepare(self, source: str, dtype: str) -> ModelSpec:
        """Reads and checks a checkpoint; returns when it can serve."""
        request = memory_pb2.PrepareModelRequest(source=source, dtype=dtype)
        async with self._stub() as stub:
            async for response in stub.PrepareModel(request, timeout=PREPARE_TIMEOUT_S):
                if response.HasField("spec"):
                    return convert.spec_from_pb(response.spec)
        raise Unavailable("the memory service ended the preparation without a result; register the model again")

    async def tokenizer(self, entry: CatalogEntry, spec: ModelSpec) -> memory_pb2.GetTokenizerResponse:
        request = memory_pb2.GetTokenizerRequest(digest=spec.digest, source=entry.source, dtype=entry.dtype)
        async with self._stub() as stub:
            return await stub.GetTokenizer(request, timeout=TOKENIZER_TIMEOUT_S)

    @asynccontextmanager
    async def _stub(self) -> AsyncIterator[memory_pb2_grpc.MemoryServiceStub]:
        if not self._view.memories:
            raise Unavailable("no memory service lives: start one on the workers' host")
        async with open_channel(self._view.memories[0], tls=self._tls) as channel:
            yield memory_pb2_grpc.MemoryServiceStub(channel)
