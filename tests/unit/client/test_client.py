"""The Python client against a real router, a real scheduler and an emulated worker."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import cast

import pytest
import pytest_asyncio

from fakes.redis import running_redis
from fakes.router import address_of, running_router
from fakes.schedulers import running_scheduler
from fakes.services import scripted_server
from fakes.waiting import eventually
from fakes.workers import CLASS, SPEC, running_worker
from hekaton.client import Accepted, Client, Finished, Message, Pool, SamplingOptions, Tokens
from hekaton.engine.emulated import emulated_token
from hekaton.errors import (
    AlreadyExists,
    Cancelled,
    InvalidArgument,
    ModelNotFound,
    ResourceExhausted,
    Unavailable,
)
from hekaton.facts import FinishReason, ModelState, Slo, SloClass, TurnRecord

SEED = 7
OPTIONS = SamplingOptions(max_tokens=20, seed=SEED)
LONG = SamplingOptions(max_tokens=4000)
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Client]:
    async with (
        running_redis() as (server, redis),
        running_scheduler(server.url, redis),
        running_worker(server.url, redis, "w1"),
        running_router(redis, server.url) as router,
    ):
        await router.until_serving()
        async with Client(await address_of(redis, "router-1")) as client:
            await client.register_model("m1", f"emulated:{CLASS}", slo=Slo(3.0, 0.2))
            yield client


async def until_idle(client: Client) -> None:
    async def idle() -> bool:
        return all(
            one.requests_running + one.requests_waiting + one.kv_bytes == 0 for one in (await client.pool()).workers
        )

    await eventually(idle)


async def test_a_class_is_a_multiple_of_the_models_objective(client: Client) -> None:
    for slo_class, expected in ((SloClass.INTERACTIVE, Slo(1.5, 0.2)), (SloClass.BATCH, Slo(90.0, 1.0))):
        async with aclosing(client.generate("m1", [1, 2, 3], OPTIONS, slo=slo_class)) as events:
            accepted = await anext(events)
        assert isinstance(accepted, Accepted)
        assert accepted.slo == expected


async def test_a_generation_is_accepted_then_every_token_once_then_finished(client: Client) -> None:
    async with aclosing(client.generate("m1", [1, 2, 3], OPTIONS, request_id="mine")) as events:
        accepted, *tokens, finished = [event async for event in events]
    assert isinstance(accepted, Accepted)
    assert (accepted.request_id, accepted.prompt_tokens, accepted.seed, accepted.slo) == (
        "mine",
        3,
        SEED,
        Slo(3.0, 0.2),
    )
    token_ids: list[int] = []
    for event in tokens:
        assert isinstance(event, Tokens)
        assert event.first_index == len(token_ids)
        token_ids += event.token_ids
    assert token_ids == [emulated_token("m1", SEED, position, SPEC) for position in range(20)]
    assert "".join(event.text for event in tokens if isinstance(event, Tokens)) == await client.detokenize(
        "m1", token_ids
    )
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.stats.completion_tokens, finished.stats.worker_id) == (
        FinishReason.LENGTH,
        20,
        "w1",
    )


async def test_a_completion_is_the_whole_of_it(client: Client) -> None:
    done = await client.complete("m1", "hello", OPTIONS)
    assert done.text == await client.detokenize("m1", done.token_ids)
    assert (len(done.token_ids), done.reason, done.stats.prompt_tokens) == (20, FinishReason.LENGTH, 5)
    assert not await client.cancel(done.request_id)


async def test_several_outputs_differ_by_their_choice_alone(client: Client) -> None:
    outputs = await client.complete_all("m1", "hello", replace(OPTIONS, n=3))
    expected = [
        tuple(emulated_token("m1", SEED, position, SPEC, choice) for position in range(20)) for choice in range(3)
    ]
    assert [one.token_ids for one in outputs] == expected
    assert outputs[0].text == (await client.complete("m1", "hello", OPTIONS)).text
    with pytest.raises(InvalidArgument, match="complete_all"):
        await client.complete("m1", "hello", replace(OPTIONS, n=3))


@pytest.mark.parametrize("prompt", ["hello", [Message("user", "hello"), Message("assistant", "hi")], [9, 8, 7, 6]])
async def test_a_prompt_is_text_a_chat_or_token_ids(client: Client, prompt: str | list[int] | list[Message]) -> None:
    done = await client.complete("m1", prompt, OPTIONS)
    if isinstance(prompt, str) or isinstance(prompt[0], Message):
        assert done.stats.prompt_tokens == len(await client.tokenize("m1", prompt))
    else:
        assert done.stats.prompt_tokens == len(prompt)


async def test_a_mixed_prompt_is_refused(client: Client) -> None:
    mixed = cast(list[int], [Message("user", "hello"), 5])
    with pytest.raises(InvalidArgument, match="one of these alone"):
        await client.complete("m1", mixed, OPTIONS)


async def test_closing_the_iterator_cancels_the_request(client: Client) -> None:
    async with aclosing(client.generate("m1", "hello", LONG, request_id="closed")) as events:
        async for event in events:
            if isinstance(event, Tokens):
                break
    await until_idle(client)
    assert not await client.cancel("closed")


async def test_a_request_that_is_cancelled_from_elsewhere_ends_as_cancelled(client: Client) -> None:
    async with aclosing(client.generate("m1", "hello", LONG, request_id="ended")) as events:
        assert isinstance(await anext(events), Accepted)
        assert await client.cancel("ended")
        with pytest.raises(Cancelled):
            async for _ in events:
                pass
    await until_idle(client)


async def test_models_are_registered_changed_and_removed(client: Client) -> None:
    made = await client.register_model("m2", f"emulated:{CLASS}")
    assert made.state is ModelState.READY
    assert made.spec == SPEC
    with pytest.raises(AlreadyExists, match="m2"):
        await client.register_model("m2", f"emulated:{CLASS}")
    assert (await client.update_model("m2", Slo(5.0, 0.5))).slo == Slo(5.0, 0.5)
    assert [model.name for model in await client.list_models()] == ["m1", "m2"]
    await client.delete_model("m2")
    with pytest.raises(ModelNotFound, match="m2"):
        await client.get_model("m2")


async def test_watching_the_pool_tells_its_state_and_every_turn(client: Client) -> None:
    async with aclosing(client.watch_pool(0.2)) as events:
        first = await anext(events)
        assert isinstance(first, Pool)
        assert [worker.worker_id for worker in first.workers] == ["w1"]
        assert first.leader_term > 0
        await client.complete("m1", "hello", OPTIONS)
        turn = await anext(event async for event in events if isinstance(event, TurnRecord))
    assert (turn.worker_id, turn.model) == ("w1", "m1")
    assert turn.tokens > 0


async def test_an_error_brings_the_time_to_retry_after() -> None:
    def full() -> None:
        raise ResourceExhausted("the queue is full", retry_after_s=2.5)

    async with scripted_server(full) as (server, _), Client(server.address) as client:
        with pytest.raises(ResourceExhausted, match="the queue is full") as caught:
            await client.complete("m", "hello")
    assert caught.value.retry_after_s == 2.5


async def test_without_a_router_the_error_names_its_address() -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"no router answers at 127\.0\.0\.1:1") as caught:
            await client.complete("m", "hello")
    assert caught.value.retry_after_s


async def test_a_router_that_is_away_for_its_own_reasons_says_them() -> None:
    def stopping() -> None:
        raise Unavailable("this router stops")

    async with scripted_server(stopping) as (server, _), Client(server.address) as client:
        with pytest.raises(Unavailable, match="this router stops"):
            await client.complete("m", "hello")
