"""What a client may rely on when something is wrong: the whole stack on tiny models, over real gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
import torch

from fakes.checkpoints import write_checkpoint
from fakes.commands import hekaton
from fakes.waiting import eventually
from hekaton.cli.supervisor import Stack, StackOptions
from hekaton.client import Client, SamplingOptions, Tokens, Worker
from hekaton.engine import reference
from hekaton.errors import (
    DeadlineExceeded,
    InvalidArgument,
    InvalidCheckpoint,
    ModelNotFound,
    ModelTooLarge,
    NoWorker,
)
from hekaton.facts import FinishReason

GREEDY = SamplingOptions(max_tokens=20, temperature=0.0)
LONG = SamplingOptions(max_tokens=450, temperature=0.0)
DEVICE_BYTES = 700 << 10
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(root / "tiny", "llama")
    write_checkpoint(root / "gpt", "gpt2", seed=2)
    write_checkpoint(root / "qwen", "qwen3", seed=3)
    write_checkpoint(root / "large", "llama", hidden_size=128, intermediate_size=512)
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    segments = tmp_path_factory.mktemp("segments")
    options = StackOptions(
        device_memory=str(DEVICE_BYTES),
        host_memory="64MiB",
        shm_dir=segments,
        log_dir=tmp_path_factory.mktemp("logs"),
    )
    async with Stack(options, print) as stack:
        yield stack
        assert list(segments.rglob("*.img"))
    assert not list(segments.iterdir())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(stack: Stack, checkpoints: Path) -> AsyncIterator[Client]:
    async with Client(stack.address) as client:
        for name in ("tiny", "gpt", "qwen"):
            await client.register_model(name, str(checkpoints / name), dtype="float32")
        yield client


async def until_worker(client: Client, holds: Callable[[Worker], bool]) -> None:
    """Waits until the only worker says so in a heartbeat."""
    for _ in range(100):
        workers = (await client.pool()).workers
        if workers and holds(workers[0]):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"the worker never got there: {workers}")


def idle(worker: Worker) -> bool:
    return (worker.kv_bytes, worker.requests_running, worker.requests_waiting) == (0, 0, 0)


async def test_three_models_that_do_not_fit_together_are_served_exactly(client: Client, checkpoints: Path) -> None:
    names = ["tiny", "gpt", "qwen"] * 3
    specs = [(await client.get_model(name)).spec for name in set(names)]
    assert sum(spec.weight_bytes for spec in specs if spec) > DEVICE_BYTES
    prompts = [[7 * index + step for step in range(5 + 9 * index)] for index in range(len(names))]
    calls = (client.complete(name, prompt, GREEDY) for name, prompt in zip(names, prompts, strict=True))
    done = await asyncio.gather(*calls)
    models = {name: reference.load(str(checkpoints / name), "float32") for name in set(names)}
    for name, prompt, one in zip(names, prompts, done, strict=True):
        found = reference.compare(models[name], prompt, list(one.token_ids))
        assert found.first_difference is None
        assert len(one.token_ids) == 20


async def test_an_unknown_model_is_not_found(client: Client) -> None:
    with pytest.raises(ModelNotFound, match="nobody"):
        await client.complete("nobody", "hello")


async def test_a_prompt_that_is_empty_or_too_long_is_refused_with_the_limit(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="empty"):
        await client.complete("tiny", "")
    with pytest.raises(InvalidArgument, match="512"):
        await client.complete("tiny", [1] * 600)


async def test_a_model_larger_than_the_device_is_refused_with_both_sizes(client: Client, checkpoints: Path) -> None:
    model = await client.register_model("large", str(checkpoints / "large"), dtype="float32")
    assert model.spec is not None
    with pytest.raises(ModelTooLarge) as caught:
        await client.complete("large", "hello")
    assert str(DEVICE_BYTES) in caught.value.message.replace(",", "")
    await client.delete_model("large")


async def test_a_bad_checkpoint_is_refused_and_the_rest_goes_on(
    client: Client, checkpoints: Path, tmp_path: Path
) -> None:
    truncated = write_checkpoint(tmp_path / "truncated", "llama")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    corrupt = write_checkpoint(tmp_path / "corrupt", "llama")
    (corrupt / "model.safetensors").write_bytes(b"\xff" * 4096)
    pickled = write_checkpoint(tmp_path / "pickled", "llama")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    for directory, said in ((truncated, "truncated"), (corrupt, "corrupt"), (pickled, "pickled")):
        with pytest.raises(InvalidCheckpoint, match=said):
            await client.register_model("bad", str(directory))
    with pytest.raises(ModelNotFound):
        await client.get_model("bad")
    assert len((await client.complete("tiny", "still there?", GREEDY)).token_ids) == 20


async def test_a_client_that_goes_away_stops_the_work_and_frees_its_kv(client: Client) -> None:
    async with aclosing(client.generate("tiny", "hello", LONG)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                break
    await until_worker(client, idle)


async def test_a_deadline_that_passes_stops_the_work_and_frees_its_kv(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.complete("tiny", "hello", LONG, timeout_s=0.3)
    await until_worker(client, idle)


async def test_a_seed_gives_the_same_tokens_whatever_else_runs(client: Client) -> None:
    options = SamplingOptions(max_tokens=16, temperature=1.0, top_p=0.9, seed=11)
    alone = await client.complete("qwen", "once", options)
    crowd = [client.complete(name, "upon a time", GREEDY) for name in ("tiny", "gpt", "qwen", "qwen")]
    again, *_ = await asyncio.gather(client.complete("qwen", "once", options), *crowd)
    assert again.token_ids == alone.token_ids


PLAIN = SamplingOptions(max_tokens=16, temperature=1.0, seed=3)


@pytest.mark.parametrize(
    "change",
    [
        {"max_tokens": 5},
        {"temperature": 0.0},
        {"seed": 4},
        {"top_k": 1},
        {"top_p": 0.01},
        {"min_p": 1.0},
        {"repetition_penalty": 0.05},
        {"presence_penalty": -2.0},
        {"frequency_penalty": -2.0},
        {"logit_bias": {7: 100.0}},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_every_field_of_sampling_changes_what_comes(client: Client, change: dict[str, Any]) -> None:
    plain = await client.complete("tiny", "hello", PLAIN)
    changed = await client.complete("tiny", "hello", replace(PLAIN, **change))
    assert changed.token_ids != plain.token_ids
    again = await client.complete("tiny", "hello", replace(PLAIN, **change))
    assert again.token_ids == changed.token_ids


async def test_a_generation_stops_at_tokens_and_texts_but_not_before_min_tokens(client: Client) -> None:
    plain = await client.complete("tiny", "hello", PLAIN)
    fourth = plain.token_ids[3]
    at = plain.token_ids.index(fourth) + 1
    by_token = await client.complete("tiny", "hello", replace(PLAIN, stop_token_ids=(fourth,)))
    assert (by_token.token_ids, by_token.reason) == (plain.token_ids[:at], FinishReason.STOP)
    later = await client.complete("tiny", "hello", replace(PLAIN, stop_token_ids=(fourth,), min_tokens=10))
    assert len(later.token_ids) >= 10
    middle = plain.text[len(plain.text) // 2 :][:2]
    by_text = await client.complete("tiny", "hello", replace(PLAIN, stop=(middle,)))
    assert (by_text.text, by_text.reason) == (plain.text[: plain.text.index(middle)], FinishReason.STOP)
    assert by_text.token_ids == plain.token_ids[: by_text.stats.completion_tokens]


async def test_log_probabilities_are_those_of_transformers(client: Client, checkpoints: Path) -> None:
    prompt = [3, 1, 4, 1, 5]
    done = await client.complete("qwen", prompt, replace(PLAIN, logprobs=3, repetition_penalty=1.3))
    model = reference.load(str(checkpoints / "qwen"), "float32")
    logits = model(torch.tensor([[*prompt, *done.token_ids]])).logits[0, len(prompt) - 1 : -1]
    expected = logits.detach().log_softmax(-1)
    assert len(done.logprobs) == len(done.token_ids) == 16
    for told, token_id, row in zip(done.logprobs, done.token_ids, expected, strict=True):
        top = row.topk(3)
        assert told.logprob == pytest.approx(float(row[token_id]), abs=1e-4)
        assert told.top_ids == tuple(top.indices.tolist())
        assert told.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-4)


async def test_what_a_model_costs_is_measured_when_it_is_registered_and_can_be_simulated(
    client: Client, stack: Stack, tmp_path: Path
) -> None:
    async def measured() -> bool:
        return bool((await client.get_model("tiny")).profiles)

    await eventually(measured)
    shown = await asyncio.to_thread(hekaton, "models", "show", "tiny", "--json", address=stack.address)
    (profile,) = json.loads(shown.stdout)["profiles"]
    assert profile["device_memory_bytes"] == DEVICE_BYTES
    assert min(profile["costs"][cost] for cost in ("load_s", "prefill_base_s", "step_base_s")) > 0
    file = tmp_path / "tiny.json"
    file.write_text(shown.stdout)
    run = ("sim", "run", "--device", str(file), "--models", "2", "--gpus", "1", "--duration", "5", "--json")
    report = json.loads((await asyncio.to_thread(hekaton, *run)).stdout)
    assert (report["unfinished"], report["models"]) == (0, 2)


async def test_a_killed_worker_costs_a_pause_and_no_token(client: Client, stack: Stack, checkpoints: Path) -> None:
    """The supervisor starts it again; the request goes on where it was."""
    worker = next(child for child in stack.children if child.name == "worker-0")
    tokens: list[int] = []
    options = SamplingOptions(max_tokens=240, temperature=0.0)
    async with aclosing(client.generate("gpt", [1, 2, 3], options)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                if not tokens:
                    worker.kill()
                assert event.first_index == len(tokens)
                tokens += event.token_ids
    model = reference.load(str(checkpoints / "gpt"), "float32")
    assert len(tokens) == 240
    assert reference.compare(model, [1, 2, 3], tokens).first_difference is None


async def test_after_a_killed_memory_service_models_are_loaded_again(client: Client, stack: Stack) -> None:
    memory = next(child for child in stack.children if child.name == "memory-0")
    memory.kill()
    for name in ("tiny", "gpt", "qwen", "tiny"):
        assert len((await client.complete(name, "hello", GREEDY, timeout_s=60)).token_ids) == 20


async def test_reflection_and_health_answer(stack: Stack) -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with grpc.aio.insecure_channel(stack.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        response = await call.read()
        names = {service.name for service in response.list_services_response.service}
        call.cancel()
    assert {"hekaton.v1.InferenceService", "hekaton.v1.ModelService", "hekaton.v1.PoolService"} <= names


async def test_without_a_worker_requests_are_unavailable_with_a_time_to_retry() -> None:
    options = StackOptions(device="emulated:h800", device_memory="80GiB")
    async with Stack(options, print) as stack, Client(stack.address) as client:
        await client.register_model("seven", "emulated:qwen2.5-7b")
        done = await client.complete("seven", "hello", SamplingOptions(max_tokens=5))
        assert len(done.token_ids) == 5
        await stack.retire(next(child for child in stack.children if child.name == "worker-0"))
        assert (await client.pool()).workers == ()
        with pytest.raises(NoWorker) as caught:
            await client.complete("seven", "hello")
        assert caught.value.retry_after_s


async def test_with_a_data_directory_models_survive_the_pool(tmp_path: Path) -> None:
    options = StackOptions(device="emulated:h800", device_memory="80GiB", data_dir=tmp_path / "data")
    async with Stack(options, print) as stack, Client(stack.address) as client:
        await client.register_model("seven", "emulated:qwen2.5-7b")
        before = await client.complete("seven", "hello", replace(GREEDY, seed=1))
    async with Stack(options, print) as stack, Client(stack.address) as client:
        after = await client.complete("seven", "hello", replace(GREEDY, seed=1))
    assert after.token_ids == before.token_ids
