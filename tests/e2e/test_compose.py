"""docker-compose.yml, resolved and run as processes on loopback: the same commands, settings and health checks."""

import asyncio
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from fakes.checkpoints import write_checkpoint
from fakes.compose import ComposeFile, LocalStack, local_stack
from fakes.deploy import expressions, selectors, variables
from fakes.http import openai_client
from fakes.metrics import sample, scrape
from fakes.otlp import OtlpReceiver, otlp_receiver
from fakes.schemas import schema_of
from fakes.tools import SCHEMA
from hekaton.client import Client, SamplingOptions, Tokens
from hekaton.engine import reference
from hekaton.engine.tiny import END
from hekaton.errors import Cancelled
from hekaton.facts import Weights
from hekaton.store.embedded import find_server

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SERVICES = ("memory", "scheduler", "worker", "router")
ACQUIRE = "hekaton.v1.MemoryService/AcquireWeights"
KNOWS_TOOLS = (
    "{% if tools %}{{ tools | tojson }} <tool_call>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls or '' }}{% endfor %}"
)
CANCELLED = 1
"""The gRPC status code."""

Running = tuple[LocalStack, OtlpReceiver, Path]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """The stack of the compose file, with an OTLP receiver in Jaeger's place and a directory for /models."""
    directory = tmp_path_factory.mktemp("compose")
    models = directory / "models"
    write_checkpoint(models / "tiny", "llama")
    write_checkpoint(models / "other", "qwen2", seed=2, eos_token_id=END)
    (models / "other" / "chat_template.jinja").write_text(KNOWS_TOOLS)
    compose = ComposeFile.read(COMPOSE, variables={"DEVICE_MEMORY": "700KiB", "HOST_MEMORY": "64MiB"})
    async with otlp_receiver() as receiver:
        substitutions = {
            "/segments": str(directory / "segments"),
            "/models": str(models),
            "http://jaeger:4317": receiver.endpoint,
            "valkey-server": find_server(),
        }
        (directory / "segments").mkdir()
        async with local_stack(compose, substitutions, directory) as stack:
            for name in compose.start_order():
                if name == "redis":
                    await _start_redis(stack, directory)
                elif name in SERVICES:
                    await stack.start(name)
            yield stack, receiver, models


async def _start_redis(stack: LocalStack, directory: Path) -> None:
    """The file's own command, on a port and in a directory of this test."""
    host, port = stack.address("redis", 6379).split(":")
    data = directory / "redis"
    data.mkdir()
    stack.spawn("redis", ["--bind", host, "--port", port, "--dir", str(data)])
    for _ in range(100):
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
    raise TimeoutError("Redis does not answer")


async def test_generates_what_the_library_generates_and_traces_it(running: Running) -> None:
    stack, receiver, models = running
    options = SamplingOptions(max_tokens=24, temperature=0.0)
    async with Client(stack.address("router", 50051)) as client:
        for name in ("tiny", "other"):
            await client.register_model(name, f"{models}/{name}", dtype="float32")
        prompt = list(await client.tokenize("tiny", "abc"))
        done = await asyncio.gather(*(client.complete(name, prompt, options) for name in ("tiny", "other", "tiny")))
    for name, one in zip(("tiny", "other", "tiny"), done, strict=True):
        model = reference.load(str(models / name), "float32")
        assert reference.compare(model, prompt, list(one.token_ids)).first_difference is None
    await _check_one_trace(receiver)


async def test_the_openai_package_gets_what_the_native_client_gets(running: Running) -> None:
    stack, _, _ = running
    options = SamplingOptions(max_tokens=16, temperature=0.0)
    async with (
        Client(stack.address("router", 50051)) as native,
        openai_client(stack.address("router", 8000)) as client,
    ):
        expected = await native.complete("tiny", "abc", options)
        whole = await client.completions.create(model="tiny", prompt="abc", max_tokens=16, temperature=0)
        stream = await client.completions.create(model="tiny", prompt="abc", max_tokens=16, temperature=0, stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert whole.choices[0].text == streamed == expected.text
    assert whole.usage is not None
    assert whole.usage.completion_tokens == len(expected.token_ids)


async def test_the_openai_package_gets_json_that_follows_its_schema(running: Running) -> None:
    stack, _, _ = running
    schema = schema_of(3)
    wanted: dict[str, object] = {
        "type": "json_schema",
        "json_schema": {"name": "wanted", "schema": schema, "strict": True},
    }
    ask: dict[str, object] = {
        "model": "other",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 400,
        "temperature": 0,
    }
    async with openai_client(stack.address("router", 8000)) as client:
        create: Any = client.chat.completions.create
        done = await create(**ask, response_format=wanted)
        (choice,) = done.choices
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), schema)
        stream = await create(**ask, response_format=wanted, stream=True)
        streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert streamed == choice.message.content
        loose = await create(**ask, response_format={"type": "json_object"})
        assert loose.choices[0].message.content.startswith("{")
        for said, response_format in (
            ("cannot be followed: Unimplemented keys", wanted | {"json_schema": {"name": "w", "schema": {"not": {}}}}),
            ("cannot be followed: Invalid type", wanted | {"json_schema": {"name": "w", "schema": {"type": "x"}}}),
        ):
            with pytest.raises(openai.BadRequestError, match=said) as refused:
                await create(**ask, response_format=response_format)
            assert refused.value.param == "response_format"
        with pytest.raises(openai.BadRequestError, match="no end token"):
            await create(**ask | {"model": "tiny"}, response_format=wanted)


