"""gRPC adapter: MemoryService over `Weights` and `Exchange`."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from hekaton.facts import ModelSpec
from hekaton.rpc.convert import duration, spec_to_pb, tensor_to_pb
from hekaton.rpc.interceptors import Context
from hekaton.rpc.server import Servicer
from hekaton.v1 import memory_pb2 as pb
from hekaton.v1 import memory_pb2_grpc
from hekaton_memory.builder import Progress
from hekaton_memory.exchange import Exchange
from hekaton_memory.weights import Leased, Weights


class MemoryServicer(memory_pb2_grpc.MemoryServiceServicer):
    def __init__(self, weights: Weights, exchange: Exchange) -> None:
        self._weights = weights
        self._exchange = exchange

    async def PrepareModel(
        self, request: pb.PrepareModelRequest, context: Context
    ) -> AsyncIterator[pb.PrepareModelResponse]:
        async with aclosing(self._weights.prepare(request.source, request.dtype)) as events:
            async for event in events:
                if isinstance(event, ModelSpec):
                    yield pb.PrepareModelResponse(spec=spec_to_pb(event))
                else:
                    yield pb.PrepareModelResponse(progress=_progress(event))

    async def AcquireWeights(
        self, request: pb.AcquireWeightsRequest, context: Context
    ) -> AsyncIterator[pb.AcquireWeightsResponse]:
        acquired = self._weights.acquire(request.holder_id, request.digest, request.source, request.dtype)
        async with aclosing(acquired) as events:
            async for event in events:
                if isinstance(event, Leased):
                    yield pb.AcquireWeightsResponse(lease=_lease(event))
                else:
                    yield pb.AcquireWeightsResponse(progress=_progress(event))

    async def RenewLeases(self, request: pb.RenewLeasesRequest, context: Context) -> pb.RenewLeasesResponse:
        lost = self._weights.renew(request.holder_id, list(request.lease_ids))
        return pb.RenewLeasesResponse(lost_lease_ids=lost)

    async def ReleaseWeights(self, request: pb.ReleaseWeightsRequest, context: Context) -> pb.ReleaseWeightsResponse:
        self._weights.cache.release(request.lease_id)
        return pb.ReleaseWeightsResponse()

    async def GetTokenizer(self, request: pb.GetTokenizerRequest, context: Context) -> pb.GetTokenizerResponse:
        prepared = await self._weights.describe(request.digest, request.source, request.dtype)
        return pb.GetTokenizerResponse(
            tokenizer_json=prepared.tokenizer_json.encode(),
            chat_template=prepared.chat_template,
            special_tokens=prepared.special_tokens,
        )

    async def GetMemoryStatus(self, request: pb.GetMemoryStatusRequest, context: Context) -> pb.GetMemoryStatusResponse:
        cache = self._weights.cache
        images = [
            pb.CachedImage(digest=one.digest, bytes=one.nbytes, leases=one.leases, pinned=one.pinned)
            for one in cache.images()
        ]
        parcels = self._exchange.parcels
        sizes = parcels.sizes()
        return pb.GetMemoryStatusResponse(
            budget_bytes=cache.budget_bytes,
            used_bytes=cache.used_bytes,
            images=images,
            parcel_directory=str(parcels.directory),
            parcel_budget_bytes=parcels.budget_bytes,
            parcel_bytes=sum(sizes),
            parcels=len(sizes),
        )

    async def OfferKv(self, request: pb.OfferKvRequest, context: Context) -> pb.OfferKvResponse:
        return pb.OfferKvResponse(memory_address=await self._exchange.offer(request.request_id, request.epoch))

    async def ClaimKv(self, request: pb.ClaimKvRequest, context: Context) -> pb.ClaimKvResponse:
        held = await self._exchange.claim(request.request_id, request.epoch, request.memory_address)
        return pb.ClaimKvResponse(path=str(held.path), tokens=held.tokens, bytes=held.nbytes)

    async def FetchKv(self, request: pb.FetchKvRequest, context: Context) -> AsyncIterator[pb.FetchKvResponse]:
        async with aclosing(self._exchange.send(request.request_id, request.epoch)) as pieces:
            async for piece in pieces:
                yield piece


def servicer(weights: Weights, exchange: Exchange) -> Servicer:
    adapter = MemoryServicer(weights, exchange)
    return Servicer(
        "hekaton.v1.MemoryService",
        lambda server: memory_pb2_grpc.add_MemoryServiceServicer_to_server(adapter, server),
    )


def _progress(progress: Progress) -> pb.Progress:
    return pb.Progress(done_bytes=progress.done_bytes, total_bytes=progress.total_bytes)


def _lease(leased: Leased) -> pb.WeightsLease:
    return pb.WeightsLease(
        lease_id=leased.lease.lease_id,
        duration=duration(leased.duration_s),
        segment_path=str(leased.path),
        segment_bytes=leased.nbytes,
        tensors=[tensor_to_pb(entry) for entry in leased.prepared.tensors],
        config_json=leased.prepared.config_json,
    )
