import asyncio

import pytest
from redis.asyncio import Redis

from fakes.records import record
from hekaton.errors import RequestNotFound, ResourceExhausted, StaleTerm
from hekaton.facts import RequestState, RequestStats
from hekaton.store.keys import Keys
from hekaton.store.queue import Queue
from hekaton.store.records import Holder, Unreadable
from hekaton.store.requests import Requests

TERM = 5
PROMPT = (1, 2, 2**32 - 1)
STATS = RequestStats(prompt_tokens=3, completion_tokens=2, preemptions=1, epoch=1, failures=0, worker_id="w1")


@pytest.fixture
def requests(redis: Redis) -> Requests:
    return Requests(redis)


@pytest.fixture
def queue(redis: Redis) -> Queue:
    return Queue(redis, "scheduler-1")


async def placed(requests: Requests, queue: Queue, request_id: str = "r1", worker_id: str = "w1") -> int:
    """Accepts a request, reads it from the queue and places it; returns its epoch."""
    await requests.accept(record(request_id), PROMPT, 100)
    return await placed_again(requests, queue, worker_id)


async def placed_again(requests: Requests, queue: Queue, worker_id: str = "w1") -> int:
    ((entry_id, request_id),) = await queue.read(TERM, 10, 0)
    epoch = await requests.place(request_id, entry_id, worker_id, TERM)
    assert epoch is not None
    return epoch


async def test_an_accepted_request_is_stored_and_queued(requests: Requests, queue: Queue) -> None:
    assert await requests.accept(record(), PROMPT, 100)
    assert await requests.queued() == 1
    stored = await requests.load("r1")
    assert stored is not None
    assert stored.summary.record == record()
    assert (stored.prompt, stored.produced) == (PROMPT, ())
    assert (stored.summary.state, stored.summary.epoch, stored.summary.failures) == (RequestState.QUEUED, 0, 0)
    assert 0 <= stored.summary.age_s < 5
    assert [entry.request_id for entry in await queue.read(TERM, 10, 0)] == ["r1"]


async def test_a_request_is_accepted_once(requests: Requests) -> None:
    assert await requests.accept(record(), PROMPT, 100)
    assert not await requests.accept(record(), PROMPT, 1)
    assert await requests.queued() == 1


async def test_a_full_queue_refuses_and_stores_nothing(requests: Requests) -> None:
    await requests.accept(record("r1"), PROMPT, 1)
    with pytest.raises(ResourceExhausted, match="1 requests wait") as caught:
        await requests.accept(record("r2"), PROMPT, 1)
    assert caught.value.retry_after_s is not None
    assert await requests.load("r2") is None


async def test_peek_tells_lengths_of_the_requests_that_exist(requests: Requests, queue: Queue) -> None:
    epoch = await placed(requests, queue)
    await requests.checkpoint([("r1", epoch, (8, 9))])
    (summary,) = (await requests.peek(["r1", "nobody"])).values()
    assert (summary.record, summary.produced_tokens, summary.worker_id) == (record(), 2, "w1")
    assert await requests.peek([]) == {}


async def test_a_placed_request_leaves_the_queue_and_belongs_to_its_worker(
    requests: Requests, queue: Queue, redis: Redis
) -> None:
    epoch = await placed(requests, queue)
    assert epoch == 1
    assert await requests.queued() == 0
    assert (await redis.xpending(Keys().queue, "schedulers"))["pending"] == 0
    assert await requests.held_by("w1") == (("r1", 1),)
    assert await requests.start("r1", epoch)


async def test_a_leader_of_an_older_term_cannot_place_or_requeue(requests: Requests, queue: Queue) -> None:
    epoch = await placed(requests, queue, "r1")
    await requests.accept(record("r2"), PROMPT, 100)
    ((entry_id, _),) = await queue.read(TERM, 10, 0)
    with pytest.raises(StaleTerm):
        await requests.place("r2", entry_id, "w1", TERM - 1)
    with pytest.raises(StaleTerm):
        await requests.requeue("r1", epoch, term=TERM - 1, lost=True, max_attempts=3)
    assert await requests.queued() == 1
    assert await requests.held_by("w1") == (("r1", 1),)


