"""Requests in the turn loop over the emulated engine, on a settable clock."""

import grpc
import pytest

from fakes.turnloop import GB, LoopDriver, PoisonedEngine, expected, spec, submit
from hekaton.engine.messages import Cancel, Ended, Started, Status, Step, Stop, TurnEnded
from hekaton.facts import FinishReason, Weights
from hekaton.policy.request_level import QueueTurns


def test_a_request_gets_its_tokens_and_one_end() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a"))
    driver.run()
    assert driver.tokens("r") == expected("r", "a", 30)
    ended = driver.ended("r")
    assert (ended.finish, ended.completion_tokens, ended.error_code) == (FinishReason.LENGTH, 30, 0)
    kinds = [type(event) for event in driver.events if isinstance(event, Started | Step | Ended)]
    assert kinds == [Started, *[Step] * 30, Ended]
    assert driver.engine.kv_bytes() == 0


def test_costs_that_are_known_beforehand_are_told_before_the_model_is_loaded() -> None:
    driver = LoopDriver(give_images=False)
    driver.add("a")
    driver.pass_once()
    (told,) = [event.costs for event in driver.events if isinstance(event, Status) and event.costs]
    assert told == {"a": driver.engine.costs("a")}
    assert not driver.engine.resident()


def test_who_has_waited_longer_than_the_patience_is_refused_and_who_has_begun_is_not() -> None:
    driver = LoopDriver(policy=QueueTurns(slots=1), patience_s=1.0)
    driver.add("a", "b")
    driver.send(submit("r", "a", max_tokens=400), submit("waits", "b"))
    driver.run()
    assert driver.ended("r").finish is FinishReason.LENGTH
    refused = driver.ended("waits")
    assert (refused.error_code, refused.completion_tokens) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], 0)


def test_the_stop_token_is_emitted_and_ends_the_request() -> None:
    driver = LoopDriver()
    driver.add("a")
    tokens = expected("r", "a", 30)
    cut = next(index for index in range(5, 30) if tokens[index] not in tokens[:index])
    driver.send(submit("r", "a", stop=(tokens[cut],)))
    driver.run()
    assert driver.tokens("r") == tokens[: cut + 1]
    assert driver.ended("r").finish is FinishReason.STOP


def test_an_output_ends_where_the_models_context_ends() -> None:
    driver = LoopDriver()
    driver.add("a", model_spec=spec(max_context_tokens=32))
    driver.send(submit("r", "a", prompt=20, max_tokens=100))
    driver.run()
    assert driver.ended("r").completion_tokens == 12
    assert driver.ended("r").finish is FinishReason.LENGTH


def test_prompts_are_fed_in_chunks_beside_decodes() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a"))
    driver.run(lambda: len(driver.tokens("r")) == 5)
    driver.send(submit("long", "a", prompt=320))
    driver.run(lambda: bool(driver.tokens("long")))
    assert len(driver.tokens("r")) == 15, "ten chunks of 32, a token of the other in each"
    driver.run()
    assert driver.tokens("long") == expected("long", "a", 30)


def test_requests_of_one_model_share_steps() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(*(submit(f"r{n}", "a", prompt=4) for n in range(8)))
    driver.run()
    assert len(driver.of(Step)) == 30


def test_no_step_is_larger_than_the_batch_limit_and_all_end() -> None:
    driver = LoopDriver(max_batch=3)
    driver.add("a")
    driver.send(*(submit(f"r{n}", "a", prompt=4) for n in range(8)))
    driver.run()
    assert max(len(step.outputs) for step in driver.of(Step)) == 3
    assert len(driver.of(Ended)) == 8


def test_the_policy_is_asked_at_events_only() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a", max_tokens=1000))
    driver.run()
    assert len(driver.of(Step)) == 1000
    assert driver.policy.calls < 60, "arrival, image, load, end, and the end of each 0.4 s turn"


