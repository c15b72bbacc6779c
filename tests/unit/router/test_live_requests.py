"""What a live request takes from its workers, and what it refuses."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes.tools import ARGUMENTS, OUTPUT, joined
from hekaton.errors import AlreadyExists, Cancelled, Diverged
from hekaton.facts import RequestRecord, Sampling, Slo
from hekaton.v1 import common_pb2, inference_pb2
from hekaton_router.inference import Output
from hekaton_router.keeper import Reading
from hekaton_router.live import LiveRequest, LiveRequests, OutOfSequence
from hekaton_router.tokenization import byte_codec


def record(
    request_id: str = "r", max_tokens: int = 100, stop: tuple[str, ...] = (), logprobs: int | None = None
) -> RequestRecord:
    sampling = Sampling(max_tokens, 0, stop=stop, logprobs=logprobs)
    return RequestRecord(request_id, "router", "m", 3, sampling, Slo(1, 1), 60)


def finished(tokens: int) -> inference_pb2.Finished:
    return inference_pb2.Finished(stats=common_pb2.RequestStats(completion_tokens=tokens))


def test_tokens_known_already_are_ignored() -> None:
    live = LiveRequest(record())
    assert live.assign(1, "w")
    live.extend(1, 0, [5, 6])
    live.extend(1, 0, [5, 6])
    live.extend(1, 1, [6, 7])
    assert live.token_ids == [5, 6, 7]


def test_a_newer_attempt_supersedes_an_older_one() -> None:
    live = LiveRequest(record())
    assert live.assign(2, "w2")
    assert not live.assign(1, "w1")
    live.extend(1, 0, [9])
    live.finish(1, Cancelled("old"))
    assert (live.token_ids, live.worker_id, live.end) == ([], "w2", None)
    live.extend(2, 0, [5])
    assert live.assign(3, "w3")
    live.extend(2, 1, [9])
    live.extend(3, 1, [6])
    live.finish(3, finished(2))
    assert live.token_ids == [5, 6]
    assert live.end == finished(2)


def test_a_gap_is_an_error() -> None:
    live = LiveRequest(record(max_tokens=3))
    live.assign(1, "w")
    live.extend(1, 0, [5])
    with pytest.raises(OutOfSequence):
        live.extend(1, 2, [7])
    with pytest.raises(OutOfSequence):
        live.extend(1, 1, [6, 7, 8])
    with pytest.raises(OutOfSequence):
        live.finish(1, finished(2))
    assert live.token_ids == [5]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 12), st.integers(0, 5)), max_size=30))
def test_whatever_comes_the_output_is_a_prefix_of_the_true_one(steps: list[tuple[int, int, int]]) -> None:
    live = LiveRequest(record())
    for epoch, first, count in steps:
        live.assign(epoch, "w")
        try:
            live.extend(epoch, first, range(first, first + count))
        except OutOfSequence:
            assert first > len(live.token_ids)
        assert live.token_ids == list(range(len(live.token_ids)))


def test_the_first_end_stands() -> None:
    live = LiveRequest(record())
    live.stop(Cancelled("by the client"))
    live.stop(finished(0))
    assert isinstance(live.end, Cancelled)


async def test_a_reader_wakes_up_for_tokens_and_for_the_end() -> None:
    live = LiveRequest(record())
    live.assign(1, "w")
    number = live.attach()
    reader = asyncio.create_task(live.more(0, number))
    await asyncio.sleep(0)
    live.extend(1, 0, [5])
    await asyncio.wait_for(reader, 1)
    reader = asyncio.create_task(live.more(1, number))
    await asyncio.sleep(0)
    assert not reader.done()
    live.stop(Cancelled("enough"))
    await asyncio.wait_for(reader, 1)


def test_an_id_is_live_once() -> None:
    requests = LiveRequests()
    live = requests.add(record())
    with pytest.raises(AlreadyExists):
        requests.add(record())
    requests.remove(live)
    requests.add(record())
    assert len(requests) == 1


async def test_what_came_while_the_client_was_slow_goes_out_in_one_message() -> None:
    live = LiveRequest(record())
    live.assign(1, "w")
    output = Output(Reading(live, live.attach()), byte_codec(), LiveRequest.cut)
    for index in range(50):
        live.extend(1, index, b"s")
    assert await output.next() == inference_pb2.Tokens(first_index=0, token_ids=b"s" * 50, text="s" * 50)
    live.extend(1, 50, [0xF0])
    assert await output.next() == inference_pb2.Tokens(first_index=50, token_ids=[0xF0])
    live.finish(1, finished(51))
    assert await output.next() == inference_pb2.Tokens(first_index=51, text="\N{REPLACEMENT CHARACTER}")
    assert await output.next() is None
    assert live.outcome() == finished(51)


def test_an_attempt_that_differs_from_what_was_delivered_ends_the_request() -> None:
    """Never a silent splice."""
    live = LiveRequest(record("r"))
    assert live.assign(1, "w1")
    live.extend(1, 0, [1, 2, 3])
    assert live.assign(2, "w2")
    live.extend(2, 1, [2, 9, 4])
    assert isinstance(live.end, Diverged)
    assert live.token_ids == [1, 2, 3]


def test_an_attempt_that_ends_before_what_was_delivered_ends_the_request() -> None:
    live = LiveRequest(record("r"))
    assert live.assign(1, "w1")
    live.extend(1, 0, [1, 2, 3])
    assert live.assign(2, "w2")
    stats = common_pb2.RequestStats(completion_tokens=2)
    live.finish(2, inference_pb2.Finished(reason=common_pb2.FINISH_REASON_STOP, stats=stats))
    assert isinstance(live.end, Diverged)


async def test_an_output_with_a_stop_text_ends_there_whatever_its_worker_says() -> None:
    live = LiveRequest(record(stop=("lo",)))
    live.assign(1, "w")
    output = Output(Reading(live, live.attach()), byte_codec(), LiveRequest.cut)
    live.extend(1, 0, b"hello world")
    assert await output.next() == inference_pb2.Tokens(first_index=0, token_ids=b"hello", text="hel")
    live.extend(1, 11, b"more")
    live.finish(1, finished(15))
    assert await output.next() is None
    assert live.outcome().reason == common_pb2.FINISH_REASON_STOP
    assert live.outcome().stats.completion_tokens == 5


async def test_an_output_that_ends_with_what_completes_a_stop_text_was_stopped() -> None:
    """A character that is not whole is text only at the end."""
    live = LiveRequest(record(stop=("\N{REPLACEMENT CHARACTER}",)))
    live.assign(1, "w")
    live.extend(1, 0, [*b"ab", 0xF0])
    live.finish(1, finished(3))
    output = Output(Reading(live, live.attach()), byte_codec(), LiveRequest.cut)
    assert (await output.next()) == inference_pb2.Tokens(token_ids=[*b"ab", 0xF0], text="ab")
    assert await output.next() is None
    assert live.outcome().reason == common_pb2.FINISH_REASON_STOP


async def test_a_call_that_a_lost_worker_began_is_told_once() -> None:
    live = LiveRequest(replace(record(max_tokens=300), tool_parser="hermes"))
    output = Output(Reading(live, live.attach()), byte_codec(), LiveRequest.cut)
    said, deltas, lost_at = OUTPUT.encode(), list[inference_pb2.ToolCallDelta](), OUTPUT.index("ris")
    for epoch, first, end in ((1, 0, lost_at), (2, 0, lost_at + 20), (3, lost_at, len(said))):
        live.assign(epoch, f"w{epoch}")
        live.extend(epoch, first, said[first:end])
        tokens = await output.next()
        assert tokens is not None
        deltas += tokens.tool_calls
    looked, asked = joined(deltas)
    assert (looked[1:], asked[1:]) == (("get_weather", ARGUMENTS), ("get_time", "{}"))


async def test_log_probabilities_come_with_their_tokens_and_only_once() -> None:
    live = LiveRequest(record(logprobs=0))
    live.assign(1, "w")
    told = [common_pb2.TokenLogprobs(logprob=-float(index)) for index in range(4)]
    live.extend(1, 0, [1, 2], told[:2])
    live.extend(1, 1, [2, 3], told[2:])
    output = Output(Reading(live, live.attach()), byte_codec(), LiveRequest.cut)
    tokens = await output.next()
    assert tokens is not None
    assert [one.logprob for one in tokens.logprobs] == [0, -1, -3]
