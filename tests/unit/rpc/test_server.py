"""The plumbing over real gRPC: errors, cancellation, traces, health, drain."""

import asyncio
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fakes.otlp import otlp_receiver
from fakes.services import ScriptedInference, scripted_server
from hekaton.config import SchedulerSettings
from hekaton.errors import HekatonError, InvalidArgument, ModelNotFound, NoWorker, StaleTerm
from hekaton.rpc.channel import open_channel
from hekaton.rpc.errors import from_rpc_error
from hekaton.rpc.server import RunningServer, serving
from hekaton.v1 import inference_pb2, inference_pb2_grpc

Running = tuple[RunningServer, ScriptedInference, grpc.aio.Channel]


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Tracing on, for the whole process: a provider can be set only once."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


@pytest.fixture
async def running(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    async with scripted_server(lambda: None) as (server, servicer), open_channel(server.address) as channel:
        yield server, servicer, channel


async def raised(error: HekatonError) -> HekatonError:
    """What a client sees when a handler raises `error`."""

    def on_call() -> None:
        raise error

    async with scripted_server(on_call) as (server, _), open_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as unary:
            await stub.Cancel(inference_pb2.CancelRequest())
        with pytest.raises(grpc.aio.AioRpcError) as streaming:
            await stub.Generate(inference_pb2.GenerateRequest()).read()
    assert unary.value.code() == streaming.value.code()
    return from_rpc_error(streaming.value)


async def test_an_error_arrives_as_the_same_class_with_its_details() -> None:
    seen = await raised(NoWorker("no worker is up; start one", retry_after_s=2.5))
    assert type(seen) is NoWorker
    assert (seen.message, seen.retry_after_s) == ("no worker is up; start one", 2.5)
    seen = await raised(ModelNotFound("no model x"))
    assert (type(seen), seen.retry_after_s) == (ModelNotFound, None)


async def test_an_unexpected_error_tells_the_client_nothing_of_itself(running: Running) -> None:
    stub = inference_pb2_grpc.InferenceServiceStub(running[2])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Detokenize(inference_pb2.DetokenizeRequest())
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())


@pytest.mark.parametrize("malformed", [b"\xff" * 11, b"\x0a\x02\xc3\x28", b"\x0a\x7f"])
async def test_a_message_that_cannot_be_decoded_is_the_clients_fault(running: Running, malformed: bytes) -> None:
    """No message at all, a text that is no UTF-8, one that is cut off."""
    service = "/hekaton.v1.InferenceService"
    unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = running[2].unary_unary(f"{service}/Cancel")
    streaming: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = running[2].unary_stream(f"{service}/Generate")
    with pytest.raises(grpc.aio.AioRpcError) as once:
        await unary(malformed)
    with pytest.raises(grpc.aio.AioRpcError) as streamed:
        await streaming(malformed).read()
    for refused in (once.value, streamed.value):
        assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(from_rpc_error(refused), InvalidArgument)
    assert not running[1].messages


async def test_a_long_error_arrives_in_part() -> None:
    """A client refuses metadata beyond some KiB, and would learn of that and of nothing else."""
    arrived = await raised(InvalidArgument("\U0001f600" * 10_000))
    assert isinstance(arrived, InvalidArgument)
    assert arrived.message.startswith("\U0001f600" * 100)


async def test_cancelling_a_stream_stops_its_handler_and_marks_its_span(
    spans: InMemorySpanExporter, running: Running
) -> None:
    _, servicer, channel = running
    call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(inference_pb2.GenerateRequest())
    await call.read()
    call.cancel()
    await asyncio.wait_for(servicer.cancelled.wait(), 2)
    await asyncio.sleep(0.05)
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.CANCELLED.value[0]
    assert span.status.status_code is trace.StatusCode.ERROR


async def test_cancelling_a_unary_call_with_tracing_on_really_cancels_it(
    spans: InMemorySpanExporter, running: Running
) -> None:
    _, servicer, channel = running
    with trace.get_tracer("test").start_as_current_span("caller"):
        task = asyncio.ensure_future(
            inference_pb2_grpc.InferenceServiceStub(channel).Tokenize(inference_pb2.TokenizeRequest())
        )
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(servicer.cancelled.wait(), 2)


async def test_a_deadline_stops_the_handler(running: Running) -> None:
    _, servicer, channel = running
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await inference_pb2_grpc.InferenceServiceStub(channel).Tokenize(inference_pb2.TokenizeRequest(), timeout=0.1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(servicer.cancelled.wait(), 2)


async def test_the_callers_span_is_the_parent_of_the_servers(spans: InMemorySpanExporter, running: Running) -> None:
    with trace.get_tracer("test").start_as_current_span("caller"):
        await inference_pb2_grpc.InferenceServiceStub(running[2]).Cancel(inference_pb2.CancelRequest())
        call = inference_pb2_grpc.InferenceServiceStub(running[2]).Generate(inference_pb2.GenerateRequest())
        await call.read()
        call.cancel()
        await asyncio.wait_for(running[1].cancelled.wait(), 2)
        await asyncio.sleep(0.05)
    *servers, caller = spans.get_finished_spans()
    assert len(servers) == 2
    assert caller.context is not None
    for server in servers:
        assert server.parent is not None
        assert (server.parent.span_id, server.parent.trace_id) == (caller.context.span_id, caller.context.trace_id)


async def test_spans_reach_an_otlp_endpoint() -> None:
    async with otlp_receiver() as receiver:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SPAN_SCRIPT, receiver.endpoint)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert [(service, span.name) for service, span in receiver.spans] == [("hekaton-test", "one")]


SPAN_SCRIPT = """
import sys
from hekaton import telemetry
with telemetry.tracing("test", "1", sys.argv[1]), telemetry.tracer().start_as_current_span("one"):
    pass
"""


async def test_health_says_not_serving_until_told_and_while_draining(running: Running) -> None:
    server, servicer, channel = running
    health = health_pb2_grpc.HealthStub(channel)
    states = health_pb2.HealthCheckResponse
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == states.NOT_SERVING
    await server.set_serving(True)
    check = health_pb2.HealthCheckRequest(service="hekaton.v1.InferenceService")
    assert (await health.Check(check)).status == states.SERVING
    watch = health.Watch(check)
    assert (await watch.read()).status == states.SERVING
    call = inference_pb2_grpc.InferenceServiceStub(channel).Generate(inference_pb2.GenerateRequest())
    await call.read()
    drained = asyncio.ensure_future(server.drain(1.0))
    assert (await watch.read()).status == states.NOT_SERVING
    await call.read()
    await drained
    assert servicer.cancelled.is_set()


async def test_an_address_beyond_loopback_needs_a_flag() -> None:
    settings = SchedulerSettings(redis_url="redis://unused", listen="0.0.0.0:0")
    with pytest.raises(InvalidArgument, match="insecure_listen"):
        async with serving(settings, []):
            pass


async def test_a_stale_term_carries_the_newest() -> None:
    seen = await raised(StaleTerm("term 4 is over", newest=9))
    assert isinstance(seen, StaleTerm)
    assert (seen.message, seen.newest) == ("term 4 is over", 9)
