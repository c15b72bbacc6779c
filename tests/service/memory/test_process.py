"""The memory service's process: `python -m hekaton_memory`, killed, restarted and stopped."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fakes.checkpoints import write_checkpoint
from fakes.otlp import OtlpReceiver, otlp_receiver
from fakes.waiting import eventually
from hekaton.rpc.channel import open_channel
from hekaton.v1 import common_pb2, memory_pb2_grpc
from hekaton.v1 import memory_pb2 as pb

REDIS_AWAY = "redis://127.0.0.1:1/0"


@asynccontextmanager
async def process(directory: Path, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that listens on a socket beside its directory; killed at the end of the block if it still runs."""
    command = [sys.executable, "-m", "hekaton_memory", "--redis-url", REDIS_AWAY, "--listen", f"unix:{directory}.sock"]
    child = await asyncio.create_subprocess_exec(
        *command, "--segment-dir", str(directory), "--drain-timeout-s", "1", *flags, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@asynccontextmanager
async def client(directory: Path) -> AsyncIterator[memory_pb2_grpc.MemoryServiceStub]:
    async with open_channel(f"unix:{directory}.sock") as channel:
        stub = memory_pb2_grpc.MemoryServiceStub(channel)
        await stub.GetMemoryStatus(pb.GetMemoryStatusRequest(), wait_for_ready=True, timeout=60)
        yield stub


async def prepare(directory: Path, source: Path) -> common_pb2.ModelSpec:
    async with client(directory) as stub:
        return [event async for event in stub.PrepareModel(pb.PrepareModelRequest(source=str(source)))][-1].spec


async def prepare_and_crash(directory: Path, source: Path, receiver: OtlpReceiver) -> common_pb2.ModelSpec:
    async def traced() -> bool:
        return any(span.name == "build image" for _, span in receiver.spans)

    async with process(directory, "--otlp-endpoint", receiver.endpoint) as child:
        spec = await prepare(directory, source)
        await eventually(traced)
        child.kill()
        return spec


async def test_a_restart_adopts_what_a_crash_left_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    directory, source = tmp_path / "segments", write_checkpoint(tmp_path / "checkpoint")
    async with otlp_receiver() as receiver:
        spec = await prepare_and_crash(directory, source, receiver)
    spans = {span.name: span for _, span in receiver.spans}
    assert spans["build image"].parent_span_id == spans["hekaton.v1.MemoryService/PrepareModel"].span_id
    (directory / "0badc0de.img").write_bytes(b"half an image")
    (directory / "build-orphan").mkdir()
    (directory / "build-orphan" / "part").touch()
    async with process(directory) as child:
        async with client(directory) as stub:
            request = pb.AcquireWeightsRequest(holder_id="worker", digest=spec.digest, source="it is not read")
            (event,) = [event async for event in stub.AcquireWeights(request)]
            assert Path(event.lease.segment_path) == directory / f"{spec.digest}.img"
            assert sorted(path.stem for path in directory.iterdir()) == [spec.digest, spec.digest, "kv"]
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0
    assert not directory.exists()


async def test_the_service_itself_never_loads_torch() -> None:
    program = "import hekaton_memory.__main__, sys; sys.exit('torch' in sys.modules)"
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    assert await child.wait() == 0