async def test_the_openai_package_gets_the_call_that_it_demands(running: Running) -> None:
    stack, _, _ = running
    schema = json.loads(SCHEMA) | {"additionalProperties": False}
    weather = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    clock = {"type": "function", "function": {"name": "get_time"}}
    ask: dict[str, object] = {
        "model": "other",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [clock, weather],
        "max_tokens": 120,
        "temperature": 0,
        "parallel_tool_calls": False,
    }
    async with openai_client(stack.address("router", 8000)) as client:
        create: Any = client.chat.completions.create
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            done = (await create(**ask, tool_choice=choice)).choices[0]
            assert (done.finish_reason, done.message.content) == ("tool_calls", None)
            (call,) = done.message.tool_calls
            named = {"get_weather": schema, "get_time": {"type": "object"}}
            jsonschema.validate(json.loads(call.function.arguments), named[call.function.name])
            deltas: list[Any] = []
            async for chunk in await create(**ask, tool_choice=choice, stream=True):
                deltas += chunk.choices[0].delta.tool_calls or []
            assert deltas[0].function.name == call.function.name
            assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
        assert call.function.name == "get_weather"
        with pytest.raises(openai.BadRequestError, match="knows no tools") as refused:
            await create(**ask | {"model": "tiny"})
        assert refused.value.param == "tools"
        wrong = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
        with pytest.raises(openai.BadRequestError, match="cannot be followed: Unimplemented keys") as refused:
            await create(**ask | {"tools": [wrong]}, tool_choice="required")
        assert refused.value.param == "tools[0].function.parameters"


async def test_every_service_is_scraped_and_a_known_workload_moves_what_it_should(running: Running) -> None:
    stack, _, _ = running
    addresses = {name: stack.address(name, 9100) for name in SERVICES}
    before = await scrape(addresses)
    await _known_workload(stack)
    after = await scrape(addresses)
    moved = {key: value - before.get(key, 0.0) for key, value in after.items()}
    for name in ("tiny", "other"):
        ended = {"model_name": name, "finished_reason": "length"}
        assert moved[sample("router", "request_success_total", **ended)] == 1
        assert moved[sample("router", "e2e_request_latency_seconds_count", model_name=name)] == 1
    other = {"model_name": "other"}
    assert moved[sample("router", "prompt_tokens_total", **other)] == 3
    assert moved[sample("router", "generation_tokens_total", **other)] == 8
    assert moved[sample("router", "tokens_on_time_total", **other)] == 8
    assert moved[sample("router", "time_to_first_token_seconds_count", **other)] == 1
    assert moved[sample("router", "inter_token_latency_seconds_count", **other)] == 7
    assert after[sample("router", "slo_attainment_ratio", **other)] == 1
    cancelled = sample("router", "request_failure_total", model_name="tiny", reason="CANCELLED")
    assert moved[cancelled] == 1
    assert after[sample("router", "workers")] == 1
    switches = [sample("worker", "model_switches_total", **other, reason=reason) for reason in Weights]
    assert sum(moved.get(series, 0) for series in switches) == 1
    assert moved[sample("worker", "model_switch_seconds_count", phase="exposed")] >= 1
    assert moved[sample("worker", "worker_tokens_total")] >= 16
    assert after[sample("worker", "weights_bytes")] > 0
    assert 0 <= after[sample("worker", "kv_cache_usage_perc")] <= 1
    assert moved[sample("scheduler", "placements_total")] == 3
    assert after[sample("scheduler", "scheduler_leader")] == after[sample("scheduler", "scheduler_workers")] == 1
    assert 0 < after[sample("memory", "weight_cache_used_bytes")] < after[sample("memory", "weight_cache_budget_bytes")]