async def test_many_are_placed_in_one_exchange_each_for_itself(redis: Redis, requests: Requests, queue: Queue) -> None:
    for name in ("r1", "r2", "r3"):
        await requests.accept(record(name), PROMPT, 100)
    await requests.cancel("r2")
    entries = [
        (name, entry_id, worker_id)
        for (entry_id, name), worker_id in zip(await queue.read(TERM, 10, 0), "ab", strict=True)
    ]
    await redis.script_flush()
    assert await requests.place_all([entries[0], ("r2", "1-1", "a"), entries[1]], TERM) == [1, None, 1]
    assert (await requests.held_by("a"), await requests.held_by("b")) == ((("r1", 1),), (("r3", 1),))
    assert await requests.place_all([], TERM) == []
    with pytest.raises(StaleTerm):
        await requests.place_all(entries, TERM - 1)


async def test_a_stale_epoch_changes_nothing(requests: Requests, queue: Queue) -> None:
    first = await placed(requests, queue)
    await requests.requeue("r1", first, term=TERM, lost=True, max_attempts=3)
    second = await placed_again(requests, queue, "w2")
    assert second == first + 1
    assert not await requests.start("r1", first)
    assert await requests.requeue("r1", first, term=TERM, lost=True, max_attempts=3) is None
    assert await requests.finish("r1", first, RequestState.FINISHED, reason="stop") is RequestState.PLACED
    assert await requests.checkpoint([("r1", first, (8,))]) == ()
    stored = await requests.load("r1")
    assert stored is not None
    assert (stored.produced, stored.summary.failures) == ((), 1)


async def test_a_finished_request_keeps_its_end_until_it_expires(
    requests: Requests, queue: Queue, redis: Redis
) -> None:
    epoch = await placed(requests, queue)
    await requests.start("r1", epoch)
    assert (
        await requests.finish("r1", epoch, RequestState.FINISHED, reason="stop", stats=STATS) is RequestState.FINISHED
    )
    stored = await requests.load("r1")
    assert stored is not None
    assert (stored.summary.state, stored.summary.reason) == (RequestState.FINISHED, "stop")
    assert stored.summary.stats == STATS
    assert await requests.held_by("w1") == ()
    assert 0 < await redis.ttl(Keys().request("r1")) <= 600


async def test_an_ended_request_is_forgotten_after_its_retention(redis: Redis) -> None:
    requests = Requests(redis, retention_s=0.001)
    await requests.accept(record(), PROMPT, 100)
    await requests.cancel("r1")
    await asyncio.sleep(0.01)
    assert await requests.load("r1") is None
    assert await redis.keys(Keys().request("*")) == []


async def test_only_the_first_terminal_state_holds(requests: Requests, queue: Queue) -> None:
    epoch = await placed(requests, queue)
    assert await requests.cancel("r1") == Holder(RequestState.PLACED, "w1", epoch)
    assert await requests.finish("r1", epoch, RequestState.FINISHED, reason="stop") is RequestState.CANCELLED
    assert await requests.cancel("r1") == Holder(RequestState.CANCELLED, "w1", epoch)
    assert not await requests.start("r1", epoch)


async def test_a_cancelled_request_leaves_the_queue(requests: Requests, queue: Queue) -> None:
    await requests.accept(record("r1"), PROMPT, 100)
    await requests.accept(record("r2"), PROMPT, 100)
    ((entry_id, _),) = await queue.read(TERM, 1, 0)
    for request_id in ("r1", "r2"):
        assert (await requests.cancel(request_id)).state is RequestState.QUEUED
    assert await requests.queued() == 0
    assert await requests.place("r1", entry_id, "w1", TERM) is None
    assert await queue.read(TERM, 10, 0) == ()


async def test_a_deadline_in_the_queue_ends_a_request(requests: Requests) -> None:
    await requests.accept(record(), PROMPT, 100)
    assert await requests.finish("r1", 0, RequestState.FAILED, reason="DEADLINE_EXCEEDED") is RequestState.FAILED
    assert await requests.queued() == 0


async def test_an_unknown_request_is_named(requests: Requests) -> None:
    with pytest.raises(RequestNotFound, match="nobody"):
        await requests.cancel("nobody")
    with pytest.raises(RequestNotFound, match="nobody"):
        await requests.finish("nobody", 1, RequestState.FAILED, reason="x")
    with pytest.raises(ValueError, match="not a terminal state"):
        await requests.finish("nobody", 1, RequestState.RUNNING, reason="x")