def test_cancelling_ends_a_request_once_and_frees_its_kv() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a"))
    driver.run(lambda: len(driver.tokens("r")) == 3)
    driver.send(Cancel("r", 0), Cancel("r", 1), Cancel("r", 1), Cancel("unknown", 1))
    assert driver.ended("r").cancelled
    assert driver.engine.kv_bytes() == 0
    driver.run()
    assert len(driver.tokens("r")) == 3


def test_a_repeated_submit_is_ignored_before_and_after_the_end() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a", epoch=2), submit("r", "a", epoch=2), submit("r", "a", epoch=1))
    driver.run()
    driver.send(submit("r", "a", epoch=2), submit("r", "a", epoch=1))
    driver.run()
    assert driver.ended("r").epoch == 2
    assert driver.tokens("r", 2) == expected("r", "a", 30)


def test_a_higher_epoch_replaces_and_goes_on_after_what_was_produced() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a"))
    driver.run(lambda: len(driver.tokens("r")) == 10)
    driver.send(submit("r", "a", epoch=2, produced=tuple(expected("r", "a", 7))))
    driver.run()
    assert driver.tokens("r", 2) == expected("r", "a", 30)[7:]
    assert driver.ended("r").completion_tokens == 30


@pytest.mark.parametrize("count", [30, 31])
def test_a_request_resumed_when_complete_ends_at_once(count: int) -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a", produced=tuple(range(count))))
    assert driver.ended("r").finish is FinishReason.LENGTH
    driver.send(submit("s", "a", produced=(1, 2), stop=(2,)))
    assert driver.ended("s").finish is FinishReason.STOP
    driver.run()
    assert not driver.of(Started)


def test_what_cannot_be_served_is_refused_with_a_status() -> None:
    driver = LoopDriver(12 * GB)
    driver.add("a")
    driver.add("huge", model_spec=spec(13 * GB))
    driver.send(
        submit("unknown", "nope"),
        submit("huge", "huge"),
        submit("empty", "a", prompt=0),
        submit("long", "a", prompt=4096),
        submit("fat", "a", prompt=2000, max_tokens=500),
    )
    codes = {event.request_id: event.error_code for event in driver.of(Ended)}
    invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert codes == {
        "unknown": grpc.StatusCode.NOT_FOUND.value[0],
        "huge": grpc.StatusCode.FAILED_PRECONDITION.value[0],
        "empty": invalid,
        "long": invalid,
        "fat": invalid,
    }
    assert "12000000000" in driver.ended("fat").error


def test_a_poisoned_request_fails_alone() -> None:
    driver = LoopDriver(engine=PoisonedEngine)
    driver.add("a")
    driver.send(submit("good", "a"), submit("poison", "a"), submit("fine", "a"))
    driver.run()
    assert driver.ended("poison").error_code == grpc.StatusCode.INTERNAL.value[0]
    assert driver.tokens("good") == expected("good", "a", 30)
    assert driver.tokens("fine") == expected("fine", "a", 30)


def test_status_tells_changes_and_keeps_to_one_a_second_otherwise() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a", max_tokens=1000))
    driver.run()
    statuses = driver.of(Status)
    spent_s = driver.clock.now_s - 100.0
    assert spent_s / 2 < len(statuses) < spent_s + 8
    assert statuses[-1].running_model == ""
    assert statuses[-1].resident_models == ("a",)
    assert statuses[-1].tokens == 1000


def test_stop_ends_the_turn() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a"))
    driver.run(lambda: len(driver.tokens("r")) == 3)
    driver.send(Stop())
    assert driver.loop.stopping
    assert driver.of(TurnEnded)[-1].turn.preempted_request_ids == ("r",)


def test_a_turn_says_where_it_found_its_weights() -> None:
    driver = LoopDriver()
    driver.add("a", "b")
    driver.send(submit("a1", "a", max_tokens=300))
    driver.run(lambda: len(driver.tokens("a1")) == 5)
    driver.send(submit("b1", "b", max_tokens=300))
    driver.run()
    found = [(event.turn.model, event.turn.weights) for event in driver.of(TurnEnded)]
    assert found[:3] == [("a", Weights.DEMAND), ("b", Weights.PREFETCH), ("a", Weights.RESIDENT)]