async def test_every_metric_that_the_dashboard_and_the_alerts_name_is_told_by_a_service(running: Running) -> None:
    stack, _, _ = running
    await _known_workload(stack)
    told: defaultdict[str, set[str]] = defaultdict(set)
    options = SamplingOptions(max_tokens=450, temperature=0.0, ignore_eos=True)
    async with (
        Client(stack.address("router", 50051)) as client,
        aclosing(client.generate("tiny", [1, 2, 3], options)) as events,
    ):
        # Some are told of a model only while it has requests.
        await anext(events)
        for _, name, labels in await scrape({name: stack.address(name, 9100) for name in SERVICES}):
            told[name] |= {label for label, _ in labels}
    named = set().union(*map(selectors, expressions()), variables())
    unknown = {
        one for one in named if one.metric != "up" and not (one.metric in told and one.labels <= told[one.metric])
    }
    assert not unknown


async def _known_workload(stack: LocalStack) -> None:
    """One request of each model, and one that is cancelled."""
    async with Client(stack.address("router", 50051)) as client:
        for name in ("tiny", "other"):
            await client.complete(name, [1, 2, 3], SamplingOptions(max_tokens=8, temperature=0.0, ignore_eos=True))
        with pytest.raises(Cancelled):
            await _cancel_while_it_streams(client, f"cancelled-{uuid.uuid4().hex}")


async def _check_one_trace(receiver: OtlpReceiver) -> None:
    """One request's spans from all four services, in one trace, each inside its parent's service chain."""
    trace = await _trace_with(receiver, {f"hekaton-{name}" for name in SERVICES}, ACQUIRE)
    by_id = {span.span_id: (service, span) for service, span in trace}
    parents = {
        (service, span.name): by_id[span.parent_span_id] for service, span in trace if span.parent_span_id in by_id
    }
    root = [(service, span) for service, span in trace if span.parent_span_id not in by_id]
    assert [(service, span.name) for service, span in root] == [
        ("hekaton-router", "hekaton.v1.InferenceService/Generate")
    ]
    load = parents["hekaton-memory", ACQUIRE]
    assert load[0] == "hekaton-worker"
    run = parents[(load[0], load[1].name)]
    assert run[0] == "hekaton-worker"
    assert parents[(run[0], run[1].name)][0] == "hekaton-router"
    place = next(key for key in parents if key[0] == "hekaton-scheduler")
    assert parents[place][0] == "hekaton-router"
    for _, span in trace:
        if span.parent_span_id in by_id:
            assert span.start_time_unix_nano >= by_id[span.parent_span_id][1].start_time_unix_nano


async def _trace_with(receiver: OtlpReceiver, services: set[str], name: str) -> list[tuple[str, Span]]:
    """The first trace that has spans of all these services, one of them of this name, and every span's parent."""
    for _ in range(100):
        for trace_id in {span.trace_id for _, span in receiver.spans if span.name == name}:
            trace = [(service, span) for service, span in receiver.spans if span.trace_id == trace_id]
            orphans = {span.parent_span_id for _, span in trace} - {span.span_id for _, span in trace}
            if {service for service, _ in trace} == services and orphans == {b""}:
                return trace
        await asyncio.sleep(0.1)
    raise AssertionError(f"no trace of all of {services} has {name}: {[(s, x.name) for s, x in receiver.spans]}")


async def test_cancelling_really_cancels_with_tracing_on(running: Running) -> None:
    stack, receiver, _ = running
    request_id = "to-be-cancelled"
    async with Client(stack.address("router", 50051)) as client:
        with pytest.raises(Cancelled):
            await _cancel_while_it_streams(client, request_id)
        for _ in range(100):
            (worker,) = (await client.pool()).workers
            if worker.kv_bytes == 0 and worker.requests_running == 0:
                break
            await asyncio.sleep(0.1)
        assert (worker.kv_bytes, worker.requests_running) == (0, 0)
    for _ in range(50):
        ended = [span for _, span in receiver.spans if _attribute(span, "hekaton.request_id") == request_id]
        codes = {_attribute(span, "rpc.grpc.status_code") for span in ended}
        if str(CANCELLED) in codes:
            return
        await asyncio.sleep(0.1)
    raise AssertionError("no span of the request says that it was cancelled")


async def _cancel_while_it_streams(client: Client, request_id: str) -> None:
    options = SamplingOptions(max_tokens=450, temperature=0.0)
    async with aclosing(client.generate("tiny", [1, 2, 3], options, request_id=request_id)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                await client.cancel(request_id)


def _attribute(span: Span, key: str) -> str:
    for attribute in span.attributes:
        if attribute.key == key:
            return attribute.value.string_value or str(attribute.value.int_value)
    return ""