async def test_only_losses_count_against_the_attempts(requests: Requests, queue: Queue) -> None:
    epoch = await placed(requests, queue)
    for _ in range(3):
        assert await requests.requeue("r1", epoch, term=TERM, lost=False, max_attempts=2) is RequestState.QUEUED
        epoch = await placed_again(requests, queue)
    assert await requests.requeue("r1", epoch, term=TERM, lost=True, max_attempts=2) is RequestState.QUEUED
    epoch = await placed_again(requests, queue)
    assert await requests.requeue("r1", epoch, term=TERM, lost=True, max_attempts=2) is RequestState.FAILED
    summary = (await requests.peek(["r1"]))["r1"]
    assert (summary.state, summary.failures, summary.reason) == (RequestState.FAILED, 2, "WORKER_LOST")
    assert await requests.held_by("w1") == ()


async def test_a_requeue_that_is_said_twice_counts_once(requests: Requests, queue: Queue) -> None:
    epoch = await placed(requests, queue)
    for _ in range(2):
        assert await requests.requeue("r1", epoch, term=TERM, lost=True, max_attempts=2) is RequestState.QUEUED
    assert await requests.queued() == 1


async def test_the_next_attempt_starts_from_the_checkpoint(requests: Requests, queue: Queue) -> None:
    epoch = await placed(requests, queue)
    many = [(f"gone-{n}", 1, (1,)) for n in range(300)]
    assert await requests.checkpoint([("r1", epoch, (8, 9)), *many]) == tuple(name for name, _, _ in many)
    await requests.requeue("r1", epoch, term=TERM, lost=True, max_attempts=3)
    stored = await requests.load("r1")
    assert stored is not None
    assert stored.produced == (8, 9)


async def test_a_request_put_back_keeps_its_age_epoch_and_tokens(requests: Requests, queue: Queue) -> None:
    assert await requests.put_back(record(), PROMPT, (8, 9), epoch=4, age_s=30.0, router_id="r9")
    assert not await requests.put_back(record(), PROMPT, (8, 9), epoch=4, age_s=30.0, router_id="r9")
    stored = await requests.load("r1")
    assert stored is not None
    assert stored.produced == (8, 9)
    assert 29.9 < stored.summary.age_s < 35
    assert await placed_again(requests, queue) == 5


@pytest.mark.parametrize("field", ["record", "state", "epoch", "stats"])
async def test_a_record_that_cannot_be_decoded_is_left_out_and_fails(
    redis: Redis, requests: Requests, queue: Queue, field: str
) -> None:
    for request_id in ("bad", "good"):
        await requests.accept(record(request_id), PROMPT, 100)
    await redis.hset(Keys().request("bad"), field, b"\xff{")
    assert list(await requests.peek(["bad", "good"])) == ["good"]
    with pytest.raises(Unreadable):
        await requests.load("bad")
    entries = await queue.read(TERM, 10, 0)
    await requests.discard("bad", entries[0].entry_id, TERM)
    assert await redis.hmget(Keys().request("bad"), "state", "reason") == [b"failed", b"INTERNAL"]
    assert await requests.queued() == 1


async def test_an_entry_without_its_record_is_discarded(redis: Redis, requests: Requests, queue: Queue) -> None:
    await requests.accept(record(), PROMPT, 100)
    await redis.delete(Keys().request("r1"))
    ((entry_id, request_id),) = await queue.read(TERM, 10, 0)
    with pytest.raises(StaleTerm):
        await requests.discard(request_id, entry_id, TERM - 1)
    await requests.discard(request_id, entry_id, TERM)
    assert await requests.queued() == 0
    assert not await redis.exists(Keys().request("r1"))


async def test_a_request_that_was_placed_meanwhile_is_not_discarded(requests: Requests, queue: Queue) -> None:
    await requests.accept(record(), PROMPT, 100)
    ((entry_id, _),) = await queue.read(TERM, 10, 0)
    await requests.place("r1", entry_id, "w1", TERM)
    await requests.discard("r1", entry_id, TERM)
    assert (await requests.peek(["r1"]))["r1"].state is RequestState.PLACED


async def test_the_states_of_requests_are_read_without_their_records(
    redis: Redis, requests: Requests, queue: Queue
) -> None:
    await placed(requests, queue, "placed")
    await requests.accept(record("bad"), PROMPT, 100)
    await redis.hset(Keys().request("bad"), mapping={"record": "{", "state": b"\xff"})
    states = await requests.states(["placed", "unknown", "bad"])
    assert states == {"placed": (RequestState.PLACED, "router-1"), "bad": (RequestState.FAILED, "router-1")}
