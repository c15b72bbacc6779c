"""The turn loop over the emulated engine, on a settable clock."""

import grpc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fakes.turnloop import GB, BrokenBusEngine, LoopDriver, PoisonedEngine, expected, image, spec, submit
from hekaton.engine.messages import (
    AddModel,
    Cancel,
    Command,
    Ended,
    ImageDropped,
    ImageFailed,
    ImageReady,
    LoadEnded,
    RemoveModel,
    Started,
    Status,
    Step,
    Stop,
    TurnEnded,
    WantImage,
)
from hekaton.facts import FinishReason, Slo
from hekaton.policy.slack import SlackTurns


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


def test_models_that_do_not_fit_together_take_turns_in_mid_generation() -> None:
    driver = LoopDriver(15 * GB)
    driver.add("a", "b")
    driver.send(submit("ra", "a", max_tokens=400), submit("rb", "b", max_tokens=400))
    driver.run()
    assert driver.tokens("ra") == expected("ra", "a", 400)
    assert driver.tokens("rb") == expected("rb", "b", 400)
    turns = [event.turn for event in driver.of(TurnEnded)]
    assert turns[0].preempted_request_ids
    assert turns[0].switched
    assert all(turn.exposed_switch_s == pytest.approx(10 / 16) for turn in turns)
    assert all(turn.copied_bytes == 10 * GB for turn in turns)
    assert sum(turn.tokens for turn in turns) == 800
    assert [turn.index for turn in turns] == list(range(len(turns)))
    preemptions = sum(len(turn.preempted_request_ids) for turn in turns)
    assert sum(event.preemptions for event in driver.of(Ended)) == preemptions


def test_a_load_beside_a_running_model_exposes_no_switch() -> None:
    driver = LoopDriver(40 * GB)
    driver.add("a", "b")
    driver.send(submit("ra", "a", max_tokens=400))
    driver.run(lambda: len(driver.tokens("ra")) > 20)
    driver.send(submit("rb", "b", max_tokens=20))
    driver.run()
    turns = [event.turn for event in driver.of(TurnEnded)]
    assert [turn.model for turn in turns] == ["a", "b", "a"]
    assert turns[1].exposed_switch_s == 0.0
    assert turns[1].copied_bytes == 10 * GB
    assert len(driver.of(LoadEnded)) == 2


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


def test_a_load_that_fails_fails_its_models_requests_only() -> None:
    driver = LoopDriver(engine=BrokenBusEngine)
    driver.add("broken", "a")
    driver.send(submit("rb", "broken"), submit("ra", "a"))
    driver.run()
    assert driver.ended("rb").error_code == grpc.StatusCode.INTERNAL.value[0]
    assert "bus error" in driver.ended("rb").error
    assert driver.tokens("ra") == expected("ra", "a", 30)


def test_an_image_that_fails_fails_its_models_requests_only() -> None:
    driver = LoopDriver(give_images=False)
    driver.add("a", "b")
    driver.send(submit("ra", "a"), submit("rb", "b"))
    driver.run()
    assert [event.model for event in driver.of(WantImage)] == ["a", "b"]
    driver.send(ImageFailed("a", 3, "INVALID_CHECKPOINT", "a header is cut short"), ImageReady("b", image()))
    driver.run()
    ended = driver.ended("ra")
    assert (ended.error_code, ended.error_reason, ended.error) == (3, "INVALID_CHECKPOINT", "a header is cut short")
    assert driver.ended("rb").finish is FinishReason.LENGTH
    driver.send(submit("again", "a"))
    driver.run()
    assert [event.model for event in driver.of(WantImage)] == ["a", "b", "a"], "a new request asks anew"


def test_an_image_is_held_while_its_model_has_requests() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a"))
    driver.run(lambda: len(driver.tokens("r")) == 10)
    assert not driver.of(ImageDropped)
    driver.run()
    assert driver.of(ImageDropped) == [ImageDropped("a")]
    driver.send(submit("s", "a"))
    driver.run()
    assert len(driver.of(WantImage)) == 1, "a resident model needs no image"


def test_removing_a_model_ends_its_requests_and_frees_the_device() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(submit("r", "a"))
    driver.run(lambda: len(driver.tokens("r")) == 10)
    driver.send(RemoveModel("a"), RemoveModel("a"))
    driver.run()
    assert driver.ended("r").error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert driver.engine.weights_bytes() == driver.engine.kv_bytes() == 0
    assert not driver.mapped


def test_a_model_added_again_with_other_facts_is_replaced() -> None:
    driver = LoopDriver()
    driver.add("a")
    driver.send(AddModel("a", spec(5 * GB), "x"), AddModel("a", spec(5 * GB), "x"), submit("r", "a"))
    driver.run()
    assert driver.engine.weights_bytes() == 5 * GB


