"""What a turn loop does with a model that nobody has asked for yet."""

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple

import pytest

from fakes.tinymodels import DEVICE, TinyModel
from hekaton.engine.messages import (
    AddModel,
    Ended,
    Event,
    ImageDropped,
    ImageFailed,
    ImageReady,
    RemoveModel,
    Status,
    Submit,
    WantImage,
)
from hekaton.engine.rehearsal import BATCH, costs_of
from hekaton.engine.transformers_engine import TransformersEngine
from hekaton.engine.turns import TurnLoop
from hekaton.facts import FinishReason, Sampling, Slo
from hekaton.policy.slack import SlackTurns
from hekaton.policy.types import ModelCosts

LIMIT_S = 60.0
KNOWN = ModelCosts(1000, 10, 0.5, 0.02, 0.001, 0.01, 0.0005, 1e-6, 1e-7)


class Stage:
    """A turn loop over a real engine; the test plays the worker."""

    def __init__(self, spare_bytes: int, model: TinyModel, host_kv_bytes: int = 0) -> None:
        self.engine = TransformersEngine(DEVICE, model.image.nbytes + spare_bytes, host_kv_memory_bytes=host_kv_bytes)
        self.events: list[Event] = []
        self.loop = TurnLoop(self.engine, SlackTurns(), self.events.append, time.monotonic, "w")

    def until(self, done: Callable[[], bool]) -> None:
        until_s = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < until_s
            if not self.loop.run_once():
                select.select([self.engine.fileno()], [], [], 0.01)

    def settle(self) -> None:
        """Until there is nothing to do, and no copy under way."""
        self.until(lambda: not self.loop.run_once() and not self.engine.loading())
        self.loop.check_integrity()

    def count(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def told(self) -> dict[str, ModelCosts]:
        """Costs that were said to be measured."""
        statuses = [event for event in self.events if isinstance(event, Status)]
        return {m: c for one in statuses for m, c in one.costs.items() if m not in one.in_part}


@contextmanager
def staged(model: TinyModel, spare_bytes: int = 4 << 20, host_kv_bytes: int = 0) -> Iterator[Stage]:
    stage = Stage(spare_bytes, model, host_kv_bytes)
    try:
        yield stage
    finally:
        stage.engine.close()


def new(model: TinyModel, costs: ModelCosts | None = None) -> AddModel:
    return AddModel("m", model.prepared.spec, str(model.checkpoint), costs, rehearse=True)


def request(request_id: str = "r") -> Submit:
    return Submit(request_id, 1, 0, "m", (1, 2, 3), (), Sampling(max_tokens=3, seed=1), Slo(10.0, 1.0), 0.0)


def test_a_new_model_is_measured_and_leaves_no_trace(models: dict[str, TinyModel]) -> None:
    model = models["llama"]
    with staged(model) as stage:
        stage.loop.handle(new(model))
        stage.settle()
        assert stage.count(WantImage) == 1
        stage.loop.handle(ImageReady("m", model.image))
        stage.until(lambda: bool(stage.told()))
        stage.settle()
        costs = stage.told()["m"]
        assert costs == stage.engine.costs("m")
        assert costs.weight_bytes == model.image.nbytes
        assert min(costs.load_s, costs.prefill_base_s, costs.prefill_s_per_token, costs.step_base_s) > 0
        assert stage.engine.resident() == frozenset()
        assert (stage.engine.kv_bytes(), stage.engine.weights_bytes()) == (0, 0)
        assert stage.count(ImageDropped) == 1
        assert costs.swap_s_per_token == 0.0


def test_what_kv_takes_to_the_host_is_measured_where_there_is_room_for_it(models: dict[str, TinyModel]) -> None:
    model = models["llama"]
    with staged(model, host_kv_bytes=4 << 20) as stage:
        stage.loop.handle(new(model))
        stage.settle()
        stage.loop.handle(ImageReady("m", model.image))
        stage.until(lambda: bool(stage.told()))
        stage.settle()
        costs = stage.told()["m"]
        assert costs.kv_s_per_token == costs.swap_s_per_token > 0
        assert (stage.engine.kv_bytes(), stage.engine.host_kv_bytes()) == (0, 0)


def test_a_model_whose_costs_are_known_is_built_but_not_loaded(models: dict[str, TinyModel]) -> None:
    model = models["qwen2"]
    with staged(model) as stage:
        stage.loop.handle(new(model, KNOWN))
        stage.settle()
        stage.loop.handle(ImageReady("m", model.image))
        stage.settle()
        assert stage.count(ImageDropped) == 1
        assert stage.engine.costs("m") == KNOWN
        assert all(not event.loading_models for event in stage.events if isinstance(event, Status))


def test_a_request_goes_before_and_the_model_is_measured_after_it(models: dict[str, TinyModel]) -> None:
    model = models["llama"]
    with staged(model) as stage:
        stage.loop.handle(new(model))
        stage.settle()
        stage.loop.handle(ImageReady("m", model.image))
        stage.until(lambda: "m" in stage.engine.resident())
        stage.loop.handle(request())
        stage.until(lambda: stage.count(Ended) == 1)
        ended = next(event for event in stage.events if isinstance(event, Ended))
        assert ended.finish is FinishReason.LENGTH
        stage.until(lambda: bool(stage.told()))
        stage.settle()
        # It had been asked for, so it stays.
        assert stage.engine.resident() == {"m"}
        assert stage.engine.kv_bytes() == 0


def test_on_a_small_device_shorter_contexts_are_measured(models: dict[str, TinyModel]) -> None:
    model = models["llama"]
    with staged(model, BATCH * 40 * model.prepared.spec.kv_bytes_per_token) as stage:
        stage.loop.handle(new(model))
        stage.settle()
        stage.loop.handle(ImageReady("m", model.image))
        stage.settle()
        assert set(stage.told()) == {"m"}
        assert (stage.engine.kv_bytes(), stage.engine.weights_bytes()) == (0, 0)


@pytest.mark.parametrize("how", ["no image", "removed", "no room for its KV"])
def test_a_rehearsal_that_cannot_be_ends_and_the_loop_is_idle(models: dict[str, TinyModel], how: str) -> None:
    model = models["llama"]
    with staged(model, 70_000 if how == "no room for its KV" else 4 << 20) as stage:
        stage.loop.handle(new(model))
        stage.settle()
        if how == "removed":
            stage.loop.handle(RemoveModel("m"))
        elif how == "no image":
            stage.loop.handle(ImageFailed("m", 5, "MODEL_NOT_FOUND", "gone"))
        else:
            stage.loop.handle(ImageReady("m", model.image))
        stage.settle()
        assert stage.told() == {}
        assert (stage.engine.kv_bytes(), stage.engine.weights_bytes()) == (0, 0)
        assert not stage.loop.run_once()


def test_costs_are_found_again_in_the_times_that_follow_from_them() -> None:
    short, long = 16, 256
    found = costs_of(
        KNOWN, short, long,
        KNOWN.prefill_s(short), KNOWN.prefill_s(long),
        KNOWN.step_s(1, short), KNOWN.step_s(BATCH, BATCH * short), KNOWN.step_s(BATCH, BATCH * long),
    )  # fmt: skip
    assert astuple(found) == pytest.approx(astuple(KNOWN))


def test_times_that_make_no_sense_give_costs_that_do() -> None:
    found = costs_of(KNOWN, 16, 256, 0.5, 0.1, 0.3, 0.2, 0.1)
    assert min(found.prefill_base_s, found.prefill_s_per_token, found.step_base_s) > 0
    assert min(found.step_s_per_request, found.step_s_per_context_token) == 0
