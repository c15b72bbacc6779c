"""Loads, images and the removal of models under the turn loop."""

import grpc
import pytest

from fakes.turnloop import GB, BrokenBusEngine, LoopDriver, expected, image, spec, submit
from hekaton.engine.messages import (
    AddModel,
    Ended,
    ImageDropped,
    ImageFailed,
    ImageReady,
    LoadEnded,
    RemoveModel,
    TurnEnded,
    WantImage,
)
from hekaton.facts import FinishReason


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
