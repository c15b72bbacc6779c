"""KV that changes hands through real memory services: on one host, and between two."""

import asyncio
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from fakes.memories import MemoryClient, running_memory
from fakes.parcels import Reply, bad_peer, piece, write_parcel
from hekaton.engine.kv import BLOCK_TOKENS
from hekaton.errors import HekatonError, KvLost, ResourceExhausted
from hekaton.rpc.errors import from_rpc_error
from hekaton.store.embedded import EmbeddedRedis
from hekaton.v1 import memory_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")
BUDGET_BYTES = 12 << 20
Hosts = tuple[MemoryClient, MemoryClient]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hosts]:
    """The memory services of two hosts."""
    folder = tmp_path_factory.mktemp("hosts")
    with EmbeddedRedis() as redis:
        async with (
            running_memory(redis.url, folder / "a", parcel_memory=BUDGET_BYTES) as one,
            running_memory(redis.url, folder / "b", parcel_memory=BUDGET_BYTES) as other,
        ):
            yield one, other


@pytest.fixture(autouse=True)
def nothing_stays(hosts: Hosts) -> Iterator[None]:
    yield
    for host in hosts:
        for path in kv_of(host).iterdir():
            pytest.fail(f"{path} was left")


def kv_of(host: MemoryClient) -> Path:
    return host.directory / "kv"


async def offer(host: MemoryClient, request_id: str, epoch: int = 1) -> str:
    """Where others fetch it. Raises the service's typed error."""
    try:
        response = await host.stub.OfferKv(pb.OfferKvRequest(request_id=request_id, epoch=epoch), timeout=30)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return response.memory_address


async def claim(host: MemoryClient, request_id: str, address: str = "", epoch: int = 1) -> pb.ClaimKvResponse:
    request = pb.ClaimKvRequest(request_id=request_id, epoch=epoch, memory_address=address)
    try:
        return await host.stub.ClaimKv(request, timeout=30)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def taken(claimed: pb.ClaimKvResponse, host: MemoryClient) -> bytes:
    """Takes a claimed parcel away, as an engine does."""
    path = Path(claimed.path)
    assert path.parent == kv_of(host)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    path.unlink()
    return content


async def test_what_one_worker_leaves_another_of_the_host_is_given(hosts: Hosts) -> None:
    host, _ = hosts
    status = await host.status()
    assert (status.parcel_directory, status.parcel_budget_bytes) == (str(kv_of(host)), BUDGET_BYTES)
    assert stat.S_IMODE(kv_of(host).stat().st_mode) == 0o700
    path = write_parcel(kv_of(host), "r", 4)
    assert await offer(host, "r", 4) == host.settings.listen
    status = await host.status()
    assert (status.parcels, status.parcel_bytes) == (1, path.stat().st_size)
    for epoch, request_id in ((3, "r"), (5, "r"), (4, "s")):
        with pytest.raises(KvLost):
            await claim(host, request_id, host.settings.listen, epoch)
    claimed = await claim(host, "r", host.settings.listen, 4)
    assert (claimed.path, claimed.tokens, claimed.bytes) == (str(path), 3 * BLOCK_TOKENS, path.stat().st_size)
    path.unlink()


async def test_what_lies_on_another_host_is_fetched_and_gone_there(hosts: Hosts) -> None:
    giver, taker = hosts
    path = write_parcel(kv_of(giver), "r", blocks=7)
    content = path.read_bytes()
    assert len(content) > 3 << 20, "several pieces"
    address = await offer(giver, "r")
    claimed = await claim(taker, "r", address)
    assert await claim(taker, "r", address) == claimed, "a claim may be repeated"
    assert list(kv_of(giver).iterdir()) == []
    assert taken(claimed, taker) == content


async def test_many_parcels_cross_at_once(hosts: Hosts) -> None:
    names = [f"r{number}" for number in range(8)]
    for name in names:
        write_parcel(kv_of(hosts[0]), name, blocks=2)
    address = await offer(hosts[0], "r0")
    claimed = await asyncio.gather(*(claim(hosts[1], name, address) for name in names))
    for one in claimed:
        taken(one, hosts[1])


async def with_a_flipped_bit(parcel: bytes, server: grpc.aio.Server) -> AsyncIterator[pb.FetchKvResponse]:
    yield piece(parcel[:1000], len(parcel))
    yield piece(parcel[1000:], len(parcel), damage=1)


async def to_its_death(parcel: bytes, server: grpc.aio.Server) -> AsyncIterator[pb.FetchKvResponse]:
    yield piece(parcel[:1000], len(parcel))
    death = asyncio.create_task(server.stop(0))
    await asyncio.Event().wait()
    await death


async def cut_short(parcel: bytes, server: grpc.aio.Server) -> AsyncIterator[pb.FetchKvResponse]:
    yield piece(parcel[:-1], len(parcel))


async def too_much(parcel: bytes, server: grpc.aio.Server) -> AsyncIterator[pb.FetchKvResponse]:
    yield piece(parcel + b"x", len(parcel))


async def of_another_request(parcel: bytes, server: grpc.aio.Server) -> AsyncIterator[pb.FetchKvResponse]:
    yield piece(parcel.replace(b"bad", b"BAD"), len(parcel))


async def nothing(parcel: bytes, server: grpc.aio.Server) -> AsyncIterator[pb.FetchKvResponse]:
    return
    yield pb.FetchKvResponse()


@pytest.mark.parametrize(
    "reply",
    [with_a_flipped_bit, to_its_death, cut_short, too_much, of_another_request, nothing],
    ids=lambda one: one.__name__,
)
async def test_what_does_not_come_whole_is_lost_and_leaves_nothing(hosts: Hosts, reply: Reply, tmp_path: Path) -> None:
    content = write_parcel(tmp_path, "bad", blocks=1).read_bytes()
    async with bad_peer(content, reply) as address:
        with pytest.raises(KvLost):
            await claim(hosts[1], "bad", address)
    assert (await hosts[1].status()).parcels == 0


async def test_a_host_that_is_not_there_is_no_error_but_a_loss(hosts: Hosts, tmp_path: Path) -> None:
    with pytest.raises(KvLost):
        await claim(hosts[1], "r", f"unix:{tmp_path}/nobody")


async def test_more_than_the_budget_is_refused_on_either_side(hosts: Hosts) -> None:
    giver, taker = hosts
    write_parcel(kv_of(giver), "small", blocks=10)
    address = await offer(giver, "small")
    write_parcel(kv_of(giver), "large", blocks=20)
    with pytest.raises(ResourceExhausted, match="parcel_memory"):
        await offer(giver, "large")
    with pytest.raises(KvLost):
        await claim(giver, "large")
    own = write_parcel(kv_of(taker), "own", blocks=20)
    with pytest.raises(ResourceExhausted, match="parcel_memory") as refused:
        await claim(taker, "small", address)
    assert isinstance(refused.value, HekatonError)
    own.unlink()
    taken(await claim(taker, "small", address), taker)