def test_when_kv_runs_out_the_slackest_is_computed_again_and_the_oldest_never() -> None:
    driver = LoopDriver(11 * GB)
    driver.add("a", model_spec=spec(kv_bytes_per_token=10_000_000))  # room for 96 tokens, six blocks
    driver.send(submit("oldest", "a", prompt=30, max_tokens=34, age_s=5.0, slo=Slo(60.0, 1.0)))
    driver.send(submit("slack", "a", prompt=10, max_tokens=40, slo=Slo(50.0, 1.0)))
    driver.send(submit("urgent", "a", prompt=10, max_tokens=40, age_s=1.0))
    driver.run()
    for request_id, count in (("oldest", 34), ("slack", 40), ("urgent", 40)):
        assert driver.tokens(request_id) == expected(request_id, "a", count)
    assert "slack" in driver.engine.recomputed
    assert "oldest" not in driver.engine.recomputed
    assert [event.request_id for event in driver.of(Ended)] == ["oldest", "urgent", "slack"]
    assert driver.engine.kv_bytes() == 0


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


PLANS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.integers(1, 60),  # prompt
        st.integers(1, 200),  # output
        st.floats(0.0, 2.0),  # seconds until the next command
        st.sampled_from(["run", "run", "run", "cancel", "move"]),
        st.sampled_from([Slo(10.0, 0.1), Slo(1.0, 0.02), Slo(30.0, 1.0)]),
    ),
    min_size=1,
    max_size=14,
)


# A KV-bound pool where nobody else can run: the oldest was displaced between its load and its first step, for ever.
STARVED = [
    ("b", 40, 96, 0.3153167571138034, "run", Slo(10.0, 0.1)),
    ("a", 1, 1, 0.0, "run", Slo(10.0, 0.1)),
    ("a", 40, 74, 0.0, "run", Slo(1.0, 0.02)),
    ("a", 40, 96, 0.0, "run", Slo(1.0, 0.02)),
    ("c", 1, 1, 0.0, "run", Slo(10.0, 0.1)),
]


@example(plan=STARVED, memory_gb=13, kv_mb=8, min_turn_s=0.4)
@settings(max_examples=150)
@given(
    plan=PLANS,
    memory_gb=st.sampled_from([13, 23, 35]),
    kv_mb=st.sampled_from([1, 8]),
    min_turn_s=st.sampled_from([0.0, 0.4]),
)
def test_every_request_ends_exactly_once_with_the_right_tokens(
    plan: list[tuple[str, int, int, float, str, Slo]], memory_gb: int, kv_mb: int, min_turn_s: float
) -> None:
    driver = LoopDriver(memory_gb * GB, SlackTurns(min_turn_s))
    driver.add(*"abcd", model_spec=spec(kv_bytes_per_token=kv_mb * 1_000_000))
    for number, (model, prompt, output, wait_s, fate, slo) in enumerate(plan):
        name = f"r{number}"
        driver.send(submit(name, model, prompt=prompt, max_tokens=output, slo=slo))
        driver.run_for(wait_s)
        driver.send(*_fate(driver, name, model, prompt, output, fate, slo))
    driver.run()
    assert driver.clock.now_s < 100.0 + 5.0 * len(plan) + 30.0, "waiting is bounded"
    for number, (model, _, output, _, fate, _) in enumerate(plan):
        _check(driver, f"r{number}", model, output, fate)
    assert driver.engine.kv_bytes() == 0
    assert not driver.mapped
    driver.loop.check_integrity()


def _fate(
    driver: LoopDriver, name: str, model: str, prompt: int, output: int, fate: str, slo: Slo
) -> tuple[Command, ...]:
    """What happens to a request a while after its submission: a cancel, or its next attempt here."""
    if fate == "cancel":
        return (Cancel(name, 1),)
    if fate == "move":
        produced = tuple(driver.tokens(name)[: output // 2])
        return (submit(name, model, prompt=prompt, max_tokens=output, epoch=2, produced=produced, slo=slo),)
    return ()


def _check(driver: LoopDriver, name: str, model: str, output: int, fate: str) -> None:
    wanted = expected(name, model, output)
    ends = [event for event in driver.of(Ended) if event.request_id == name]
    assert len(ends) == len({event.epoch for event in ends}), "one end an attempt"
    last = ends[-1]
    assert last.error_code == 0
    got = driver.tokens(name, last.epoch)
    if last.cancelled:
        assert fate == "cancel"
        assert got == wanted[: len(got)]
    else:
        assert last.finish is FinishReason.LENGTH
        assert last.completion_tokens == output
        assert got == wanted[output - len(got) :]
