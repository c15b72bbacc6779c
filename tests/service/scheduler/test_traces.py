"""What scheduler and worker add to a request's trace, as a real OTLP receiver sees it."""

from dataclasses import replace

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from redis.asyncio import Redis

from fakes.otlp import otlp_receiver
from fakes.schedulers import scheduler_process
from fakes.waiting import eventually
from fakes.workers import accept, add_model, new_record, worker_process
from hekaton.store.embedded import EmbeddedRedis

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
ROUTER_SPAN_ID = "b7ad6b7169203331"


def attributes(span: Span) -> dict[str, str]:
    return {item.key: item.value.string_value or str(item.value.int_value) for item in span.attributes}


async def test_placement_and_run_are_children_of_the_routers_span(redis_server: EmbeddedRedis, redis: Redis) -> None:
    await add_model(redis)
    async with otlp_receiver() as receiver:
        traced = f"--otlp-endpoint={receiver.endpoint}"
        async with (
            scheduler_process(redis_server.url, redis, "s1", traced),
            worker_process(redis_server.url, redis, "w1", traced),
        ):
            context = f"00-{TRACE_ID}-{ROUTER_SPAN_ID}-01"
            await accept(redis, replace(new_record("r1"), trace_context=context))

            async def complete() -> bool:
                return {"place m1", "run m1", "copy m1"} <= {span.name for _, span in receiver.spans}

            await eventually(complete)
    spans = {span.name: (service, span) for service, span in receiver.spans}
    assert {span.trace_id.hex() for _, span in spans.values()} == {TRACE_ID}
    (scheduler, place), (worker, run), (_, copy) = (spans[name] for name in ("place m1", "run m1", "copy m1"))
    assert (scheduler, worker) == ("hekaton-scheduler", "hekaton-worker")
    assert place.parent_span_id.hex() == run.parent_span_id.hex() == ROUTER_SPAN_ID
    assert copy.parent_span_id == run.span_id
    assert attributes(place)["hekaton.worker_id"] == attributes(run)["hekaton.worker_id"] == "w1"
    assert attributes(run)["gen_ai.usage.output_tokens"] == "20"
    assert "turn" in {event.name for event in run.events}
    assert place.end_time_unix_nano <= run.end_time_unix_nano
